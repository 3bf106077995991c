"""Training of networks: end to end from pixels, or from the middle on stored activations.

config           settings of the loop, of the new classifier and of the part that is trained
data             batches of pixels or of stored rows, in orders that follow from a seed
trainable        which parameters and modules are trained from an epoch on
freezing         what of a network is trained, and what is frozen for good
losses           losses by the kind of task, class weights, mixup and cutmix
effects          settings that would change nothing, or do not suit a task
optim            optimisers, and schedules of the learning rate
lr_finder        the learning-rate range test
history          what happens, epoch by epoch
checkpoint       everything that a run goes on with
divergence       the watch over losses that are no numbers
loop             the one training loop, on Lightning Fabric
targets          the targets of a task as tensors
initial          what a network begins with
classifier_init  the fitted head as which a new classifier begins
job              all that shapes the training of one network
run              each training set trained, or loaded from the cache
outputs          what a run leaves: predictions, a record, and the best network in the backbone format
"""
