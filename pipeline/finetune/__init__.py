"""Fine-tuning: train a network further, whole or in part, from pixels or from stored activations of a middle layer.

config          settings: `FinetuneConfig`
inputs          inputs of training: decoded pixels, or stored rows of a tap for the tail of the network
start_from_run  the network or the head of another run, to start from
setup           load task, backbone and inputs; build the job of a training set
breakeven       after how many epochs stored activations pay for themselves
run             train each training set, predict, write the best network
"""
