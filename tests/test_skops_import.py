"""skops and torchvision come without what they do not need, have all that they have else, and leave no trace."""

import subprocess
import sys

PROGRAM = """
import hashlib, sys
if sys.argv[1] == "ours":
    from pipeline.heads.skops_import import WRAPPERS, skops_io
    assert skops_io().__name__ == "skops.io"
    assert not {"torch", "dask", *WRAPPERS} & {*sys.modules}
else:
    import skops.io
    assert {"torch", "dask"} <= {*sys.modules}
from skops.io import _trusted_types
print(sorted(_trusted_types.SKLEARN_ESTIMATOR_TYPE_NAMES))
if sys.argv[1] == "ours":
    import sklearn.externals.array_api_compat.torch
    assert skops_io() is sys.modules["skops.io"]
    assert sklearn.externals.array_api_compat.torch is sys.modules[WRAPPERS[0]]
"""


def test_torch_stays_out_where_a_head_is_saved_and_the_same_estimators_are_known() -> None:
    told = [
        subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout
        for how in ("ours", "plain")
    ]
    assert told[0] == told[1]
    assert "sklearn.linear_model._logistic.LogisticRegression" in told[0]


TORCHVISION = """
import sys
from pipeline.backbones import torchvision_models
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]
import torch, torchvision
from torchvision.ops import roi_align
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
print(roi_align(torch.arange(64.0).reshape(1, 1, 8, 8), boxes, 2).flatten().tolist())
supported = torchvision.ops.roi_align.__globals__["is_compile_supported"]
print(supported("cpu"))
from torch._dynamo import utils
assert supported is not utils.is_compile_supported and supported("cpu") == utils.is_compile_supported("cpu")
assert utils is sys.modules["torch._dynamo.utils"] and utils.counters is not None
"""


def test_torchvision_comes_without_the_compiler_of_torch() -> None:
    done = subprocess.run([sys.executable, "-c", TORCHVISION], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "[9.0, 11.0, 25.0, 27.0]\nTrue\n")
