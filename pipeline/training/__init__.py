"""Training of networks: end to end from pixels, or from the middle on stored activations.

config           settings of the loop, of the new classifier and of the part that is trained
data             batches of pixels or of stored rows, in a seeded order
phases           which parameters and modules are trained from an epoch on
freezing         trainable and frozen parts of a network
losses           losses by the kind of task, class weights, mixup and cutmix
effects          settings without effect, or unsuitable for a task
optim            optimisers, and schedules of the learning rate
lr_finder        the learning-rate range test
early_stopping   the best epoch, when to stop, and the curves
checkpoint       save and resume the state of a run
divergence       detection of losses that are not finite
loop             the one training loop, on Lightning Fabric
targets          the targets of a task as tensors
build_network    the network of a run, with its new classifier
linear_probe     the fitted head that initialises a new classifier
job              a network to train with samples, objective and settings
run              train each training set, or load it from the cache
outputs          the files of a run: predictions, record, and the best network as a backbone
"""
