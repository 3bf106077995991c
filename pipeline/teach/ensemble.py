"""Match classes by name, and average the predictions of several teachers. Pure functions."""

from collections.abc import Sequence

import numpy as np

from pipeline.errors import TrainingError
from pipeline.task import Kind


def match_classes(teacher: Sequence[str], task: Sequence[str], *, where: str) -> np.ndarray:
    """Return the teacher's column of each class of the task, matched by name, int64 (classes,).

    Raises TrainingError with the difference if the two have different classes.
    """
    if sorted(teacher) != sorted(task) or len(set(teacher)) < len(teacher):
        more, fewer = sorted(set(teacher) - set(task)), sorted(set(task) - set(teacher))
        differences = [f"the teacher alone has {_join_names(more)}"] * bool(more) + [
            f"the task alone has {_join_names(fewer)}"
        ] * bool(fewer)
        raise TrainingError(
            f"{where}: expected a teacher of the {len(task):,} classes of the task, got one of {len(teacher):,}: "
            f"{'; '.join(differences) or 'some of them twice'}. Classes are matched by name: rename them, or take "
            "another teacher."
        )
    place = {name: number for number, name in enumerate(teacher)}
    return np.array([place[name] for name in task], np.int64)


def average_logits(logits: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """Return the logits, float32 (n, classes), of the mean probabilities of several teachers.

    Classification: the log of the mean of the softmaxes. Multilabel: the log odds of the mean of the sigmoids. The
    logits of a single teacher are returned unchanged.

    logits: an array (n, classes) per teacher.
    """
    if len(logits) == 1:
        return np.asarray(logits[0], np.float32)
    tables = np.stack([np.asarray(table, np.float64) for table in logits])
    if kind == "multilabel":
        yes, no = (np.logaddexp.reduce(-np.logaddexp(0, sign * tables), axis=0) for sign in (-1, 1))
        odds: np.ndarray = (yes - no).astype(np.float32)
        return odds
    tables -= np.logaddexp.reduce(tables, axis=2, keepdims=True)
    mean: np.ndarray = (np.logaddexp.reduce(tables, axis=0) - np.log(len(tables))).astype(np.float32)
    return mean


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names):,} in all)" if len(names) > 8 else "")
