"""Freeze a backbone: load weights from a source and write the network with its preprocessing.

A source is torchvision, timm, a folder that icecore wrote, a module of the user, or a network of the stage `pretrain`.
For every source, `input` overrides single preprocessing settings, and a digest pins weights in a file.

run            the stage: build the network, load the weights, write the backbone
config         settings of each source: `FreezeConfig`
state_dict     weights in a file, read without running code from it
library_model  a model of torchvision or timm by its name
outline        the nodes of a backbone before it is frozen
"""
