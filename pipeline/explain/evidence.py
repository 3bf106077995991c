"""Compute the evidence in an image for some classes, by the method that the model allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pipeline.backbones.feature_extractor import normalised
from pipeline.backbones.spec import resolve
from pipeline.explain.activation_map import TapEvidence, activation_map
from pipeline.explain.gradients import gradient_maps
from pipeline.explain.linear_head import LinearScores, fold_linear_head
from pipeline.explain.occlusion import CELLS, occlusion_maps
from pipeline.explain.tap_maps import TapMap, read_tap_maps
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.trained_model import TrainedModel

EXACT = (
    "Exact: the head is linear, so that its weights apply to the map before the pooling. The mean of the map is the "
    "score, up to parts without a position."
)
NOT_LINEAR = (
    "The head is not linear, so that its weights show no evidence on the image. `icecore explain` covers one part of "
    "the image after another instead."
)
TAPS_ONLY = "The taps have no map, and no map of the network leads to them: there is no picture of the evidence."


@dataclass(frozen=True)
class Evidence:
    """The evidence for a class.

    map: (rows, columns), positive where it supports the class; None if there is no map.
    score: the decision value of a head, the logit of a network, or the number of a regression; None for heads that are
        not linear.
    taps: the contribution of each tap to the score of a linear head, which also includes `intercept`.
    """

    name: str
    map: np.ndarray | None
    score: float | None = None
    taps: Mapping[str, TapEvidence] = field(default_factory=dict)
    intercept: float = 0.0


@dataclass(frozen=True)
class EvidenceSet:
    """The evidence for several classes, and the method, described in a sentence."""

    method: str
    evidence: tuple[Evidence, ...]


def find_evidence(
    model: TrainedModel,
    pixels: np.ndarray,
    rows: Mapping[str, np.ndarray],
    outputs: Sequence[int],
    *,
    task: int = 0,
    occlusion: bool = True,
) -> EvidenceSet:
    """Return the evidence in an image for some outputs.

    pixels: uint8 (height, width, channels), preprocessed for the network.
    rows: features of the image, (1, ...) per tap.
    outputs: class numbers; [0] for a regression.
    task: number of the model's task.
    occlusion: whether to explain heads that are not linear, by running the network on about fifty covered images.
    """
    all_names = model.tasks[task].classes or ("number",)
    names = [all_names[output] for output in outputs]
    linear = _linear_scores(model, rows, task)
    if linear is None and not occlusion:
        return EvidenceSet(NOT_LINEAR, ())
    if linear is None:
        return _explain_by_occlusion(model, pixels, names, outputs, task)
    weights, intercept = linear.weights[list(outputs)], linear.intercept[list(outputs)]
    images = _normalise(model, pixels)
    specs = resolve(model.taps, model.backbone.spec, where=str(model.folder))
    maps = {} if model.head is None else read_tap_maps(model.backbone, specs, images)
    row = np.concatenate([np.asarray(rows[tap], np.float64).ravel() for tap in specs])
    evidence = []
    for name, own, bias in zip(names, weights, intercept, strict=True):
        taps: dict[str, TapEvidence] = {}
        start = 0
        for tap, spec in specs.items():
            part = slice(start, start := start + rows[tap].size)
            tap_map = maps.get(tap)
            if tap_map is None:
                taps[tap] = TapEvidence(None, float(row[part] @ own[part]))
            else:
                taps[tap] = activation_map(tap_map, spec, own[part], model.backbone.spec.input.size)
        score = float(sum(tap.total for tap in taps.values()) + bias)
        evidence.append(Evidence(name, _total_map(taps, float(bias)), score, taps, float(bias)))
    if any(item.map is not None for item in evidence):
        return EvidenceSet(_describe_exact(maps), tuple(evidence))
    gradients = gradient_maps(model.backbone, specs, images, weights)
    if gradients is None:
        return EvidenceSet(TAPS_ONLY, tuple(evidence))
    method = (
        f"Gradient × activation of the patch tokens at the node {gradients.node}: an approximation of what the score "
        "depends on, positive and negative."
        if gradients.tokens
        else f"Grad-CAM at the node {gradients.node}: an approximation of the evidence for the class. It shows no "
        "evidence against it."
    )
    return EvidenceSet(
        method, tuple(replace(item, map=map_) for item, map_ in zip(evidence, gradients.maps, strict=True))
    )


def _linear_scores(model: TrainedModel, rows: Mapping[str, np.ndarray], task: int) -> LinearScores | None:
    """Return the scores as a linear function of the concatenated rows; for a network, the scores are its logits."""
    if model.head is None:
        columns = model.tasks[task].columns
        width = next(iter(rows.values())).size
        return LinearScores(np.eye(width)[columns], np.zeros(len(range(width)[columns])))
    row = np.concatenate([np.asarray(rows[tap], np.float64).ravel() for tap in model.taps])
    return fold_linear_head(model.head, row, kind=model.kind, classes=model.classes)


def _normalise(model: TrainedModel, pixels: np.ndarray) -> torch.Tensor:
    spec = model.backbone.spec.input
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return normalised(torch.from_numpy(np.array(pixels[None])), mean, std)


def _total_map(taps: Mapping[str, TapEvidence], intercept: float) -> np.ndarray | None:
    """Return the sum of the taps' maps, on the finest of their grids, shifted so that its mean is the score."""
    maps = [tap.map for tap in taps.values() if tap.map is not None]
    if not maps:
        return None
    finest = max(maps, key=lambda map_: map_.size)
    total = sum(_resize(map_, finest.shape) for map_ in maps)
    return np.asarray(total + intercept + sum(tap.rest for tap in taps.values()))


def _resize(map_: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a map on a finer grid, with the same mean."""
    if map_.shape == shape:
        return map_
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(map_)[None, None], size=shape, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    return np.asarray(fine + map_.mean() - fine.mean())


def _describe_exact(maps: Mapping[str, TapMap | None]) -> str:
    nodes = ", ".join(f"{tap}: {tap_map.node}" for tap, tap_map in maps.items() if tap_map is not None)
    without = ", ".join(tap for tap, tap_map in maps.items() if tap_map is None)
    rest = f" Taps without a map: {without}; the table has their contributions." if without else ""
    return f"{EXACT} Maps of the nodes {nodes}.{rest}"


def _explain_by_occlusion(
    model: TrainedModel, pixels: np.ndarray, names: Sequence[str], outputs: Sequence[int], task: int
) -> EvidenceSet:
    run = InMemoryExtractor(model.backbone, model.taps, batch_size=CELLS * CELLS, precision=model.precision).run

    def scores(batch: np.ndarray) -> np.ndarray:
        answers = model.answer_rows(run(batch))[task]
        if model.kind == "regression":
            return np.asarray(answers.predicted[:, None])
        if model.scores != "none":
            return answers.scores
        if model.kind == "multilabel":
            return np.asarray(answers.predicted, np.float64)
        return np.asarray(answers.predicted[:, None] == np.array(model.classes, dtype=object), np.float64)

    fill = [255 * value for value in model.backbone.spec.input.mean]
    maps = occlusion_maps(pixels, scores, outputs=outputs, fill=fill)
    method = (
        f"Occlusion: the head is not linear, so each cell of a {CELLS}×{CELLS} grid was covered in turn, and the "
        "picture shows by how much that lowers the score."
    )
    if not any(map_.any() for map_ in maps):
        method += " No covered cell changed the score."
    return EvidenceSet(method, tuple(Evidence(name, map_) for name, map_ in zip(names, maps, strict=True)))
