"""Evidence through a whole network, by the gradient of a score at the last map that the score depends on.

Maps: Grad-CAM (Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
eq. 1 and 2): the map's channels, each weighted by the mean of its gradient over positions, summed, negative sums set to
0. Tokens: gradient x activation of each patch token, summed over channels.
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
from pipeline.explain.activation_map import weights_of_pooled
from pipeline.explain.tap_maps import grid_of, has_positions

LAST = 24
"""Nodes with positions that are looked at from the end; of a transformer's block there are about ten."""


@dataclass(frozen=True)
class GradientMaps:
    """Evidence for some scores (rows, columns) each, and the node at which it was taken."""

    maps: list[np.ndarray]
    node: str
    tokens: bool


def gradient_maps(
    backbone: Backbone, taps: Mapping[str, TapSpec], images: Tensor, weights: np.ndarray
) -> GradientMaps | None:
    """Return the evidence for scores `weights @ row` of one image (1, c, h, w); None where no map leads to the scores.

    taps: nodes whose rows side by side make the row. weights: (scores, width of the row).
    """
    nodes = backbone.spec.taps
    maps = {name: tap for name, tap in nodes.items() if name != INPUT and tap.kind != FUNCTION and has_positions(tap)}
    maps = dict(list(maps.items())[-LAST:])
    widths = [tap.shape[-1] for tap in maps.values() if tap.layout == "LC"]
    # Not the joined queries, keys and values, whose channels are no features of a patch.
    maps = {name: tap for name, tap in maps.items() if tap.layout != "LC" or tap.shape[-1] == widths[-1]}
    specs = list(taps.values())
    values: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}

    def keep(node: str, value: Any) -> None:
        if node in maps:
            values[node] = value
        for name, spec in taps.items():
            if spec.node == node:
                rows[name] = pool(value.clone(), spec.pool, nodes[node]).flatten().double()

    wanted = {**maps, **{spec.node: nodes[spec.node] for spec in specs if spec.node != INPUT}}
    images = images.clone().requires_grad_()
    with torch.enable_grad(), without_attention_fastpath(), observe(backbone.module, keep, wanted):
        # Not the leaf itself, which no layer may change in place.
        backbone.module(images * 1)
        for name, spec in taps.items():
            if spec.node == INPUT:
                rows[name] = pool(images, spec.pool, nodes[INPUT]).flatten().double()
        scores = _scores(taps, rows, weights)
        wide = [name for name in maps if name in values and values[name].requires_grad]
        found = (
            [
                torch.autograd.grad(one, [values[name] for name in wide], retain_graph=True, allow_unused=True)
                for one in scores
            ]
            if wide
            else []
        )
    for place in reversed(range(len(wide))):
        gradients = [each[place] for each in found]
        tap = nodes[wide[place]]
        if any(one is None or not _of_positions(one, tap).any() for one in gradients):
            continue
        size = backbone.spec.input.size
        drawn = [_map_of(values[wide[place]].detach(), one, tap, size) for one in gradients if one is not None]
        if all(one is not None for one in drawn):
            return GradientMaps([one for one in drawn if one is not None], wide[place], tap.layout == "LC")
    return None


def _scores(taps: Mapping[str, TapSpec], rows: Mapping[str, Tensor], weights: np.ndarray) -> list[Tensor]:
    scores = [torch.zeros((), dtype=torch.float64) for _ in weights]
    start = 0
    for name, spec in taps.items():
        stop = start + (spec.project or len(rows[name]))
        for number, one in enumerate(weights):
            pooled = weights_of_pooled(np.asarray(one[start:stop], np.float64), spec, len(rows[name]))
            scores[number] = scores[number] + rows[name] @ torch.from_numpy(pooled)
        start = stop
    return scores


def _of_positions(value: Tensor, tap: Tap) -> Tensor:
    return value[:, tap.prefix :] if tap.layout == "LC" else value


def _map_of(value: Tensor, gradient: Tensor, tap: Tap, size: tuple[int, int]) -> np.ndarray | None:
    if tap.layout == "LC":
        per_token = (value * gradient)[0, tap.prefix :].sum(-1)
        grid = grid_of(len(per_token), size)
        return None if grid is None else per_token.reshape(grid).double().numpy()
    positions, channels = ((2, 3), 1) if tap.layout == "CHW" else ((1, 2), 3)
    weights = gradient.mean(positions, keepdim=True)
    return (weights * value).sum(channels)[0].relu().double().numpy()
