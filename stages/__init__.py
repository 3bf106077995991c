"""One file a stage of dvc.yaml: read its section of params.yaml, make one library call, write the outs."""

import os

# Before torch is loaded: its threads sleep when they wait. By default they spin, and training slows down many times as
# soon as another program wants one of the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
