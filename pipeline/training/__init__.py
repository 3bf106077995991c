"""Training of networks: end to end from pixels, or from the middle on stored activations.

tracer        torch.fx's tracer, with the names that taps have
graph         what runs in a network, in which order, and what needs what
cut           the nodes at which a network can be cut in two, and what runs on either side
suffix        what comes after a cut, as a module
parts         the settings that say which part of a network is trained
phases        which parameters are trained from an epoch on, and which modules are in training mode then
freezing      what is frozen: in the modes of modules, in the optimiser, and in a digest
"""
