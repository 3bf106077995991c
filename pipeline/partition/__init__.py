"""A network in two parts (torch.fx): where it can be split, and its tail as a module.

tracer        trace a network with the names of its taps
graph         the graph of a network, and queries on it
split_points  nodes at which a network can be split
tail          the part after a split, as a module from stored rows to logits
"""
