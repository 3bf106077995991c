"""skops comes without what it does not need, knows the same estimators, and leaves no trace."""

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
