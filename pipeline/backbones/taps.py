"""Taps: the outputs of named modules, copied at the moment they are made.

Each tap is pooled or cloned inside the hook, before the network can overwrite it in place, so a value never depends on
what else is asked for. The forward pass stops after the last module that is needed.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.backbones.spec import GRID, Tap, TapSpec
from pipeline.errors import BackboneError, unknown

INPUT = "input"
"""The node that is the network's own input, after normalisation: the raw pixels."""

LOGITS = "logits"
"""The node that is the network's own output."""


class _Stop(Exception):  # noqa: N818 - it ends a forward pass, it is no error
    """Raised in the last hook that is needed."""


def collect(
    module: nn.Module, images: Tensor, specs: Mapping[str, TapSpec], taps: Mapping[str, Tap]
) -> dict[str, Tensor]:
    """Run `images` (n, c, h, w) forward and return each tap by its name, pooled, float32, (n, ...)."""
    wanted: dict[str, list[str]] = {}
    for name, spec in specs.items():
        wanted.setdefault(spec.node, []).append(name)
    found: dict[str, Tensor] = {}

    def keep(node: str, value: Tensor) -> None:
        for name in wanted[node]:
            found[name] = pool(value.detach(), specs[name].pool, taps[node])

    if INPUT in wanted:
        keep(INPUT, images)
    if len(found) == len(specs):
        return found
    modules = {**dict(module.named_modules()), LOGITS: module}

    def hook(node: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Tensor) -> None:
            keep(node, output)
            if len(found) == len(specs):
                raise _Stop

        return after

    handles = [modules[node].register_forward_hook(hook(node)) for node in wanted if node != INPUT]
    try:
        module(images)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def pool(value: Tensor, pooling: str, tap: Tap) -> Tensor:
    """Pool one tap's output (n, ...); the result never shares memory with `value`."""
    if pooling == "none":
        return value.clone(memory_format=torch.contiguous_format)
    if pooling == "flatten":
        return value.flatten(1).clone()
    maps = value.permute(0, 3, 1, 2) if tap.layout == "HWC" else value
    if pooling == "mean":
        return maps.mean(dim=(2, 3))
    if pooling == "max":
        return maps.amax(dim=(2, 3))
    grid = GRID.fullmatch(pooling)
    assert grid is not None, "TapSpec checked the pooling"
    return nn.functional.adaptive_avg_pool2d(maps, (int(grid[1]), int(grid[2]))).flatten(1)


def survey(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tap]:
    """All taps of a network with the shape of one row: modules that run exactly once and return one tensor.

    The network runs a second time on an image of twice the size: the axes that grow are height and width.
    """
    channels, height, width = shape
    rows, larger = _Observed(), _Observed()
    rows.run(module, shape)
    # A network of one input size refuses; what ran before it did tells its layout all the same.
    with contextlib.suppress(AssertionError, RuntimeError, ValueError):
        larger.run(module, (channels, 2 * height, 2 * width))
    taps = {INPUT: Tap(shape=shape, layout="CHW")}
    for name, row in rows.shapes.items():
        if rows.calls[name] == 1:
            taps[name] = Tap(shape=row, layout=_layout(row, larger.shapes.get(name, row)))
    return taps


class _Observed:
    """Which modules ran in a forward pass, how often, and the shape of one row of what they returned."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        """Run a batch of two empty images; what was seen stays, even if the network fails on the way."""

        def hook(name: str) -> Any:
            def after(_module: nn.Module, _args: Any, output: Any) -> None:
                self.calls[name] += 1
                if isinstance(output, Tensor) and output.ndim >= 2 and output.shape[0] == 2:
                    self.shapes[name] = tuple(output.shape[1:])

            return after

        handles = [part.register_forward_hook(hook(name or LOGITS)) for name, part in module.named_modules()]
        try:
            with torch.inference_mode():
                module(torch.zeros(2, *shape))
        finally:
            for handle in handles:
                handle.remove()


def _layout(row: tuple[int, ...], larger: tuple[int, ...]) -> Literal["CHW", "HWC", "other"]:
    if len(row) != 3:
        return "other"
    grown = [after > before for before, after in zip(row, larger, strict=True)]
    if grown == [True, True, False]:
        return "HWC"
    # Maps of a fixed size, such as those after adaptive pooling, do not grow.
    if grown == [False, True, True] or (not any(grown) and row[1] == row[2]):
        return "CHW"
    return "other"


def check(specs: Mapping[str, TapSpec], taps: Mapping[str, Tap], *, where: str) -> None:
    """Raise BackboneError if a tap's node does not exist."""
    for name, spec in specs.items():
        if spec.node not in taps:
            raise BackboneError(f"{where}, tap {name!r}: {unknown('node', spec.node, taps)}")
