"""The survey of a network: all its nodes, with the shape of a row, its layout, what made it and what it costs."""

import contextlib
import zlib
from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbones.spec import Tap
from pipeline.backbones.taps import FUNCTION, INPUT, LOGITS, PENULTIMATE, Functions, NoClassifier, numbered, one_path

ROWS = 2  # in the batch that is sent through

Shape = tuple[int, ...]
Layout = Literal["CHW", "HWC", "LC", "other"]


def survey(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tap]:
    """All nodes of a network that give one tensor with a row a sample, in the order in which they are made.

    The network runs twice, with the same first image beside another: a first row that differs depends on its batch.
    Then it runs twice without computing, on one image more and on images of twice the size: the first axis must grow
    with the one, and the axes that grow with the other are height and width.
    """
    channels, height, width = shape
    first, again = _Observed(module), _Observed(module)
    first.run(_images(shape, seed=1), measure=True)
    again.run(_images(shape, seed=2))
    more, larger = _Observed(module), _Observed(module)
    more.imagine(ROWS + 1, shape)
    larger.imagine(ROWS + 1, (channels, 2 * height, 2 * width))

    found = {
        name: tap.model_copy(update={"mixed": first.digests[name] != again.digests.get(name)})
        for name, tap in first.nodes.items()
        if not more.whole or (name in more.nodes and more.nodes[name].shape == tap.shape)
    }
    found.pop(INPUT, None)  # a module of this name is hidden by what the name stands for
    head = first.head()
    if head and LOGITS in found and _decides(module, head, _images(shape, seed=1)):
        mixed = first.input_digests[head] != again.input_digests[head]
        found[PENULTIMATE] = first.inputs[head].model_copy(update={"mixed": mixed})
    elif LOGITS in found:  # no single layer gives the output: it is the last vector there is
        head = None
        found[PENULTIMATE] = found[LOGITS].model_copy(update={"kind": PENULTIMATE})
    width_of_head = first.inputs[head].shape[-1:] if head else ()
    taps = {INPUT: Tap(shape=shape, layout="CHW", kind="input"), **_laid_out(found, larger, module, width_of_head)}
    # The penultimate layer comes where it belongs: before what is made of it.
    order = [name for name in taps if name not in (PENULTIMATE, LOGITS)]
    return {name: taps[name] for name in [*order, PENULTIMATE, LOGITS] if name in taps}


def survey_shapes(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tap]:
    """Return the nodes of a network with their shapes and layouts, without computing: `module` may have no values.

    Empty where the network cannot run so. `penultimate` is left out, since values decide what it is.
    """
    channels, height, width = shape
    found, larger = _Observed(module), _Observed(module)
    found.imagine(ROWS, shape)
    larger.imagine(ROWS + 1, (channels, 2 * height, 2 * width))
    if not found.whole:
        return {}
    found.nodes.pop(INPUT, None)
    return {INPUT: Tap(shape=shape, layout="CHW", kind="input"), **_laid_out(found.nodes, larger, module, ())}


def _images(shape: Shape, *, seed: int) -> Tensor:
    """Random images, the first of them always the same."""
    same = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([same, torch.randn(ROWS - 1, *shape, generator=torch.Generator().manual_seed(seed))])


def _decides(module: nn.Module, head: str, images: Tensor) -> bool:
    """Whether the logits follow from what a layer gets; in a network of two heads they do not."""
    part, kept = module.get_submodule(head), list[Tensor]()
    with torch.no_grad(), one_path():
        with part.register_forward_pre_hook(lambda _part, args: kept.append(args[0].clone())):
            logits = module(images)
        with part.register_forward_pre_hook(lambda _part, args: (kept[0], *args[1:])):
            return torch.equal(module(images.flip(0, 2)), logits)


class _Observed:
    """Which nodes were made in a forward pass, and what the modules got as their inputs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.whole = False  # whether the pass came to its end
        self.calls: Counter[str] = Counter()
        self.nodes: dict[str, Tap] = {}
        self.inputs: dict[str, Tap] = {}
        self.digests: dict[str, int] = {}  # of the first row
        self.input_digests: dict[str, int] = {}

    def imagine(self, rows: int, shape: Shape) -> None:
        """Run shapes without values. What a network did before it refused them tells something all the same."""
        state = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        empty = {name: tensor.to("meta") for name, tensor in state.items()}
        refusals = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
        with contextlib.suppress(*refusals):
            self.run(torch.empty(rows, *shape, device="meta"), state=empty)

    def run(self, images: Tensor, *, measure: bool = False, state: dict[str, Tensor] | None = None) -> None:
        """Run images; what was seen stays, even if the network fails on the way. To measure takes most of the time."""
        flops, last, rows = FlopCounterMode(display=False), _LastOperation(), len(images)  # type: ignore[no-untyped-call]

        def seen(into: dict[str, Tap], digests: dict[str, int], name: str, value: Any, **more: Any) -> None:
            if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == rows:
                cost = flops.get_total_flops() // (2 * rows) if measure else 0
                into[name] = Tap(shape=tuple(value.shape[1:]), operation=last.name, multiply_adds=cost, **more)
                digests[name] = _digest(value[0]) if value.device.type != "meta" else 0

        def function(name: str, value: Any) -> None:
            seen(self.nodes, self.digests, name, value, kind=FUNCTION)

        functions = Functions(self.module, function)

        def before(name: str) -> Any:
            def keep(_name: str, value: Any) -> None:
                seen(self.inputs, self.input_digests, name, value, kind=PENULTIMATE, input_of=name)

            return lambda _part, args: functions.aside(keep)(name, args[0] if args else None)

        def after(name: str) -> Any:
            def hook(part: nn.Module, _args: Any, output: Any) -> None:
                call = self.calls[name]
                self.calls[name] += 1

                def keep(node: str, value: Any) -> None:
                    seen(self.nodes, self.digests, node, value, kind=type(part).__name__, call=call)

                functions.aside(keep)(numbered(name, call) if name else LOGITS, output)

            return hook

        with contextlib.ExitStack() as stack:
            for name, part in self.module.named_modules():
                stack.callback(part.register_forward_pre_hook(before(name)).remove)
                stack.callback(part.register_forward_hook(after(name)).remove)
            for context in (torch.no_grad(), one_path(), *((flops, last) if measure else ()), functions):
                stack.enter_context(context)
            torch.func.functional_call(self.module, state or {}, (images,))
        self.whole = True

    def head(self) -> str | None:
        """Return the name of the last layer with weights, if it is a linear one or a convolution that runs once.

        A module with a single number, such as a temperature, is no layer.
        """
        parts = dict(self.module.named_modules())
        weighted = {
            name
            for name, part in parts.items()
            if name
            and (isinstance(part, NoClassifier) or any(one.numel() > 1 for one in part.parameters(recurse=False)))
        }
        ran = [name for name in self.nodes if name in weighted]
        if not ran or not isinstance(parts[ran[-1]], nn.Linear | nn.Conv2d) or self.calls[ran[-1]] != 1:
            return None
        return ran[-1] if ran[-1] in self.inputs else None


def _digest(row: Tensor) -> int:
    return zlib.crc32(row.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _LastOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers which operation ran last that makes values: views and copies do not."""

    name = ""
    SILENT = ("clone", "copy", "detach", "empty", "zeros", "to_copy", "unsafe_view", "as_strided")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].strip("_")
        if not func.is_view and name not in self.SILENT:
            self.name = name
        return func(*args, **(kwargs or {}))


def _laid_out(nodes: dict[str, Tap], larger: _Observed, module: nn.Module, width: Shape) -> dict[str, Tap]:
    """The nodes with their layouts, and where their tokens are, how many stand before those of the patches."""
    inputs = {}
    if PENULTIMATE in nodes:
        part = nodes[PENULTIMATE].input_of
        inputs[PENULTIMATE] = larger.nodes.get(LOGITS) if part is None else larger.inputs.get(part)
    layouts: dict[str, Layout | None] = {}
    for name, tap in nodes.items():
        seen = inputs.get(name, larger.nodes.get(name))
        layouts[name] = _layout(tap.shape, seen.shape if seen else tap.shape)
    # Where a network takes one size only, tokens are as wide as what the last layer gets.
    lengths = [
        tap.shape[0]
        for name, tap in nodes.items()
        if layouts[name] == "LC" or (layouts[name] is None and len(tap.shape) == 2 and tap.shape[1:] == width)
    ]
    length, prefix = max(lengths, default=0), _prefix_tokens(module)
    class_token = any(getattr(module, name, None) is not None for name in ("class_token", "cls_token"))
    found = {}
    for name, tap in nodes.items():
        layout = layouts[name]
        if layout is None and len(tap.shape) == 2:
            layout = "LC" if length and tap.shape[0] in (length, length - prefix) else "other"
        whole = layout == "LC" and tap.shape[0] == length
        update = {
            "layout": layout or "CHW",
            "prefix": prefix if whole else 0,
            "class_token": whole and class_token and prefix > 0,
        }
        found[name] = tap.model_copy(update=update)
    return found


def _prefix_tokens(module: nn.Module) -> int:
    """How many tokens stand before those of the patches: timm says it, torchvision's networks have one or none."""
    return int(getattr(module, "num_prefix_tokens", 1 if hasattr(module, "class_token") else 0))


def _layout(row: Shape, larger: Shape) -> Layout | None:
    """The layout by the axes that grow with the image; None for tokens and maps of a fixed size."""
    if len(row) not in (2, 3) or len(row) != len(larger):
        return "other"
    grown = tuple(after > before for before, after in zip(row, larger, strict=True))
    if not any(grown):
        # Maps of a fixed size, such as those after adaptive pooling, are square.
        return None if len(row) == 2 or row[1] == row[2] else "other"
    known: dict[tuple[bool, ...], Layout] = {
        (True, False): "LC",
        (True, True, False): "HWC",
        (False, True, True): "CHW",
    }
    return known.get(grown, "other")
