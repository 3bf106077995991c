"""The map of a tap for one image: its values at each position, before the pooling that makes the row."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.backbones.hooks import INPUT, observe, without_attention_fastpath
from pipeline.backbones.pooling import pool
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import Tap, TapSpec

LAYOUTS = {(2, 3): "CHW", (1, 2): "HWC", (1,): "LC"}
"""Layouts by the axes of a batch over which the values were averaged."""

BEFORE = 8
"""Nodes before a vector that are tried as the map whose mean it is."""

CLOSE = 1e-4
"""By which the mean of a map may differ from the vector, relative to the largest value of the vector."""


@dataclass(frozen=True)
class TapMap:
    """The values of a node for one image (1, ...), how they are laid out, and how they are pooled to the row."""

    value: Tensor
    tap: Tap
    pool: str
    node: str

    def row(self, value: Tensor) -> Tensor:
        """Pool a value of this node to one flat row; differentiable."""
        if self.tap.layout == "LC" and self.pool == "mean":
            return value[:, self.tap.prefix :].mean(1).flatten()
        return pool(value, self.pool, self.tap).flatten()


def read_tap_maps(backbone: Backbone, taps: Mapping[str, TapSpec], images: Tensor) -> dict[str, TapMap | None]:
    """Run one image (1, c, h, w), normalised, and return the map of each tap; None of a tap that is no mean of a map.

    Of a vector, such as the input of a classifier, the map is that of a node before it whose mean over positions is the
    vector for this image. taps: nodes, no aliases.
    """
    nodes = backbone.spec.taps
    wanted: dict[str, Tap] = {}
    for spec in taps.values():
        tap = nodes[spec.node]
        wanted[spec.node] = tap
        if math.prod(tap.shape) == _channels(tap) and not tap.averaged and not tap.parts:
            wanted |= _maps_before(spec.node, tap, nodes)
        elif tap.averaged:
            layout: Any = LAYOUTS.get(tap.averaged, "other")
            wanted[spec.node] = tap.model_copy(update={"averaged": (), "layout": layout})
    values: dict[str, Tensor] = {}

    def keep(node: str, value: Any) -> None:
        values[node] = value.detach().clone().float()

    with (
        torch.no_grad(),
        without_attention_fastpath(),
        observe(backbone.module, keep, {k: v for k, v in wanted.items() if k != INPUT}),
    ):
        backbone.module(images)
    values[INPUT] = images.detach().clone()
    return {name: _map_of(spec, nodes[spec.node], wanted, values) for name, spec in taps.items()}


def grid_of(positions: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of so many patches of an image of a size (height, width); None if they do not fit."""
    rows = math.sqrt(positions * size[0] / size[1])
    grid = round(rows), round(positions / rows) if rows else 0
    return grid if grid[0] * grid[1] == positions else None


def _map_of(spec: TapSpec, tap: Tap, wanted: Mapping[str, Tap], values: Mapping[str, Tensor]) -> TapMap | None:
    value = values[spec.node]
    if tap.averaged:
        whole = wanted[spec.node]
        usable = whole.layout != "other" and spec.pool in ("none", "flatten", "mean")
        return TapMap(value, whole, "mean", spec.node) if usable else None
    if has_positions(tap):
        pooling = None if spec.pool == "cls" else spec.pool
        return None if pooling is None else TapMap(value, tap, pooling, spec.node)
    if tap.parts or math.prod(tap.shape) != _channels(tap) or spec.pool not in ("none", "flatten", "mean", "max"):
        return None
    row = value.flatten()
    for node in reversed(_maps_before(spec.node, tap, wanted)):
        one = wanted[node]
        for prefix in {one.prefix, 0}:
            found = TapMap(values[node], one.model_copy(update={"prefix": prefix}), "mean", node)
            if (found.row(found.value) - row).abs().max() <= CLOSE * max(1e-6, float(row.abs().max())):
                return found
    return None


def has_positions(tap: Tap) -> bool:
    """Return whether a node has values at several positions of the image."""
    if tap.layout == "LC":
        return tap.shape[0] - tap.prefix > 1
    return tap.layout in ("CHW", "HWC") and math.prod(tap.shape) > _channels(tap)


def _channels(tap: Tap) -> int:
    return tap.shape[0] if tap.layout == "CHW" or len(tap.shape) == 1 else tap.shape[-1]


def _maps_before(node: str, tap: Tap, nodes: Mapping[str, Tap]) -> dict[str, Tap]:
    """Return the last nodes with positions and as many channels as the vector has values."""
    fitting = {
        name: one
        for name, one in nodes.items()
        if name != node and not one.averaged and has_positions(one) and _channels(one) == _channels(tap)
    }
    return dict(list(fitting.items())[-BEFORE:])
