"""icecore: run a frozen backbone over the data once, keep any layer, reuse it for every head.

The map of the library. A file imports from its own layer or from one below it.

    0  errors  files  runtime  text  settings/  workers/  forkserver/
    1  manifest  task  predictions  model_record  metrics  sources/  readers/  loading/  backbones/  engines/  store/
       partition/
    2  sample/  prepare/  pretrain/  freeze/  extract/  split/  audit/  streaming/  heads/  fit/  training/  finetune/
       teach/  distill/
    3  evaluate/  compare/  report/  embed  inference/  predict/  explain/  export/
       projects/  cli/

Nothing is re-exported here: import a name from the module that defines it.
"""

__version__ = "0.1.0"
