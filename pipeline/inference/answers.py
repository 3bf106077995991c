"""The predictions of a head or a network for one task, in the form of the task's targets."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import counted
from pipeline.heads.outputs import predict_with_scores
from pipeline.predictions import Scores
from pipeline.task import Kind


@dataclass(frozen=True)
class TaskOutput:
    """A task of a model: its kind, its classes in order, and its columns of the network's logits."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    columns: slice


def describe_tasks(tasks: Iterable[TaskOutput]) -> str:
    """Return the classes of each task in one short line, such as `3 classes: cat, dog, …`, or `regression`."""
    return "; ".join(
        "regression"
        if task.kind == "regression"
        else f"{_count_classes(task)}: {textwrap.shorten(', '.join(task.classes), 60, placeholder=' …')}"
        for task in tasks
    )


def _count_classes(task: TaskOutput) -> str:
    noun, nouns = ("label", "labels") if task.kind == "multilabel" else ("class", "classes")
    return counted(len(task.classes), noun, nouns)


@dataclass(frozen=True)
class Answers:
    """Predictions for one task: `predicted` in the form of `Task.targets`, `scores` float32 (rows, classes).

    Scores are NaN for a head without scores, and have no columns for a regression.
    """

    predicted: np.ndarray
    scores: np.ndarray


def answers_of_head(head: Any, X: np.ndarray, task: TaskOutput, scores: Scores) -> Answers:
    """Return the predictions of a fitted head for rows X; raises ValueError if its scores are not finite."""
    if not len(X):
        return no_answers(task)
    return Answers(*predict_with_scores(head, X, kind=task.kind, scores=scores, classes=task.classes))


def answers_of_logits(logits: np.ndarray, task: TaskOutput) -> Answers:
    """Return the predictions from the logits (n, outputs) of a trained network, computed as in its run."""
    if not len(logits):
        return no_answers(task)
    import torch

    from pipeline.training.targets import answers_to

    return Answers(*answers_to(task.kind, task.classes, torch.from_numpy(np.ascontiguousarray(logits))))


def no_answers(task: TaskOutput) -> Answers:
    """Return the predictions for zero images."""
    shape = (0, len(task.classes)) if task.kind == "multilabel" else (0,)
    dtype = {"multilabel": bool, "regression": np.float64}.get(task.kind, object)
    return Answers(np.empty(shape, dtype), np.empty((0, len(task.classes)), np.float32))
