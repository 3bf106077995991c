"""Taps: the outputs of named modules, copied at the moment they are made.

Each tap is pooled or cloned inside the hook, before the network can overwrite it in place, so a value never depends on
what else is asked for. The forward pass stops after the last module that is needed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

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


def survey(module: nn.Module, shape: tuple[int, int, int], *, channels_last: Iterable[str] = ()) -> dict[str, Tap]:
    """All taps of a network with the shape of one row: modules that run exactly once and return one tensor.

    `channels_last` names top-level modules whose maps are (height, width, channels).
    """
    calls: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    last = tuple(channels_last)

    def hook(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name] += 1
            if isinstance(output, Tensor) and output.ndim >= 2 and output.shape[0] == 2:
                shapes[name] = tuple(output.shape[1:])

        return after

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name]
    try:
        with torch.inference_mode():
            output = module(torch.zeros(2, *shape))
    finally:
        for handle in handles:
            handle.remove()
    taps = {INPUT: Tap(shape=shape, layout="CHW")}
    for name, row in shapes.items():
        if calls[name] == 1:
            taps[name] = Tap(shape=row, layout=_layout(row, name.split(".")[0] in last))
    if isinstance(output, Tensor):
        taps[LOGITS] = Tap(shape=tuple(output.shape[1:]))
    return taps


def _layout(shape: tuple[int, ...], channels_last: bool) -> Any:
    if len(shape) != 3:
        return "other"
    return "HWC" if channels_last else "CHW"


def check(specs: Mapping[str, TapSpec], taps: Mapping[str, Tap], *, where: str) -> None:
    """Raise BackboneError if a tap's node does not exist."""
    for name, spec in specs.items():
        if spec.node not in taps:
            raise BackboneError(f"{where}, tap {name!r}: {unknown('node', spec.node, taps)}")
