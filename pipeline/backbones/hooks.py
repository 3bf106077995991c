"""Taps: the values of any node of a network, copied when the network computes them.

A node is one of

    input            the network's input after normalisation
    logits           the network's output
    penultimate      one vector per sample: the input of the classifier, averaged over positions if it is a map or
                     tokens. For parallel classifiers: their common input, or their inputs concatenated if these
                     differ. Without a classifier: the network's output, averaged likewise. penultimate.py defines
                     what the classifier is
    layer1.0.relu    a module, by its name: its output; with _1, _2, … for later calls of the same module
    layer1.0.add     a function called outside of torch's own layers, by the calling module and the function's name,
                     numbered likewise: the node names of torchvision's feature extraction

A tap is pooled or cloned inside the hook, before the network can overwrite it in place, so that its value does not
depend on the other taps. The forward pass stops after the last node that is needed.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.backbones.pooling import pool
from pipeline.backbones.spec import Tap, TapSpec

INPUT, LOGITS, PENULTIMATE = "input", "logits", "penultimate"
APPENDED = "new_classifier"  # name of a classifier that was appended to the output of a network (family `headed`)
ENDS_AT = "ends_at"  # attribute of a network: the module whose output is the network's (family `headed`)
FUNCTION = "function"  # the kind of a node that is a function

# Operators for which Python has several names. A graph has a single one.
OPERATORS = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub", "rsub": "sub",
             "itruediv": "truediv", "rdiv": "truediv"}  # fmt: skip

Observer = Callable[[str, Any], None]
"""Called with each node and its value, in the order in which the network computes them."""


class NoClassifier(nn.Identity):
    """The place of a classifier whose weights are missing (family `headless`).

    maps: whether the classifier was a convolution, so that channels come first.
    """

    def __init__(self, *, maps: bool = False) -> None:
        super().__init__()
        self.maps = maps


class _Stop(Exception):  # noqa: N818 - ends a forward pass; not an error
    """Raised in the last hook that is needed, to end the forward pass."""


def collect(
    module: nn.Module,
    images: Tensor,
    specs: Mapping[str, TapSpec],
    taps: Mapping[str, Tap],
    *,
    early: bool = True,
) -> dict[str, Tensor]:
    """Run `images` (n, c, h, w) through the network and return {tap: pooled values (n, ...)}, before projection.

    specs: taps whose nodes are names in `taps`, not aliases. early: stop the forward pass after the last node.
    """
    wanted: dict[str, list[str]] = {}
    for name, spec in specs.items():
        wanted.setdefault(spec.node, []).append(name)
    result: dict[str, Tensor] = {}

    def keep(node: str, value: Tensor) -> None:
        for name in wanted[node]:
            result[name] = pool(value.detach(), specs[name].pool, taps[node])
        if early and len(result) == len(specs):
            raise _Stop

    with contextlib.suppress(_Stop):
        if INPUT in wanted:
            keep(INPUT, images)
        with (
            without_attention_fastpath(),
            observe(module, keep, {node: taps[node] for node in wanted if node != INPUT}),
        ):
            module(images)
    return result


@contextlib.contextmanager
def without_attention_fastpath() -> Iterator[None]:
    """Disable the fast path of torch's attention, which rounds differently and which torch takes only without hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def observe(module: nn.Module, observer: Observer, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Call `observer` for the nodes of `taps` when the network computes them.

    Values carry gradients. The observer must clone what it keeps: the network may overwrite a value in place.
    """
    modules = {**dict(module.named_modules()), LOGITS: module, PENULTIMATE: module}
    functions = {node for node, tap in taps.items() if tap.kind == FUNCTION}
    with contextlib.ExitStack() as stack:
        watched = stack.enter_context(Functions(module, observer, only=functions)) if functions else None
        for node, tap in taps.items():
            # An appended classifier takes the averaged value.
            appended = node == PENULTIMATE and tap.input_of is None and APPENDED in modules
            into = observer if appended else _average(observer, tap.averaged)
            into = into if watched is None else watched.hide(into)
            part = APPENDED if appended else tap.input_of
            if part is not None:
                hooks = {part: _input_hook(node, into)}
            elif tap.parts:
                hooks = _join_hooks(node, tap, into)
            else:
                hooks = {}
            for name, hook in hooks.items():
                before = module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(before.remove)
            if not hooks and node not in functions:
                name = node.removesuffix(f"_{tap.call}") if tap.call else node
                stack.callback(modules[name].register_forward_hook(_output_hook(node, tap.call, into)).remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, positional or by keyword; None without arguments."""
    return args[0] if args else next(iter(kwargs.values()), None)


def with_first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a call with the first argument replaced by `value`."""
    if args:
        return (value, *args[1:]), dict(kwargs)
    return args, {**kwargs, next(iter(kwargs)): value}


def _average(observer: Observer, axes: tuple[int, ...]) -> Observer:
    return (lambda node, value: observer(node, value.mean(axes))) if axes else observer


def _input_hook(node: str, observer: Observer) -> Any:
    return lambda _module, args, kwargs: observer(node, first_input(args, kwargs))


def _join_hooks(node: str, tap: Tap, observer: Observer) -> dict[str, Any]:
    """Return a hook per module of `tap.parts`; the last hook that runs passes on the joined inputs."""
    inputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs[name] = first_input(args, kwargs)
            if len(inputs) == len(tap.parts):
                values = [inputs[part] for part in tap.parts]
                inputs.clear()
                observer(node, join(values, tap))

        return keep

    return {name: hook(name) for name in tap.parts}


def join(values: Sequence[Tensor], tap: Tap) -> Tensor:
    """Concatenate the averaged inputs of the modules of `tap.parts` to vectors (n, width); equal parts appear once."""
    vectors = {}
    for value, part in zip(values, tap.parts.values(), strict=True):
        if (part.start, part.stop) not in vectors:
            vectors[part.start, part.stop] = (value.mean(part.axes) if part.axes else value).flatten(1)
    return torch.cat(list(vectors.values()), 1)


def _output_hook(node: str, call: int, observer: Observer) -> Any:
    calls = itertools.count()
    return lambda _module, _args, output: observer(node, output) if next(calls) == call else None


class Functions(TorchFunctionMode):
    """Calls `observer` for the functions that a network calls outside of torch's own layers, by their graph names."""

    def __init__(self, module: nn.Module, observer: Observer, *, only: Collection[str] | None = None) -> None:
        super().__init__()
        self._module, self._observer, self._only, self._calls = module, observer, only, Counter[str]()
        self._scope: list[tuple[str, bool]] = []  # running modules, and whether each is inside a layer of torch
        self._hidden = False
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> "Functions":
        for name, part in self._module.named_modules():
            self._hooks.callback(part.register_forward_pre_hook(self._enter_module(name, leaf=is_leaf(part))).remove)
            self._hooks.callback(part.register_forward_hook(self._leave_module).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def hide(self, observer: Observer) -> Observer:
        """Return an observer whose own function calls are not taken for functions of the network."""

        def call(node: str, value: Any) -> None:
            self._hidden = True
            observer(node, value)
            self._hidden = False

        return call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and call the observer if the network called it outside of torch's own layers."""
        value = func(*args, **(kwargs or {}))
        if not self._hidden and self._scope and not self._scope[-1][1] and isinstance(value, Tensor):
            bare = getattr(func, "__name__", "").strip("_")
            name = ".".join(filter(None, [self._scope[-1][0], OPERATORS.get(bare, bare)]))
            node = numbered(name, self._calls[name])
            self._calls[name] += 1
            if self._only is None or node in self._only:
                self._observer(node, value)
        return value

    def _enter_module(self, name: str, *, leaf: bool) -> Any:
        # The root is never a leaf, whatever its class.
        return lambda _module, _args: self._scope.append((name, bool(self._scope) and (leaf or self._scope[-1][1])))

    def _leave_module(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        name, leaf = self._scope.pop()
        if leaf:
            self._calls[name] += 1  # a function of the same name continues the numbers


def numbered(name: str, call: int) -> str:
    """Return the node name of a call, which counts from 0: name, name_1, name_2, …"""
    return f"{name}_{call}" if call else name


def is_leaf(module: nn.Module) -> bool:
    """Return whether a graph shows a module as a single node: torch's own layers, without nn.Sequential."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
