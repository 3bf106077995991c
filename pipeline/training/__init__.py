"""Training of networks: end to end from pixels, or from the middle on stored activations.

config           settings of the loop, of the new classifier and of the part that is trained
data             batches of pixels or of stored rows, in orders that follow from a seed
phases           which parameters and modules are trained from an epoch on
freezing         what of a network is trained, and what is frozen for good
losses           losses by the kind of task, class weights, mixup and cutmix
effects          settings that would change nothing, or do not suit a task
optim            optimisers, and schedules of the learning rate
lr_finder        the learning-rate range test
early_stopping   the best epoch, when to stop, and the curves
checkpoint       everything that a run goes on with
divergence       the watch over losses that are no numbers
loop             the one training loop, on Lightning Fabric
targets          the targets of a task as tensors
build_network    the network of a run, with its new classifier
linear_probe     the fitted head as which a new classifier begins
job              all that shapes the training of one network
run              each training set trained, or loaded from the cache
outputs          what a run leaves: predictions, a record, and the best network in the backbone format
"""
