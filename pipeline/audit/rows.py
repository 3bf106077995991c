"""The rows that an audit looks at."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.audit import counts
from pipeline.audit.config import AuditConfig
from pipeline.audit.neighbours import CentredRows, centre
from pipeline.split.assign import position
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.streaming.rows import Rows
from pipeline.task import Task


def preference(tap: Features) -> tuple[bool, bool, int]:
    """Return a tap's sort key: vectors before maps, features before pixels and logits, then the narrowest."""
    node = tap.index.identity.get("node")
    return len(tap.shape) > 1, node in ("input", "logits"), math.prod(tap.shape)


@dataclass(frozen=True)
class AuditedRows:
    """The rows of a task that are audited (row numbers), their features' mean, and counts of the rows left out."""

    task: Task
    keys: np.ndarray
    tap: Features
    rows: np.ndarray
    mean: np.ndarray
    about: dict[str, int]

    @property
    def by_split(self) -> dict[str, np.ndarray]:
        """The audited rows of each split that has any."""
        audited = {split: np.intersect1d(self.rows, self.task.rows(split)) for split in counts.splits_of(self.task)}
        return {split: rows for split, rows in audited.items() if len(rows)}

    def source(self, rows: np.ndarray, *, unit: bool) -> CentredRows:
        """Return the features of some rows, with the mean of all audited rows subtracted."""
        return CentredRows(Rows([self.tap], self.keys[rows].tolist()), self.mean, unit=unit)


def select_rows(config: AuditConfig, task: Task, tap: Features) -> AuditedRows:
    """Return the rows to audit: those with usable features; a sample of at most `max_rows`.

    A task has the same sample in every audit.
    """
    keys = task.keys
    has_features = np.isin(key_arrays.from_hex(keys), tap.key_array)
    sample = np.flatnonzero(has_features)
    if len(sample) > config.max_rows:
        order = sorted(sample.tolist(), key=lambda row: position(str(keys[row]), salt="audit-0"))
        sample = np.sort(order[: config.max_rows])
    centred = centre(Rows([tap], keys[sample].tolist()))
    rows = sample[centred.usable]
    about = {
        "audited": len(rows),
        "of": len(task),
        "without_features": int((~has_features).sum()),
        "degenerate": int((~centred.usable).sum()),
    }
    return AuditedRows(task, keys, tap, rows, centred.mean, about)
