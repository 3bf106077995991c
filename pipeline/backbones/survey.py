"""The survey of a network: all its nodes, with the shape of a row, its layout, what made it and what it costs."""

import contextlib
from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbones.spec import Tap
from pipeline.backbones.taps import FUNCTION, INPUT, LOGITS, PENULTIMATE, Functions, numbered

ROWS = 2  # in the batch that is sent through


def survey(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tap]:
    """All nodes of a network that give one tensor, in the order in which they are made.

    The network runs a second time on an image of twice the size: the axes that grow are height and width.
    """
    channels, height, width = shape
    rows, larger = _Observed(), _Observed()
    rows.run(module, shape)
    # A network of one input size refuses; what ran before it did tells its layout all the same.
    with contextlib.suppress(AssertionError, RuntimeError, ValueError):
        larger.run(module, (channels, 2 * height, 2 * width))
    head = _head(module, rows)
    width_of_head = rows.inputs[head].shape[-1:] if head else ()
    prefix = _prefix_tokens(module)
    taps = {INPUT: Tap(shape=shape, layout="CHW", kind="input")}
    for name, seen in rows.nodes.items():
        layout = _layout(seen.shape, larger.nodes.get(name, seen).shape, width_of_head)
        taps[name] = seen.model_copy(update={"layout": layout, "prefix": prefix if layout == "LC" else 0})
    if head:
        taps[PENULTIMATE] = rows.inputs[head]
    # The penultimate layer comes where it belongs: before what is made of it.
    order = [name for name in taps if name not in (PENULTIMATE, LOGITS)]
    return {name: taps[name] for name in [*order, PENULTIMATE, LOGITS] if name in taps}


class _Observed:
    """Which nodes were made in a forward pass, and what the modules got as their inputs."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.nodes: dict[str, Tap] = {}
        self.inputs: dict[str, Tap] = {}

    def run(self, module: nn.Module, shape: tuple[int, int, int]) -> None:
        """Run empty images; what was seen stays, even if the network fails on the way."""
        flops, last = FlopCounterMode(display=False), _LastOperation()  # type: ignore[no-untyped-call]

        def seen(into: dict[str, Tap], name: str, value: Any, **more: Any) -> None:
            if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == ROWS:
                cost = flops.get_total_flops() // (2 * ROWS)
                into[name] = Tap(shape=tuple(value.shape[1:]), operation=last.name, multiply_adds=cost, **more)

        def before(name: str) -> Any:
            return lambda _part, args: seen(
                self.inputs, name, args[0] if args else None, kind=PENULTIMATE, input_of=name
            )

        def after(name: str) -> Any:
            def hook(part: nn.Module, _args: Any, output: Any) -> None:
                call = self.calls[name]
                self.calls[name] += 1
                seen(self.nodes, numbered(name, call), output, kind=type(part).__name__, call=call)

            return hook

        def function(name: str, value: Any) -> None:
            seen(self.nodes, name, value, kind=FUNCTION)

        with contextlib.ExitStack() as stack:
            for name, part in module.named_modules():
                stack.callback(part.register_forward_pre_hook(before(name)).remove)
                stack.callback(part.register_forward_hook(after(name or LOGITS)).remove)
            stack.enter_context(torch.no_grad())
            stack.enter_context(flops)
            stack.enter_context(last)
            stack.enter_context(Functions(module, function))
            module(torch.zeros(ROWS, *shape))


class _LastOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers which operation ran last that makes values: views and copies do not."""

    name = ""
    SILENT = ("clone", "copy", "detach", "empty", "zeros", "to_copy", "unsafe_view", "as_strided")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].strip("_")
        if not func.is_view and name not in self.SILENT:
            self.name = name
        return func(*args, **(kwargs or {}))


def _head(module: nn.Module, rows: _Observed) -> str | None:
    """The name of the last layer with weights, if it is a linear one or a convolution that runs once."""
    weighted = {
        name for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False)) and name
    }
    ran = [name for name in rows.nodes if name in weighted]
    last = dict(module.named_modules())[ran[-1]] if ran else None
    if not isinstance(last, nn.Linear | nn.Conv2d) or rows.calls[ran[-1]] != 1 or ran[-1] not in rows.inputs:
        return None
    return ran[-1]


def _prefix_tokens(module: nn.Module) -> int:
    """How many tokens stand before those of the patches: timm says it, torchvision's networks have one or none."""
    return int(getattr(module, "num_prefix_tokens", 1 if hasattr(module, "class_token") else 0))


def _layout(
    row: tuple[int, ...], larger: tuple[int, ...], width_of_head: tuple[int, ...]
) -> Literal["CHW", "HWC", "LC", "other"]:
    if len(row) not in (2, 3):
        return "other"
    grown = [after > before for before, after in zip(row, larger, strict=True)]
    if len(row) == 2:
        # Where a network takes one size only, tokens are as wide as what the last layer gets.
        return "LC" if grown == [True, False] or (not any(grown) and row[1:] == width_of_head) else "other"
    if grown == [True, True, False]:
        return "HWC"
    # Maps of a fixed size, such as those after adaptive pooling, do not grow.
    if grown == [False, True, True] or (not any(grown) and row[1] == row[2]):
        return "CHW"
    return "other"
