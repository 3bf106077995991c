"""The map of a tap for an image: its values at each position, before the pooling."""

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
"""The layout of a map by the axes of a batch over which it is averaged."""

BEFORE = 8
"""How many nodes before a vector are tried as the map whose mean is the vector."""

CLOSE = 1e-4
"""The largest accepted difference between a map's mean and the vector, relative to the vector's largest value."""


@dataclass(frozen=True)
class TapMap:
    """The values of a node for an image, (1, ...), with their layout (`tap`) and the pooling that makes the row."""

    value: Tensor
    tap: Tap
    pool: str
    node: str

    def row(self, value: Tensor) -> Tensor:
        """Pool a value of this node to a flat row; differentiable."""
        if self.tap.layout == "LC" and self.pool == "mean":
            return value[:, self.tap.prefix :].mean(1).flatten()
        return pool(value, self.pool, self.tap).flatten()


def read_tap_maps(backbone: Backbone, taps: Mapping[str, TapSpec], images: Tensor) -> dict[str, TapMap | None]:
    """Run an image through the network and return the map of each tap; None for a tap that is not pooled from a map.

    taps: taps with nodes, not aliases. images: a single normalised image, (1, c, h, w).

    For a vector, such as the input of a classifier, the map is that of an earlier node whose mean over positions equals
    the vector for this image.
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

    def record(node: str, value: Any) -> None:
        values[node] = value.detach().clone().float()

    with (
        torch.no_grad(),
        without_attention_fastpath(),
        observe(backbone.module, record, {k: v for k, v in wanted.items() if k != INPUT}),
    ):
        backbone.module(images)
    values[INPUT] = images.detach().clone()
    return {name: _map_of(spec, nodes[spec.node], wanted, values) for name, spec in taps.items()}


def patch_grid(positions: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the rows and columns of a number of patches of an image; None if they form no grid.

    size: height and width of the image.
    """
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
        earlier = wanted[node]
        for prefix in {earlier.prefix, 0}:
            candidate = TapMap(values[node], earlier.model_copy(update={"prefix": prefix}), "mean", node)
            if (candidate.row(candidate.value) - row).abs().max() <= CLOSE * max(1e-6, float(row.abs().max())):
                return candidate
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
    candidates = {
        name: other
        for name, other in nodes.items()
        if name != node and not other.averaged and has_positions(other) and _channels(other) == _channels(tap)
    }
    return dict(list(candidates.items())[-BEFORE:])
