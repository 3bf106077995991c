"""The answers of a head or of a network to one task, in the form in which a task has its targets."""

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
    """One task that a model answers: its kind, its classes in their order, and its columns of the network's logits."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    columns: slice


def describe_tasks(tasks: Iterable[TaskOutput]) -> str:
    """Return the classes of each task as one short line, such as `3 classes: cat, dog, …`; a regression has none."""
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
    """The answers to one task: `predicted` as `Task.targets` has targets, `scores` float32 (rows, classes).

    Scores are NaN of a head that gives none; a regression has no columns.
    """

    predicted: np.ndarray
    scores: np.ndarray


def answers_of_head(head: Any, X: np.ndarray, task: TaskOutput, scores: Scores) -> Answers:
    """Return what a fitted head answers to rows X; raises ValueError where its scores are no finite numbers."""
    if not len(X):
        return no_answers(task)
    return Answers(*predict_with_scores(head, X, kind=task.kind, scores=scores, classes=task.classes))


def answers_of_logits(logits: np.ndarray, task: TaskOutput) -> Answers:
    """Return what the logits (n, outputs) of a trained network answer, as the predictions of its run do."""
    if not len(logits):
        return no_answers(task)
    import torch

    from pipeline.training.targets import answers_to

    return Answers(*answers_to(task.kind, task.classes, torch.from_numpy(np.ascontiguousarray(logits))))


def no_answers(task: TaskOutput) -> Answers:
    """Return the answers to no image."""
    shape = (0, len(task.classes)) if task.kind == "multilabel" else (0,)
    dtype = {"multilabel": bool, "regression": np.float64}.get(task.kind, object)
    return Answers(np.empty(shape, dtype), np.empty((0, len(task.classes)), np.float32))
