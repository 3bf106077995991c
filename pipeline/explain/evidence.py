"""The evidence of an image for some classes of a model, by the method that the model allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    "Exact: the head is linear, and its weights act on the map before the pooling. The mean of the picture's values "
    "plus what has no place in it is the score."
)
NOT_LINEAR = (
    "The head is not linear, so that its weights show no evidence on the image. `icecore explain` covers one part of "
    "the image after another instead."
)
TAPS_ONLY = "The taps have no map, and no map of the network leads to them: there is no picture of the evidence."


@dataclass(frozen=True)
class Evidence:
    """The evidence for a class: `map` (rows, columns), positive for it; None where there is none.

    score: the head's decision value, the logit of a network, the number of a regression; None of heads that are not
    linear. taps: the part of each tap in the score of a linear head, to which `intercept` comes.
    """

    name: str
    map: np.ndarray | None
    score: float | None = None
    taps: Mapping[str, TapEvidence] = field(default_factory=dict)
    intercept: float = 0.0


@dataclass(frozen=True)
class Explained:
    """The evidence for some classes, and the method as a sentence."""

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
) -> Explained:
    """Return the evidence of one image for some outputs, by their numbers among the classes; 0 of a regression.

    pixels: uint8 (height, width, channels) as the network takes them. rows: (1, ...) of each tap. task: its number.
    occlusion: whether heads that are not linear are explained, by running the network on some fifty covered images.
    """
    names = model.tasks[task].classes or ("number",)
    asked = [names[output] for output in outputs]
    linear = _linear_scores(model, rows, task)
    if linear is None and not occlusion:
        return Explained(NOT_LINEAR, ())
    if linear is None:
        return _by_occlusion(model, pixels, asked, outputs, task)
    weights, intercept = linear.weights[list(outputs)], linear.intercept[list(outputs)]
    images = _normalise(model, pixels)
    specs = resolve(model.taps, model.backbone.spec, where=str(model.folder))
    maps = {} if model.head is None else read_tap_maps(model.backbone, specs, images)
    row = np.concatenate([np.asarray(rows[tap], np.float64).ravel() for tap in specs])
    found = []
    for name, own, bias in zip(asked, weights, intercept, strict=True):
        taps: dict[str, TapEvidence] = {}
        start = 0
        for tap, spec in specs.items():
            part = slice(start, start := start + rows[tap].size)
            tap_map = maps.get(tap)
            if tap_map is None:
                taps[tap] = TapEvidence(None, float(row[part] @ own[part]))
            else:
                taps[tap] = activation_map(tap_map, spec, own[part], model.backbone.spec.input.size)
        score = float(sum(one.total for one in taps.values()) + bias)
        found.append(Evidence(name, _total_map(taps, float(bias)), score, taps, float(bias)))
    if any(one.map is not None for one in found):
        return Explained(_say_exact(maps), tuple(found))
    gradients = gradient_maps(model.backbone, specs, images, weights)
    if gradients is None:
        return Explained(TAPS_ONLY, tuple(found))
    drawn = zip(found, gradients.maps, strict=True)
    how = (
        f"Gradient × activation of the patch tokens at the node {gradients.node}: an approximation of what the score "
        "depends on, positive and negative."
        if gradients.tokens
        else f"Grad-CAM at the node {gradients.node}: an approximation of what speaks for the class; nothing in it "
        "speaks against."
    )
    return Explained(how, tuple(Evidence(one.name, map_, one.score, one.taps, one.intercept) for one, map_ in drawn))


def _linear_scores(model: TrainedModel, rows: Mapping[str, np.ndarray], task: int) -> LinearScores | None:
    """Return the scores as a linear function of the joined rows; of a network they are its logits."""
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
    """Return the sum of the taps' maps on the finest grid of them, plus what has no position: its mean is the score."""
    maps = [one.map for one in taps.values() if one.map is not None]
    if not maps:
        return None
    finest = max(maps, key=lambda one: one.size)
    total = sum(_resized(one, finest.shape) for one in maps)
    return np.asarray(total + intercept + sum(one.rest for one in taps.values()))


def _resized(map_: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a map on a finer grid, with the mean that it had."""
    if map_.shape == shape:
        return map_
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(map_)[None, None], size=shape, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    return np.asarray(fine + map_.mean() - fine.mean())


def _say_exact(maps: Mapping[str, TapMap | None]) -> str:
    nodes = ", ".join(f"{tap}: {one.node}" for tap, one in maps.items() if one is not None)
    without = ", ".join(tap for tap, one in maps.items() if one is None)
    rest = f" Taps without a map: {without}; the table has their parts." if without else ""
    return f"{EXACT} Maps of the nodes {nodes}.{rest}"


def _by_occlusion(
    model: TrainedModel, pixels: np.ndarray, asked: Sequence[str], outputs: Sequence[int], task: int
) -> Explained:
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
        f"Occlusion: the head is not linear, so that each cell of a grid of {CELLS}×{CELLS} was covered, and the "
        "picture shows how much that lowers the score."
    )
    if not any(one.any() for one in maps):
        method += " No covered cell changed the score."
    return Explained(method, tuple(Evidence(name, map_) for name, map_ in zip(asked, maps, strict=True)))
