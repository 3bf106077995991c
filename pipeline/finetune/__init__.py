"""Fine-tuning: train a network further, whole or in part, from pixels or from stored activations of a middle layer.

config          settings: `FinetuneConfig`
inputs          what is trained on: decoded pixels, or stored rows of a tap and the part of the network after it
start_from_run  the network or the head of another run, to start from
setup           load task, backbone and inputs; build the job of one training set
breakeven       after how many epochs stored activations pay for themselves
run             train each training set, predict, write the best network
"""
