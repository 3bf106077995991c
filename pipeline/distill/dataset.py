"""The training samples of a student, with labels and the outputs of its teachers for the same pixels.

A sample that is a validation or test row of any task is never trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.targets import DistillTargets
from pipeline.distill.tasks import StudentTask, check_rows
from pipeline.loading.image_cache import Pixels
from pipeline.readers.augment import Views
from pipeline.readers.transforms import AugmentConfig
from pipeline.store import key_arrays
from pipeline.task import Training
from pipeline.teach.teacher import Teacher
from pipeline.training.data import IN_MEMORY, PixelSamples, view_of_epoch
from pipeline.training.targets import targets_of

NO_LABEL = -1


@dataclass(frozen=True)
class DistillSet:
    """The samples of a training set with their labels.

    keys: S16 (n,). labels, truth: as in `DistillTargets`. known: whether the teachers of each task have scores, bool
    (n, tasks). labelled: number of samples with a label of the run's task. left_out: number of samples that are
    validation or test rows of a task.
    """

    training: Training
    keys: np.ndarray
    labels: np.ndarray
    truth: np.ndarray | None
    known: np.ndarray
    labelled: int
    left_out: int


def build_distill_set(
    subjects: Sequence[StudentTask], training: Training, *, unlabelled: bool, extra: np.ndarray, labels: bool
) -> DistillSet:
    """Collect the samples of a training set of the first task, sorted by key, with and without labels.

    Labelled are the few-shot rows, with their classes in all tasks, or else the training rows of all tasks. unlabelled:
    add the other training rows of all tasks. extra: further unlabelled samples S16 (n,). labels: whether labels have a
    weight. Samples without label and teacher are replaced by repeated samples, so that an epoch keeps its length.

    Raises DataError if a teacher lacks scores of a row of its task, or the first task's teachers of an extra sample.
    """
    first = subjects[0]
    train = [task.keys[task.split == "train"] for task in subjects]
    with_labels = first.keys[training.rows] if training.labels is not None else np.concatenate(train)
    candidates = np.unique(np.concatenate([with_labels, *(train if unlabelled else []), extra]))
    held = np.unique(np.concatenate([task.keys[task.split != "train"] for task in subjects]))
    keys = candidates[~_among(candidates, held)]
    own = _among(keys, np.unique(with_labels))
    for number, task in enumerate(subjects):
        needed = np.concatenate([train[number], extra]) if number == 0 else train[number]
        check_rows(task, keys[_among(keys, np.unique(needed))])
    numbers = np.stack([_labels(task, keys, own) for task in subjects], axis=1)
    known = np.stack([task.known(keys) for task in subjects], axis=1)
    truth = _truth(subjects, keys, numbers)
    rows = np.flatnonzero(known.any(axis=1) | (labels & (numbers != NO_LABEL).any(axis=1)))
    if len(rows):
        rows = rows[np.arange(len(keys)) % len(rows)]
    return DistillSet(
        training=training,
        keys=keys[rows],
        labels=numbers[rows],
        truth=None if truth is None else truth[rows],
        known=known[rows],
        labelled=int((numbers[:, 0] != NO_LABEL).sum()),
        left_out=len(candidates) - len(keys),
    )


def label_targets(subjects: Sequence[StudentTask], number: int, rows: np.ndarray) -> DistillTargets:
    """Return the targets of a task's rows without teachers' outputs, for validation."""
    keys = subjects[number].keys[rows]
    labels = np.full((len(keys), len(subjects)), NO_LABEL, np.int64)
    labels[:, number] = _labels(subjects[number], keys, np.ones(len(keys), bool))
    truth = _truth(subjects, keys, labels)
    return DistillTargets(
        torch.from_numpy(labels),
        torch.empty(len(keys), 0),
        torch.zeros(len(keys), len(subjects), dtype=torch.bool),
        truth=None if truth is None else torch.from_numpy(truth),
    )


class DistillSamples(PixelSamples):
    """Samples with teachers' outputs: original images, or in each epoch a stored view per sample with its scores."""

    def __init__(
        self,
        pixels: Pixels,
        distill_set: DistillSet,
        subjects: Sequence[StudentTask],
        *,
        seed: int,
        hints: Sequence[str] = (),
        transforms: AugmentConfig = (),
        views: Views | None = None,
        online: bool = False,
    ) -> None:
        """hints: nodes of the first task's teacher. online: teachers run in each step, so no scores are read.

        Raises the errors of `PixelSamples`, `Teacher.logits` and `Teacher.hints`.
        """
        plain = DistillTargets(
            torch.from_numpy(distill_set.labels),
            torch.empty(len(distill_set.keys), 0),
            torch.from_numpy(distill_set.known),
            truth=None if distill_set.truth is None else torch.from_numpy(distill_set.truth),
        )
        super().__init__(pixels, plain, distill_set.keys, seed=seed, transforms=transforms, views=views)
        self._plain = plain
        self._scores: _Stored | None = None
        self._hints: dict[str, _Stored] = {}
        if online or not any(task.teachers for task in subjects):
            return
        width = subjects[-1].branch.stop
        self._scores = _Stored(distill_set.keys, views, (width,), lambda keys, view: _scores(subjects, keys, view))
        for node in hints:
            teacher = subjects[0].teachers[0]
            shape = teacher.hint_shape(node)
            self._hints[node] = _Stored(distill_set.keys, views, shape, partial(_rows, teacher, node))

    def batch_targets(self, rows: np.ndarray, epoch: int | None) -> DistillTargets:
        """Return labels, and teachers' outputs for the pixels of an epoch; without an epoch, labels only."""
        plain = self._plain[torch.from_numpy(rows)]
        if epoch is None or self._scores is None:
            return plain
        count = 0 if self._views is None else self._views.count
        numbers = view_of_epoch(self.seed, epoch, self.keys[rows], count) if count else np.zeros(len(rows), np.int64)
        hints = {node: stored.of(rows, numbers) for node, stored in self._hints.items()}
        return DistillTargets(plain.labels, self._scores.of(rows, numbers), plain.known, hints, plain.truth)


class _Stored:
    """Stored outputs of teachers, float32 (n, *shape) per view; in memory up to IN_MEMORY."""

    def __init__(self, keys: np.ndarray, views: Views | None, shape: tuple[int, ...], read: "_Read") -> None:
        self._keys, self._read, self._shape = keys, read, shape
        self._views: Sequence[int | None] = [None] if views is None else range(views.count)
        wanted = len(self._views) * len(keys) * int(np.prod(shape)) * 4
        self._in_memory = [read(keys, view) for view in self._views] if wanted <= IN_MEMORY else None

    def of(self, rows: np.ndarray, numbers: np.ndarray) -> Tensor:
        """Return the outputs for samples, each from the view with its number."""
        values = np.empty((len(rows), *self._shape), np.float32)
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            if self._in_memory is not None:
                values[here] = self._in_memory[number][rows[here]]
            else:
                values[here] = self._read(self._keys[rows[here]], self._views[number])
        return torch.from_numpy(values)


_Read = Callable[[np.ndarray, int | None], np.ndarray]


def _scores(subjects: Sequence[StudentTask], keys: np.ndarray, view: int | None) -> np.ndarray:
    """Read logits float32 (n, classes of all tasks); zeros where a task's teachers have no scores."""
    logits = np.zeros((len(keys), subjects[-1].branch.stop), np.float32)
    for task in subjects:
        known = task.known(keys)
        if known.any():
            logits[known, task.branch.start : task.branch.stop] = task.logits(keys[known], view)
    return logits


def _rows(teacher: Teacher, node: str, keys: np.ndarray, view: int | None) -> np.ndarray:
    """Read the rows of a hint; zeros for samples that the teacher lacks."""
    values = np.zeros((len(keys), *teacher.hint_shape(node)), np.float32)
    known = teacher.has(keys)
    if known.any():
        values[known] = teacher.hints(node, keys[known], view)
    return values


def _among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which keys are in `others`, which is sorted: bool (n,)."""
    among: np.ndarray = key_arrays.find(others, keys) >= 0
    return among


def _labels(subject: StudentTask, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the class of each sample in a task, int64 (n,): NO_LABEL where the task lacks the sample.

    Of a multilabel task 0 where the task has the sample.
    """
    rows = key_arrays.find(subject.keys, keys)
    there = wanted & (rows >= 0)
    numbers = np.full(len(keys), NO_LABEL, np.int64)
    if subject.task.kind == "multilabel":
        numbers[there] = 0
    else:
        numbers[there] = targets_of(subject.task, np.empty(0, np.int64)).of(rows[there]).numpy()
    return numbers


def _truth(subjects: Sequence[StudentTask], keys: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Return the classes of samples in multilabel tasks, float32 (n, classes of all tasks); None without one."""
    if all(task.task.kind != "multilabel" for task in subjects):
        return None
    truth = np.zeros((len(keys), subjects[-1].branch.stop), np.float32)
    for number, task in enumerate(subjects):
        if task.task.kind == "multilabel":
            there = labels[:, number] != NO_LABEL
            rows = key_arrays.find(task.keys, keys[there])
            truth[there, task.branch.start : task.branch.stop] = task.task.targets[rows]
    return truth
