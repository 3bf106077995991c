"""The training rows of a saved head that has not learnt from them but looks at them: their keys beside it.

Nearest neighbours vote by row, so the keys are in the order in which the head was fitted to the rows. The rows
themselves are read from the features again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import HeadError
from pipeline.files import atomic, sha256_file
from pipeline.model_record import KeysFile
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.streaming.rows import Rows, is_source


def write_keys(path: Path, keys: Sequence[str]) -> KeysFile:
    """Save the keys of training rows, S16 (rows,) in NumPy's format, and return the record of the file."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, key_arrays.from_hex(keys), allow_pickle=False)
    return KeysFile(file=path.name, count=len(keys), sha256=sha256_file(path))


def needs_rows(head: Any) -> bool:
    """Return whether a head needs training rows that are not saved with it."""
    every = [
        estimator for pipeline in _pipelines(head) for estimator in _estimators(pipeline) if hasattr(estimator, "rows_")
    ]
    return any(estimator.rows_ is None or is_source(estimator.rows_) for estimator in every)


def attach_rows(head: Any, *taps: Features, record: KeysFile | None, folder: Path) -> None:
    """Attach the training rows to a head of this folder, from the taps of its input.

    Raises HeadError where the keys are not beside the head, or not those it was fitted to, and StoreError where
    features lack one of them.
    """
    if record is None:
        raise HeadError(
            f"{folder}: expected the keys of the head's training rows in model.json, got none: an older version fitted "
            "it. Fit the run again."
        )
    path = folder / record.file
    digest = sha256_file(path) if path.is_file() else "no such file"
    if digest != record.sha256:
        raise HeadError(
            f"{path}: expected the keys of {record.count:,} training rows with SHA-256 {record.sha256}, got "
            f"{digest}. Fit the run again."
        )
    rows = Rows(taps, np.load(path, allow_pickle=False))
    for pipeline in _pipelines(head):
        X: Any = rows if len(pipeline.steps) == 1 else pipeline[:-1].transform(rows)
        for estimator in _estimators(pipeline):
            estimator.attach(X)


def _pipelines(head: Any) -> Iterator[Any]:
    """Return the pipelines in a head, which a temperature may stand around."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    if isinstance(head, CalibratedClassifierCV):
        for calibrated in head.calibrated_classifiers_:
            yield from _pipelines(calibrated.estimator)
    elif isinstance(head, FrozenEstimator):
        yield from _pipelines(head.estimator)
    elif hasattr(head, "steps"):
        yield head


def _estimators(pipeline: Any) -> list[Any]:
    """Return the last step of a pipeline: one estimator, or one per label."""
    return list(getattr(pipeline[-1], "estimators_", [pipeline[-1]]))
