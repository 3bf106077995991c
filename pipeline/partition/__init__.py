"""A network in two parts: where it can be split, and its tail as a module of its own (torch.fx)."""
