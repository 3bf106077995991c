"""Predictions as columns, with one row per input in the order of the inputs.

    path                     path of the input
    prediction               the class; a list of labels in a multilabel task; the number in a regression
    confidence               probability of the predicted class; in a multilabel task, of the least certain label
    score                    in place of `confidence`, for a model with decision values instead of probabilities
    top_2, top_2_confidence  with `top`: the classes with the next largest scores (or top_2_score); the prediction is
                             the first. In a multilabel task, whose prediction is a list, from top_1 on
    score:<class>            with `proba`: the score of each class
    near_1, near_1_label, near_1_cosine   with `near`: the nearest training samples
    error                    why the input has no prediction

A model of several tasks has these columns for each task, with `:<task>` after the name: `prediction:<task>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.inference.answers import Answers, TaskOutput, no_answers
from pipeline.inference.trained_model import TrainedModel
from pipeline.predict.exported import ExportedModel
from pipeline.predict.training_rows import TrainingRows
from pipeline.predictions import SCORE
from pipeline.task import TYPES, column_of


@dataclass(frozen=True)
class Block:
    """Predictions of some inputs.

    paths: path of each input.
    reasons: why each input has no prediction; None for an input with a prediction.
    answers: predictions of each task, only for the inputs with predictions.
    near: rows of the training task and cosines of the nearest samples, (rows, count) each, for the same inputs.
    """

    paths: Sequence[str]
    reasons: Sequence[str | None]
    answers: Sequence[Answers]
    near: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a prediction.

    top: number of classes with the largest scores.
    proba: whether to write the score of every class.
    near: number of nearest training samples, from `training`.

    Raises ConfigError for columns that the model cannot provide.
    """

    model: TrainedModel | ExportedModel
    top: int = 0
    proba: bool = False
    near: int = 0
    training: TrainingRows | None = None
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        options = [name for name, is_set in (("--top", self.top), ("--proba", self.proba)) if is_set]
        if options and self.model.kind == "regression":
            raise ConfigError(f"{' and '.join(options)}: expected a model with classes, got a regression model.")
        if options and self.model.scores == "none":
            raise ConfigError(f"{' and '.join(options)}: expected a model with scores, got {self._head} without.")
        fields = [("path", pa.string())]
        for task in self.model.tasks:
            fields += [(name, values.type) for name, values in self._task_columns(task, no_answers(task))]
        if self.near:
            fields += [
                (name, values.type) for name, values in self._near_columns(np.empty((0, self.near)), np.empty((0, 0)))
            ]
        object.__setattr__(self, "schema", pa.schema([*fields, ("error", pa.string())]))

    @property
    def _head(self) -> str:
        return self.model.record.head

    @property
    def score_column(self) -> str:
        """The name of the column with the certainty of predictions, `confidence` or `score`; empty if there is none."""
        if self.model.kind == "regression" or self.model.scores == "none":
            return ""
        return "confidence" if self.model.scores == "probability" else "score"

    def nearest(self, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the nearest training samples of feature rows, as in `Block.near`; None without `near`."""
        if not self.near or self.training is None:
            return None
        if not len(next(iter(rows.values()))):
            return np.empty((0, self.near), np.int64), np.empty((0, self.near))
        flat = [np.asarray(values, np.float32).reshape(len(values), -1) for values in rows.values()]
        return self.training.nearest(np.concatenate(flat, axis=1), self.near)

    def table(self, block: Block) -> pa.Table:
        """Return the columns of a block."""
        good = np.array([reason is None for reason in block.reasons], dtype=bool)
        # Input i has row `indices[i]` of the answers, or null.
        indices = pa.array(np.cumsum(good) - 1, mask=~good)
        columns: dict[str, Any] = {"path": pa.array(block.paths, pa.string())}
        for task, answers in zip(self.model.tasks, block.answers, strict=True):
            columns |= {name: values.take(indices) for name, values in self._task_columns(task, answers)}
        if block.near is not None:
            columns |= {name: values.take(indices) for name, values in self._near_columns(*block.near)}
        columns["error"] = pa.array(block.reasons, pa.string())
        return pa.table(columns, schema=self.schema)

    def _task_columns(self, task: TaskOutput, answers: Answers) -> list[tuple[str, pa.Array]]:
        suffix = f":{task.name}" if len(self.model.tasks) > 1 else ""
        predicted = column_of(answers.predicted, task.kind, task.classes)
        columns = [(f"prediction{suffix}", predicted.cast(TYPES[task.kind]))]
        if not self.score_column or task.kind == "regression":
            return columns
        columns.append((f"{self.score_column}{suffix}", pa.array(self._certainty(task, answers), pa.float32())))
        ranked = _rank_classes(task, answers)
        names = np.asarray(task.classes, dtype=object)
        first = 1 if task.kind == "multilabel" else 2
        for rank in range(first, min(self.top, len(task.classes)) + 1):
            best = ranked[:, rank - 1]
            scores = np.take_along_axis(answers.scores, best[:, None], axis=1)[:, 0]
            columns.append((f"top_{rank}{suffix}", pa.array(names[best], pa.string())))
            columns.append((f"top_{rank}_{self.score_column}{suffix}", pa.array(scores, pa.float32())))
        if self.proba:
            prefix = f"{SCORE}{task.name}:" if suffix else SCORE
            columns += [(prefix + name, pa.array(answers.scores[:, at])) for at, name in enumerate(task.classes)]
        return columns

    def _certainty(self, task: TaskOutput, answers: Answers) -> np.ndarray:
        """Return the score of each predicted class; in a multilabel task, that of the least certain label."""
        scores = answers.scores
        if task.kind == "classification":
            return np.take_along_axis(scores, _predicted_columns(task, answers), axis=1)[:, 0]
        certainty = np.abs(scores) if self.model.scores == "decision" else np.maximum(scores, 1 - scores)
        return np.asarray(certainty.min(axis=1))

    def _near_columns(self, numbers: np.ndarray, cosines: np.ndarray) -> list[tuple[str, pa.Array]]:
        columns: list[tuple[str, pa.Array]] = []
        assert self.training is not None, "`near` comes with training rows"
        for rank in range(min(self.near, len(self.training.numbers))):
            rows = numbers[:, rank].astype(np.int64)
            values = cosines[:, rank] if len(rows) else np.empty(0)
            columns.append((f"near_{rank + 1}", pa.array(self.training.paths(rows), pa.string())))
            columns.append((f"near_{rank + 1}_label", pa.array(self.training.labels(rows), pa.string())))
            columns.append((f"near_{rank + 1}_cosine", pa.array(values, pa.float32())))
        return columns


def _predicted_columns(task: TaskOutput, answers: Answers) -> np.ndarray:
    """Return the column of the predicted class in the scores of each row, (rows, 1)."""
    index = {name: number for number, name in enumerate(task.classes)}
    return np.array([index[name] for name in answers.predicted], dtype=np.int64)[:, None]


def _rank_classes(task: TaskOutput, answers: Answers) -> np.ndarray:
    """Return the columns of the scores, largest score first, (rows, classes); a predicted class is the first."""
    scores = answers.scores
    if task.kind == "classification":  # the head decides between equal scores
        scores = scores.copy()
        np.put_along_axis(scores, _predicted_columns(task, answers), np.inf, axis=1)
    return np.argsort(-scores, axis=1, kind="stable")
