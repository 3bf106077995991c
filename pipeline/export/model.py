"""A trained model as a torch module in two parts: the backbone up to its taps, and the module from taps to scores."""

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

STORED_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Dtypes to which stored rows are rounded. int8 is not rounded here, since its scale belongs to a stored shard."""


@dataclass(frozen=True)
class Output:
    """An output of an exported model.

    classes: in the order of the columns; empty for a regression, which has a single column.
    scores: probabilities or decision values. The largest score is the prediction; in a multilabel task, all labels
        above `threshold` are.
    """

    name: str
    task: str
    kind: Kind
    classes: tuple[str, ...]
    scores: Scores

    def predictions(self, values: np.ndarray) -> np.ndarray:
        """Return the predictions for values of the output, in the form of a task's targets."""
        if self.kind == "regression":
            return np.asarray(values[:, 0], dtype=np.float64)
        if self.kind == "multilabel":
            return np.asarray(values > self.threshold)
        names: np.ndarray = np.asarray(self.classes, dtype=object)[values.argmax(axis=1)]
        return names

    @property
    def threshold(self) -> float:
        """The score above which a label of a multilabel task is predicted."""
        return 0.5 if self.scores == "probability" else 0.0


def list_outputs(model: TrainedModel) -> list[Output]:
    """Return the outputs of the exported model, one per task."""
    result = []
    for task in model.tasks:
        word = "values" if task.kind == "regression" else "probabilities" if model.scores == "probability" else "scores"
        scores: Scores = (
            "none" if task.kind == "regression" else "probability" if word == "probabilities" else "decision"
        )
        classes = task.classes
        if model.head is not None and task.kind == "classification":
            classes = tuple(str(name) for name in model.head.classes_)
        name = word if len(model.tasks) == 1 else f"{task.name}_{word}"
        result.append(Output(name, task.name, task.kind, classes, scores))
    return result


def build_head_module(model: TrainedModel, *, casts: bool = True) -> nn.Module:
    """Return the module that maps the backbone's taps to the scores of each task.

    casts: whether rows are rounded by casts to the stored dtype and back. Otherwise float32 arithmetic rounds them, for
    a runtime that removes such casts. Raises HeadError for a head that cannot be exported.
    """
    if model.head is None:
        return LogitsToScores(model.tasks).eval()
    where = f"{model.folder}: {model.record.head}"
    head = to_module(model.head, kind=model.kind, scores=model.scores, where=where)
    return TapsToScores(model.backbone.spec, model.taps, head, casts=casts).eval()


def example_taps(model: TrainedModel) -> dict[str, Tensor]:
    """Return two rows of zeros for each tap, in the shape of the backbone's output."""
    spec = model.backbone.spec
    shapes = {name: pooled_shape(spec.taps[spec.node(tap.node)], tap.pool) for name, tap in model.taps.items()}
    return {name: torch.zeros(2, *shape) for name, shape in shapes.items()}


class TapsToScores(nn.Module):
    """Map taps, float32 (n, ...), to scores: project them, round them as stored rows, concatenate, apply the head."""

    def __init__(
        self, backbone: BackboneSpec, specs: Mapping[str, TapSpec], head: nn.Module, *, casts: bool = True
    ) -> None:
        super().__init__()
        self.dtypes, self.casts = [STORED_DTYPES.get(spec.dtype) for spec in specs.values()], casts
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
    """Round float32 values to the precision of a shorter dtype, using only float32 arithmetic.

    Veltkamp's splitting (Dekker 1971, A floating-point technique for extending the available precision, section 5)
    rounds to the nearest number with fewer bits; ties may round differently than in a cast. Numbers below float16's
    normal range are rounded to multiples of its smallest subnormal.
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
    """Map a network's logits (n, outputs) to the probabilities of each task, or the value of a regression (n, 1)."""

    def __init__(self, tasks: Sequence[TaskOutput]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return a tensor per task."""
        result = []
        for task in self.tasks:
            own = logits[:, task.columns]
            functions: Mapping[str, Any] = {"classification": lambda x: x.softmax(dim=1), "multilabel": torch.sigmoid}
            result.append(functions.get(task.kind, torch.clone)(own))
        return tuple(result)


class PixelsToScores(nn.Module):
    """Map pixels, uint8 (n, height, width, channels), to the scores of each task, in the order of `list_outputs`."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        spec = model.backbone.spec
        specs = {name: tap.model_copy(update={"node": spec.node(tap.node)}) for name, tap in model.taps.items()}
        self.tapped, self.end = Tapped(model.backbone, specs, early=False), build_head_module(model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return a tensor per task."""
        result = self.end(*self.tapped(pixels))
        return result if isinstance(result, tuple) else (result,)
