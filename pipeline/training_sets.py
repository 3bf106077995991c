"""The training sets that a task offers: its whole training split, or few-shot draws of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.task import Task


@dataclass(frozen=True)
class Training:
    """One training set of a run: its rows in the task, and how they were drawn."""

    rows: np.ndarray
    labels: int | None
    draw: int | None

    def __str__(self) -> str:
        return "all" if self.labels is None else f"n{self.labels}-draw{self.draw}"


def training_sets(
    task: Task, labels_per_class: Sequence[int], *, where: str, draws: int | None = None
) -> Iterator[Training]:
    """Yield the training sets that a run asks for, `draws` of each number of labels, or as many as the task has.

    A class with fewer training rows than labels are asked for has all of them. Raises DataError where the task has no
    training sets of that kind, and where no class has so many rows.
    """
    if not labels_per_class:
        rows = task.rows("train")
        if not len(rows):
            raise DataError(f"{where}: expected training rows, got none. Change the task's `sizes`.")
        yield Training(rows, None, None)
        return
    if task.kind != "classification":
        raise DataError(f"{where}: `labels_per_class` needs classes, and the task is a {task.kind}. Leave it out.")
    if not task.draws:
        raise DataError(f"{where}: `labels_per_class` needs few-shot draws. Give the task `few_shot` settings.")
    if draws is not None and task.draws < draws:
        raise DataError(
            f"{where}: expected {draws} few-shot draws, got {task.draws}. Give the task `few_shot` with as many."
        )
    all_rows = Counter(task.targets[task.rows("train")])
    for labels in labels_per_class:
        for draw in range(task.draws if draws is None else draws):
            rows = task.few(draw, labels)
            if labels > max(all_rows.values()) or len(rows) < sum(min(labels, own) for own in all_rows.values()):
                raise DataError(
                    f"{where}: expected {labels} training rows of each of {len(task.classes)} classes, got "
                    f"{len(rows)} in all. Raise `few_shot.labels_per_class` of the task, or ask for fewer."
                )
            yield Training(rows, labels, draw)
