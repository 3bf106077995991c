"""A network in two parts (torch.fx): where it can be split, and its tail as a module.

tracer        trace a network with the names of its taps
graph         what runs in which order, and what needs what
split_points  nodes at which a network can be split
tail          what follows a split, from stored rows to logits
"""
