"""One file a stage of dvc.yaml: read its section of params.yaml, make one library call, write the outs."""
