"""The survey of a network: all its nodes with shape, layout, last operation and cost."""

import contextlib
import zlib
from collections import Counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbones.hooks import (
    FUNCTION,
    INPUT,
    LOGITS,
    PENULTIMATE,
    Functions,
    NoClassifier,
    first_input,
    numbered,
    without_attention_fastpath,
)
from pipeline.backbones.penultimate import (
    average_positions,
    determine_output,
    find_classifier,
    has_weights,
    penultimate_node,
)
from pipeline.backbones.spec import InputPart, Tap

ROWS = 2  # in the batch of the survey

Shape = tuple[int, ...]
Layout = Literal["CHW", "HWC", "LC", "other"]


def survey(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tap]:
    """Return all nodes of a network whose value is a tensor with a row per sample, in the order of computation.

    The network runs twice, on the same first image with another second image: a row that differs depends on its batch.
    Then it runs twice on the meta device, with more images and with larger images: the first axis must grow with the
    number of images, and the axes that grow with the size are height and width.
    """
    channels, height, width = shape
    first, again = _Observer(module), _Observer(module)
    first.run(_images(shape, seed=1), measure=True)
    again.run(_images(shape, seed=2))
    more, larger = _Observer(module), _Observer(module)
    more.run_meta(ROWS + 1, shape)
    larger.run_meta(ROWS + 1, (channels, 2 * height, 2 * width))

    nodes = {
        name: tap.model_copy(update={"mixed": first.digests[name] != again.digests.get(name)})
        for name, tap in first.nodes.items()
        if not more.finished or (name in more.nodes and more.nodes[name].shape == tap.shape)
    }
    nodes.pop(INPUT, None)  # the name stands for the network's input and hides a module of this name
    images = _images(shape, seed=1)
    parts = first.classifier(images) if LOGITS in nodes else {}
    if LOGITS in nodes:
        digests = [[run.input_digests[name] for name in parts] or run.digests[LOGITS] for run in (first, again)]
        tap = penultimate_node(module, parts, inputs=first.inputs, output=first.nodes[LOGITS])
        update = {"mixed": digests[0] != digests[1], "revision": int(list(parts) != first.last_layer(images))}
        nodes[PENULTIMATE] = tap.model_copy(update=update)
    width_of_head = first.inputs[next(iter(parts))].shape[-1:] if parts else ()
    taps = {INPUT: Tap(shape=shape, layout="CHW", kind="input"), **_add_layouts(nodes, larger, module, width_of_head)}
    if LOGITS in taps:
        taps[PENULTIMATE] = average_positions(taps[PENULTIMATE], parts)
    # `penultimate` is listed last but for `logits`.
    order = [name for name in taps if name not in (PENULTIMATE, LOGITS)]
    return {name: taps[name] for name in [*order, PENULTIMATE, LOGITS] if name in taps}


def survey_shapes(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tap]:
    """Return the nodes of a network with shapes and layouts, without computing values: `module` may be on meta.

    Empty if the network cannot run on the meta device. `penultimate` is omitted, since only values show what it is.
    """
    channels, height, width = shape
    run, larger = _Observer(module), _Observer(module)
    run.run_meta(ROWS, shape)
    larger.run_meta(ROWS + 1, (channels, 2 * height, 2 * width))
    if not run.finished:
        return {}
    run.nodes.pop(INPUT, None)
    return {INPUT: Tap(shape=shape, layout="CHW", kind="input"), **_add_layouts(run.nodes, larger, module, ())}


def _images(shape: Shape, *, seed: int) -> Tensor:
    """Return random images, of which the first is always the same."""
    same = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([same, torch.randn(ROWS - 1, *shape, generator=torch.Generator().manual_seed(seed))])


class _Observer:
    """Records the nodes and the inputs of modules during a forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.finished = False  # whether the forward pass completed
        self.calls: Counter[str] = Counter()
        self.nodes: dict[str, Tap] = {}
        self.inputs: dict[str, Tap] = {}
        self.by_name: set[str] = set()  # modules that got their input by keyword
        self.digests: dict[str, int] = {}  # of the first row
        self.input_digests: dict[str, int] = {}

    def run_meta(self, rows: int, shape: Shape) -> None:
        """Run on the meta device, with shapes only. If the network fails there, the nodes before are still recorded."""
        empty = {
            f"{name}.{key}" if name else key: tensor.to("meta")
            for name, part in self.module.named_modules()
            for key, tensor in (
                *part.named_parameters(recurse=False, remove_duplicate=False),
                *part.named_buffers(recurse=False),
            )
        }
        errors = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
        with contextlib.suppress(*errors):
            self.run(torch.empty(rows, *shape, device="meta"), state=empty)

    def run(self, images: Tensor, *, measure: bool = False, state: dict[str, Tensor] | None = None) -> None:
        """Run images and record nodes, also those before a failure. `measure`: record operations and costs (slow)."""
        flops, last, rows = FlopCounterMode(display=False), _LastOperation(), len(images)  # type: ignore[no-untyped-call]

        def record(into: dict[str, Tap], digests: dict[str, int], name: str, value: Any, **more: Any) -> None:
            if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == rows:
                cost = flops.get_total_flops() // (2 * rows) if measure else 0
                into[name] = Tap(shape=tuple(value.shape[1:]), operation=last.name, multiply_adds=cost, **more)
                digests[name] = _digest(value) if value.device.type != "meta" else 0

        def function(name: str, value: Any) -> None:
            record(self.nodes, self.digests, name, value, kind=FUNCTION)

        functions = Functions(self.module, function)

        def before(name: str) -> Any:
            def keep(_name: str, value: Any) -> None:
                record(self.inputs, self.input_digests, name, value, kind=PENULTIMATE, input_of=name)

            def hook(_part: nn.Module, args: Any, kwargs: Any) -> None:
                self.by_name.update(() if args else (name,))
                functions.hide(keep)(name, first_input(args, kwargs))

            return hook

        def after(name: str) -> Any:
            def hook(part: nn.Module, _args: Any, output: Any) -> None:
                call = self.calls[name]
                self.calls[name] += 1

                def keep(node: str, value: Any) -> None:
                    record(self.nodes, self.digests, node, value, kind=type(part).__name__, call=call)

                functions.hide(keep)(numbered(name, call) if name else LOGITS, output)

            return hook

        with contextlib.ExitStack() as stack:
            for name, part in self.module.named_modules():
                stack.callback(part.register_forward_pre_hook(before(name), with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(after(name)).remove)
            for context in (
                torch.no_grad(),
                without_attention_fastpath(),
                *((flops, last) if measure else ()),
                functions,
            ):
                stack.enter_context(context)
            # `state` has all tied weights, but a module with two names only once: with tie_weights, torch would not
            # restore its weights.
            torch.func.functional_call(self.module, state or {}, (images,), tie_weights=False)
        self.finished = True

    def classifier(self, images: Tensor) -> dict[str, InputPart]:
        """Return the modules of the classifier, each with its part of the joined input vector."""
        parts = dict(self.module.named_modules())
        ran = [name for name in self.nodes if name in parts and name]
        once = [name for name in ran if self.calls[name] == 1]
        return find_classifier(self.module, images, ran=ran, once=once, inputs=self.inputs)

    def last_layer(self, images: Tensor) -> list[str]:
        """Return the classifier by the rule of revision 0, which old feature addresses refer to: a layer or none.

        The rule: the last layer with weights, if it is linear or a convolution and got a positional argument.
        """
        parts = dict(self.module.named_modules())
        ran = [name for name in self.nodes if name and name in parts]
        weighted = [name for name in ran if has_weights(parts[name]) or isinstance(parts[name], NoClassifier)]
        last = weighted[-1:]
        usable = last and isinstance(parts[last[0]], nn.Linear | nn.Conv2d) and self.calls[last[0]] == 1
        if not usable or last[0] not in self.inputs or last[0] in self.by_name:
            return []
        return last if determine_output(self.module, last, images) else []


def _digest(value: Tensor) -> int:
    """Return a checksum of the first row. NumPy computes it, since operations of torch would be recorded."""
    plain = value.detach()
    if plain.is_floating_point() and plain.itemsize < 4:
        plain = plain.float()  # NumPy has no bfloat16
    return zlib.crc32(np.ascontiguousarray(plain.numpy()[0]).data)


class _LastOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the last operation that computes values: views and copies do not count."""

    name = ""
    SILENT = ("clone", "copy", "detach", "empty", "zeros", "to_copy", "unsafe_view", "as_strided")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].strip("_")
        if not func.is_view and name not in self.SILENT:
            self.name = name
        return func(*args, **(kwargs or {}))


def _add_layouts(nodes: dict[str, Tap], larger: _Observer, module: nn.Module, width: Shape) -> dict[str, Tap]:
    """Return the nodes with their layouts and, for tokens, the number of prefix tokens."""
    inputs = {}
    if PENULTIMATE in nodes:
        part = nodes[PENULTIMATE].input_of
        inputs[PENULTIMATE] = larger.nodes.get(LOGITS) if part is None else larger.inputs.get(part)
    layouts: dict[str, Layout | None] = {}
    for name, tap in nodes.items():
        enlarged = inputs.get(name, larger.nodes.get(name))
        layouts[name] = _layout(tap.shape, enlarged.shape if enlarged else tap.shape)
    # If a network takes a single image size, tokens are recognised by the width of the classifier's input.
    lengths = [
        tap.shape[0]
        for name, tap in nodes.items()
        if layouts[name] == "LC" or (layouts[name] is None and len(tap.shape) == 2 and tap.shape[1:] == width)
    ]
    length, prefix = max(lengths, default=0), _prefix_tokens(module)
    class_token = any(getattr(module, name, None) is not None for name in ("class_token", "cls_token"))
    result = {}
    for name, tap in nodes.items():
        layout = layouts[name]
        if layout is None and len(tap.shape) == 2:
            layout = "LC" if length and tap.shape[0] in (length, length - prefix) else "other"
        has_all_tokens = layout == "LC" and tap.shape[0] == length
        update = {
            "layout": layout or "CHW",
            "prefix": prefix if has_all_tokens else 0,
            "class_token": has_all_tokens and class_token and prefix > 0,
        }
        result[name] = tap.model_copy(update=update)
    return result


def _prefix_tokens(module: nn.Module) -> int:
    """Return the number of tokens before the patches: timm states it; in torchvision it is the class token, if any."""
    return int(getattr(module, "num_prefix_tokens", 1 if hasattr(module, "class_token") else 0))


def _layout(row: Shape, larger: Shape) -> Layout | None:
    """Return the layout from the axes that grow with the image; None for tokens and maps of a fixed size."""
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
