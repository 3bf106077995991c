"""Freeze a backbone: load weights from a source and write the network with its preprocessing.

A source is torchvision, timm, a folder that icecore wrote, a module of the user, or a network of the stage `pretrain`.
For every source, `input` overrides single preprocessing settings, and a digest pins weights in a file.

run            the stage: load the network, apply `input`, write the backbone
load           a network with its weights, from each source
fit_weights    weights into a network, which loses its classifier where only that does not fit
config         settings of each source: `FreezeConfig`
state_dict     weights in a file, read without running code from it
library_model  a model of torchvision or timm by its name
outline        the nodes of a backbone before it is frozen
"""
