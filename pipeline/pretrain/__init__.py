"""Pretraining of the small source network of the default run, on distorted pictures of printed characters.

augment  random distortions of a batch, on tensors
run      the training loop, and the network in the backbone format
"""
