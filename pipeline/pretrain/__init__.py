"""Pretrain the small source network of the default run on distorted pictures of printed characters.

run      load the images, train, write the network in the backbone format
images   the images of a data set as tensors, with their classes
augment  random distortions of a batch of tensors
config   settings: `PretrainConfig`
"""
