"""Evidence through a whole network, from the gradient of a score at the last map that the score depends on.

Maps: Grad-CAM (Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
eq. 1 and 2): the sum of the map's channels, each weighted by the mean of its gradient over positions, with negative
sums set to 0. Tokens: gradient × activation of each patch token, summed over channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.hooks import FUNCTION, INPUT, observe, without_attention_fastpath
from pipeline.backbones.pooling import pool
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import Tap, TapSpec
from pipeline.explain.activation_map import unproject_weights
from pipeline.explain.tap_maps import has_positions, patch_grid

LAST = 24
"""How many of the last nodes with positions are searched. A transformer block has about ten such nodes."""


@dataclass(frozen=True)
class GradientMaps:
    """The evidence for each score, (rows, columns), and its node. `tokens`: whether the node's values are tokens."""

    maps: list[np.ndarray]
    node: str
    tokens: bool


def gradient_maps(
    backbone: Backbone, taps: Mapping[str, TapSpec], images: Tensor, weights: np.ndarray
) -> GradientMaps | None:
    """Return the evidence for the scores `weights @ row` of an image; None if no map leads to the scores.

    taps: the taps whose rows are concatenated to `row`.
    images: a single image, (1, c, h, w).
    weights: (scores, width of the row).
    """
    nodes = backbone.spec.taps
    maps = {name: tap for name, tap in nodes.items() if name != INPUT and tap.kind != FUNCTION and has_positions(tap)}
    maps = dict(list(maps.items())[-LAST:])
    widths = [tap.shape[-1] for tap in maps.values() if tap.layout == "LC"]
    # Exclude the concatenated queries, keys and values, whose channels are not features of a patch.
    maps = {name: tap for name, tap in maps.items() if tap.layout != "LC" or tap.shape[-1] == widths[-1]}
    specs = list(taps.values())
    values: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}

    def record(node: str, value: Any) -> None:
        if node in maps:
            values[node] = value
        for name, spec in taps.items():
            if spec.node == node:
                rows[name] = pool(value.clone(), spec.pool, nodes[node]).flatten().double()

    wanted = {**maps, **{spec.node: nodes[spec.node] for spec in specs if spec.node != INPUT}}
    images = images.clone().requires_grad_()
    with torch.enable_grad(), without_attention_fastpath(), observe(backbone.module, record, wanted):
        # A copy: layers may not change the leaf tensor in place.
        backbone.module(images * 1)
        for name, spec in taps.items():
            if spec.node == INPUT:
                rows[name] = pool(images, spec.pool, nodes[INPUT]).flatten().double()
        scores = _scores(taps, rows, weights)
        candidates = [name for name in maps if name in values and values[name].requires_grad]
        by_score = (
            [
                torch.autograd.grad(score, [values[name] for name in candidates], retain_graph=True, allow_unused=True)
                for score in scores
            ]
            if candidates
            else []
        )
    for index, node in reversed(list(enumerate(candidates))):
        gradients = [each[index] for each in by_score]
        tap = nodes[node]
        if any(gradient is None or not _without_prefix(gradient, tap).any() for gradient in gradients):
            continue
        size = backbone.spec.input.size
        evidence = [_evidence_map(values[node].detach(), gradient, tap, size) for gradient in gradients]
        if all(map_ is not None for map_ in evidence):
            return GradientMaps([map_ for map_ in evidence if map_ is not None], node, tap.layout == "LC")
    return None


def _scores(taps: Mapping[str, TapSpec], rows: Mapping[str, Tensor], weights: np.ndarray) -> list[Tensor]:
    scores = [torch.zeros((), dtype=torch.float64) for _ in weights]
    start = 0
    for name, spec in taps.items():
        stop = start + (spec.project or len(rows[name]))
        for number, own in enumerate(weights):
            pooled = unproject_weights(np.asarray(own[start:stop], np.float64), spec, len(rows[name]))
            scores[number] = scores[number] + rows[name] @ torch.from_numpy(pooled)
        start = stop
    return scores


def _without_prefix(value: Tensor, tap: Tap) -> Tensor:
    """Return a node's value without its prefix tokens, such as the class token."""
    return value[:, tap.prefix :] if tap.layout == "LC" else value


def _evidence_map(value: Tensor, gradient: Tensor, tap: Tap, size: tuple[int, int]) -> np.ndarray | None:
    if tap.layout == "LC":
        per_token = (value * gradient)[0, tap.prefix :].sum(-1)
        grid = patch_grid(len(per_token), size)
        return None if grid is None else per_token.reshape(grid).double().numpy()
    positions, channels = ((2, 3), 1) if tap.layout == "CHW" else ((1, 2), 3)
    weights = gradient.mean(positions, keepdim=True)
    return (weights * value).sum(channels)[0].relu().double().numpy()
