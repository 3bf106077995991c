"""The training rows of saved nearest-neighbour heads: their keys are saved, the rows are read from the features.

Neighbours vote by row number, so the keys are in the order of the rows in `fit`.
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
    estimators = [
        estimator for pipeline in _pipelines(head) for estimator in _estimators(pipeline) if hasattr(estimator, "rows_")
    ]
    return any(estimator.rows_ is None or is_source(estimator.rows_) for estimator in estimators)


def attach_rows(head: Any, *taps: Features, record: KeysFile | None, folder: Path) -> None:
    """Attach the training rows, read from the taps of its input, to a head of this folder.

    Raises HeadError if the file of keys is missing or changed, and StoreError if features lack a key.
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
    """Yield the pipelines in a head, also inside a calibrated head."""
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
    """Return the estimators of a pipeline's last step: a single estimator, or one per label."""
    return list(getattr(pipeline[-1], "estimators_", [pipeline[-1]]))
