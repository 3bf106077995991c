"""Predictions as columns: a row per input, in the order of the inputs.

    path                     of the input
    prediction               the class; of several labels a list of them; of a regression the number
    confidence               probability of the predicted class; of several labels that of the least certain one
    score                    the same where the model has decision values in the place of probabilities
    top_1, top_1_confidence  with `top`: the classes with the largest scores, the largest first; or top_1_score
    score:<class>            with `proba`: the score of each class
    near_1, near_1_label, near_1_cosine   with `near`: the nearest training samples
    error                    why the input has no prediction

A model of several tasks has these columns for each, with `:<task>` behind the name: `prediction:<task>`.
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
    """Predictions of some inputs. `reasons`: None where an input has a prediction; `answers` are to these alone.

    `near`: rows of the training task and cosines of the nearest ones, (rows, count) each, of the same inputs.
    """

    paths: Sequence[str]
    reasons: Sequence[str | None]
    answers: Sequence[Answers]
    near: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns a prediction has. `top`: so many classes; `near`: so many training samples of `training`.

    Raises ConfigError for what the model cannot give.
    """

    model: TrainedModel | ExportedModel
    top: int = 0
    proba: bool = False
    near: int = 0
    training: TrainingRows | None = None
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        asked = [name for name, is_asked in (("--top", self.top), ("--proba", self.proba)) if is_asked]
        if asked and self.model.kind == "regression":
            raise ConfigError(f"{' and '.join(asked)}: expected a model with classes, got one of a regression.")
        if asked and self.model.scores == "none":
            raise ConfigError(f"{' and '.join(asked)}: expected a model with scores, got {self._head} without.")
        fields = [("path", pa.string())]
        for task in self.model.tasks:
            fields += [(name, values.type) for name, values in self._of_task(task, no_answers(task))]
        if self.near:
            fields += [
                (name, values.type) for name, values in self._of_near(np.empty((0, self.near)), np.empty((0, 0)))
            ]
        object.__setattr__(self, "schema", pa.schema([*fields, ("error", pa.string())]))

    @property
    def _head(self) -> str:
        return str(self.model.record["head"])

    @property
    def sure(self) -> str:
        """The column that says how sure a prediction is, without the task: confidence or score; none: an empty text."""
        if self.model.kind == "regression" or self.model.scores == "none":
            return ""
        return "confidence" if self.model.scores == "probability" else "score"

    def nearest(self, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the nearest training samples to rows of each tap, as `Block.near` has them; None if not asked for."""
        if not self.near or self.training is None:
            return None
        if not len(next(iter(rows.values()))):
            return np.empty((0, self.near), np.int64), np.empty((0, self.near))
        flat = [np.asarray(one, np.float32).reshape(len(one), -1) for one in rows.values()]
        return self.training.nearest(np.concatenate(flat, axis=1), self.near)

    def table(self, block: Block) -> pa.Table:
        """Return the columns of a block."""
        good = np.array([reason is None for reason in block.reasons], dtype=bool)
        # Row i of the inputs has row `places[i]` of the answers, or none.
        places = pa.array(np.cumsum(good) - 1, mask=~good)
        columns: dict[str, Any] = {"path": pa.array(block.paths, pa.string())}
        for task, answers in zip(self.model.tasks, block.answers, strict=True):
            columns |= {name: values.take(places) for name, values in self._of_task(task, answers)}
        if block.near is not None:
            columns |= {name: values.take(places) for name, values in self._of_near(*block.near)}
        columns["error"] = pa.array(block.reasons, pa.string())
        return pa.table(columns, schema=self.schema)

    def _of_task(self, task: TaskOutput, answers: Answers) -> list[tuple[str, pa.Array]]:
        behind = f":{task.name}" if len(self.model.tasks) > 1 else ""
        predicted = column_of(answers.predicted, task.kind, task.classes)
        columns = [(f"prediction{behind}", predicted.cast(TYPES[task.kind]))]
        if not self.sure or task.kind == "regression":
            return columns
        columns.append((f"{self.sure}{behind}", pa.array(self._certainty(task, answers), pa.float32())))
        order = np.argsort(-answers.scores, axis=1, kind="stable")
        names = np.asarray(task.classes, dtype=object)
        for place in range(min(self.top, len(task.classes))):
            best = order[:, place]
            scores = np.take_along_axis(answers.scores, best[:, None], axis=1)[:, 0]
            columns.append((f"top_{place + 1}{behind}", pa.array(names[best], pa.string())))
            columns.append((f"top_{place + 1}_{self.sure}{behind}", pa.array(scores, pa.float32())))
        if self.proba:
            of = f"{SCORE}{task.name}:" if behind else SCORE
            columns += [(of + name, pa.array(answers.scores[:, at])) for at, name in enumerate(task.classes)]
        return columns

    def _certainty(self, task: TaskOutput, answers: Answers) -> np.ndarray:
        """Return the score of each predicted class; of several labels that of the label which is the least certain."""
        scores = answers.scores
        if task.kind == "classification":
            place = {name: number for number, name in enumerate(task.classes)}
            own = np.array([place[name] for name in answers.predicted], dtype=np.int64)
            return np.take_along_axis(scores, own[:, None], axis=1)[:, 0] if len(own) else scores[:, :0].sum(axis=1)
        least = np.abs(scores) if self.model.scores == "decision" else np.maximum(scores, 1 - scores)
        return np.asarray(least.min(axis=1))

    def _of_near(self, numbers: np.ndarray, cosines: np.ndarray) -> list[tuple[str, pa.Array]]:
        columns: list[tuple[str, pa.Array]] = []
        assert self.training is not None, "there are training rows where `near` is asked for"
        for place in range(min(self.near, len(self.training.numbers))):
            rows = numbers[:, place].astype(np.int64)
            values = cosines[:, place] if len(rows) else np.empty(0)
            columns.append((f"near_{place + 1}", pa.array(self.training.paths(rows), pa.string())))
            columns.append((f"near_{place + 1}_label", pa.array(self.training.labels(rows), pa.string())))
            columns.append((f"near_{place + 1}_cosine", pa.array(values, pa.float32())))
        return columns
