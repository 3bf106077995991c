"""icecore: run a frozen backbone over the data once, keep any layer, reuse it for every head.

The map of the library. A file imports from its own layer or from one below it.

    0  errors  messages  repair  files  params  config  reference  runtime  text  lookalikes  workers/
    1  manifest  task  training_sets  predictions  metrics  bootstrap  sources/  readers/  backbones/  engines/  store/
    2  sample  prepare/  pretrain/  freeze/  extract/  training/  split/  audit/  heads/  fit/  teach/  choice  layers
    3  embed  methods  undecided  wrong  reproduce  breakdown  evaluate  taught  compare  report/  info  cache_cli  cli

Nothing is re-exported here: import a name from the module that defines it.
"""

__version__ = "0.1.0"
