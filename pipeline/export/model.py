"""A trained model as one torch module in two parts: the backbone up to its taps, and from these to scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones import projection
from pipeline.backbones.feature_extractor import Tapped
from pipeline.backbones.spec import BackboneSpec, TapSpec, pooled_shape
from pipeline.export.estimators import to_module
from pipeline.export.layers import to_tensor
from pipeline.inference.answers import TaskOutput
from pipeline.inference.trained_model import TrainedModel
from pipeline.predictions import Scores
from pipeline.task import Kind

ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Dtypes that rows were rounded to when they were stored; int8 has a scale of each shard, which new rows have not."""


@dataclass(frozen=True)
class Output:
    """An output of an exported model. `classes`: in the order of its columns; a regression has none and one column.

    `scores`: probabilities, or decision values, whose largest (of several labels: those above 0) is the prediction.
    """

    name: str
    task: str
    kind: Kind
    classes: tuple[str, ...]
    scores: Scores

    def predictions(self, values: np.ndarray) -> np.ndarray:
        """Return what values of the output predict, in the form that a task has targets."""
        if self.kind == "regression":
            return np.asarray(values[:, 0], dtype=np.float64)
        if self.kind == "multilabel":
            return np.asarray(values > self.threshold)
        names: np.ndarray = np.asarray(self.classes, dtype=object)[values.argmax(axis=1)]
        return names

    @property
    def threshold(self) -> float:
        """Return the score above which one of several labels is predicted."""
        return 0.5 if self.scores == "probability" else 0.0


def list_outputs(model: TrainedModel) -> list[Output]:
    """Return what the exported model gives, an output per task."""
    result = []
    for one in model.tasks:
        word = "values" if one.kind == "regression" else "probabilities" if model.scores == "probability" else "scores"
        scores: Scores = (
            "none" if one.kind == "regression" else "probability" if word == "probabilities" else "decision"
        )
        classes = one.classes
        if model.head is not None and one.kind == "classification":
            classes = tuple(str(name) for name in model.head.classes_)
        name = word if len(model.tasks) == 1 else f"{one.name}_{word}"
        result.append(Output(name, one.name, one.kind, classes, scores))
    return result


def build_end(model: TrainedModel, *, casts: bool = True) -> nn.Module:
    """Return the module from the taps, as the backbone gives them, to the scores of each task.

    casts: round rows by casting them to the stored dtype and back; without, by float32 arithmetic, for a runtime that
    leaves such casts out. Raises HeadError for a head that cannot be exported.
    """
    if model.head is None:
        return LogitsToScores(model.tasks).eval()
    where = f"{model.folder}: {model.record['head']}"
    head = to_module(model.head, kind=model.kind, scores=model.scores, where=where)
    return TapsToScores(model.backbone.spec, model.taps, head, casts=casts).eval()


def example_taps(model: TrainedModel) -> dict[str, Tensor]:
    """Return two rows of zeros of each tap, in the shape in which the backbone gives it."""
    spec = model.backbone.spec
    shapes = {name: pooled_shape(spec.taps[spec.node(tap.node)], tap.pool) for name, tap in model.taps.items()}
    return {name: torch.zeros(2, *shape) for name, shape in shapes.items()}


class TapsToScores(nn.Module):
    """Taps float32 (n, ...) to scores: projected, rounded as stored rows are, joined, and given to a head."""

    def __init__(
        self, backbone: BackboneSpec, specs: Mapping[str, TapSpec], head: nn.Module, *, casts: bool = True
    ) -> None:
        super().__init__()
        self.dtypes, self.casts = [ROUNDED.get(spec.dtype) for spec in specs.values()], casts
        self.head = head
        for number, spec in enumerate(specs.values()):
            matrix = None
            if spec.project is not None:
                width = torch.Size(pooled_shape(backbone.taps[backbone.node(spec.node)], spec.pool)).numel()
                matrix = to_tensor(projection.matrix(width, spec.project).toarray().T)
            self.register_buffer(f"projection_{number}", matrix)

    def forward(self, *taps: Tensor) -> Tensor:
        """Return scores (n, classes), or (n, 1)."""
        rows = []
        for number, (tap, dtype) in enumerate(zip(taps, self.dtypes, strict=True)):
            flat = tap.flatten(1)
            matrix: Tensor | None = getattr(self, f"projection_{number}")
            flat = flat if matrix is None else flat @ matrix
            if dtype is not None:
                flat = flat.to(dtype).float() if self.casts else round_to(flat, dtype)
            rows.append(flat)
        result: Tensor = self.head(rows[0] if len(rows) == 1 else torch.cat(rows, dim=1))
        return result


def round_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to the precision of a shorter dtype, by float32 arithmetic only.

    Veltkamp's splitting (Dekker 1971, A floating-point technique for extending the available precision, section 5)
    rounds to the nearest number with fewer bits; of two that are equally near it may take the other than a cast does.
    Numbers too small for float16's exponent are multiples of its smallest.
    """
    kind = torch.finfo(dtype)
    factor = 2.0 ** (24 - round(1 - math.log2(kind.eps))) + 1
    scaled = values * factor
    result = scaled - (scaled - values)
    if dtype != torch.float16:
        return result
    smallest = kind.smallest_normal * kind.eps
    return torch.where(values.abs() < kind.smallest_normal, (values / smallest).round() * smallest, result)


class LogitsToScores(nn.Module):
    """The logits of a network (n, outputs) to the probabilities of each task, or the value of a regression (n, 1)."""

    def __init__(self, tasks: Sequence[TaskOutput]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return a tensor per task."""
        result = []
        for one in self.tasks:
            own = logits[:, one.columns]
            functions: Mapping[str, Any] = {"classification": lambda x: x.softmax(dim=1), "multilabel": torch.sigmoid}
            result.append(functions.get(one.kind, torch.clone)(own))
        return tuple(result)


class Whole(nn.Module):
    """Pixels uint8 (n, height, width, channels) to the scores of each task, in the order of `outputs_of`."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        spec = model.backbone.spec
        specs = {name: tap.model_copy(update={"node": spec.node(tap.node)}) for name, tap in model.taps.items()}
        self.tapped, self.end = Tapped(model.backbone, specs, early=False), build_end(model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return a tensor per task."""
        result = self.end(*self.tapped(pixels))
        return result if isinstance(result, tuple) else (result,)
