"""Taps: the values of any node of a network, copied at the moment they are made.

A node is one of

    input            the network's own input, after normalisation: the raw pixels
    logits           the network's own output
    penultimate      one vector per sample: what the classifier gets, averaged over positions where that is a map or
                     tokens. Of several classifiers side by side what all get, one after the other where they get
                     different vectors. Without a classifier the network's own output, averaged likewise. The rule for
                     what a classifier is stands in find_classifier.py
    layer1.0.relu    a module, by its name: what it returns; with _1, _2, … for later calls of the same module
    layer1.0.add     a function that is called outside of torch's own layers, by the module that calls it and its own
                     name, numbered likewise: the names that torchvision's graphs have

Each tap is pooled or cloned inside the hook, before the network can overwrite it in place, so a value never depends on
what else is asked for. The forward pass stops after the last node that is needed.
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
APPENDED = "new_classifier"  # the part of a network whose classifier was appended to its output: `headed`
ENDS_AT = "ends_at"  # the attribute of a network that names the part whose output is its own: `headed`
FUNCTION = "function"  # the kind of a node that is no module

# Operators that Python has several names for. A graph has one.
OPERATORS = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub", "rsub": "sub",
             "itruediv": "truediv", "rdiv": "truediv"}  # fmt: skip

Seen = Callable[[str, Any], None]
"""Called with a node and its value, in the order in which the network makes them."""


class NoClassifier(nn.Identity):
    """Stands where a network had its classifier, which its weights lack: the family `headless`.

    maps: whether the classifier was a convolution, so that channels come first.
    """

    def __init__(self, *, maps: bool = False) -> None:
        super().__init__()
        self.maps = maps


class _Stop(Exception):  # noqa: N818 - it ends a forward pass, it is no error
    """Raised in the last hook that is needed."""


def collect(
    module: nn.Module,
    images: Tensor,
    specs: Mapping[str, TapSpec],
    taps: Mapping[str, Tap],
    *,
    early: bool = True,
) -> dict[str, Tensor]:
    """Run `images` (n, c, h, w) forward and return each tap by its name, pooled but not projected, (n, ...).

    The nodes of `specs` are those of `taps`, no aliases. Unless `early`, the network runs on after the last of them.
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
        with one_path(), watch(module, keep, {node: taps[node] for node in wanted if node != INPUT}):
            module(images)
    return result


@contextlib.contextmanager
def one_path() -> Iterator[None]:
    """Make torch's attention run one way: it has a second, that rounds otherwise, for when nobody is watching."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def watch(module: nn.Module, seen: Seen, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Call `seen` for the nodes of `taps` while the network runs, at the moment that it makes them.

    Gradients flow; what is kept must be cloned, for the network may overwrite it in place.
    """
    modules = {**dict(module.named_modules()), LOGITS: module, PENULTIMATE: module}
    functions = {node for node, tap in taps.items() if tap.kind == FUNCTION}
    with contextlib.ExitStack() as stack:
        watched = stack.enter_context(Functions(module, seen, only=functions)) if functions else None
        for node, tap in taps.items():
            # A classifier that was appended gets the node as it is, whatever it was made of.
            appended = node == PENULTIMATE and tap.input_of is None and APPENDED in modules
            into = seen if appended else _averaging(seen, tap.averaged)
            into = into if watched is None else watched.aside(into)
            part = APPENDED if appended else tap.input_of
            if part is not None:
                hooks = {part: _before(node, into)}
            elif tap.parts:
                hooks = _joining(node, tap, into)
            else:
                hooks = {}
            for name, hook in hooks.items():
                before = module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(before.remove)
            if not hooks and node not in functions:
                name = node.removesuffix(f"_{tap.call}") if tap.call else node
                stack.callback(modules[name].register_forward_hook(_after(node, tap.call, into)).remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, by place or by name; None without any."""
    return args[0] if args else next(iter(kwargs.values()), None)


def with_first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a call with another first one."""
    if args:
        return (value, *args[1:]), dict(kwargs)
    return args, {**kwargs, next(iter(kwargs)): value}


def _averaging(seen: Seen, axes: tuple[int, ...]) -> Seen:
    return (lambda node, value: seen(node, value.mean(axes))) if axes else seen


def _before(node: str, seen: Seen) -> Any:
    return lambda _module, args, kwargs: seen(node, first_input(args, kwargs))


def _joining(node: str, tap: Tap, seen: Seen) -> dict[str, Any]:
    """Return a hook for each of several modules; the last that runs gives the vector of what all got."""
    got: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            got[name] = first_input(args, kwargs)
            if len(got) == len(tap.parts):
                values = [got[one] for one in tap.parts]
                got.clear()
                seen(node, join(values, tap))

        return keep

    return {name: hook(name) for name in tap.parts}


def join(values: Sequence[Tensor], tap: Tap) -> Tensor:
    """Join what the modules of `tap.parts` get to one vector per sample (n, width): averaged, equal parts once."""
    found = {}
    for value, part in zip(values, tap.parts.values(), strict=True):
        if (part.start, part.stop) not in found:
            found[part.start, part.stop] = (value.mean(part.axes) if part.axes else value).flatten(1)
    return torch.cat(list(found.values()), 1)


def _after(node: str, call: int, seen: Seen) -> Any:
    calls = itertools.count()
    return lambda _module, _args, output: seen(node, output) if next(calls) == call else None


class Functions(TorchFunctionMode):
    """Calls `seen` for the functions that a network calls outside of torch's own layers, under the names of a graph."""

    def __init__(self, module: nn.Module, seen: Seen, *, only: Collection[str] | None = None) -> None:
        super().__init__()
        self._module, self._seen, self._only, self._calls = module, seen, only, Counter[str]()
        self._scope: list[tuple[str, bool]] = []  # the modules that are running, and whether a layer of torch's own is
        self._aside = False
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

    def aside(self, seen: Seen) -> Seen:
        """Hide the functions that `seen` calls itself from the record of the network."""

        def call(node: str, value: Any) -> None:
            self._aside = True
            seen(node, value)
            self._aside = False

        return call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and say so if the network calls it itself, and no layer of torch's own."""
        value = func(*args, **(kwargs or {}))
        if not self._aside and self._scope and not self._scope[-1][1] and isinstance(value, Tensor):
            bare = getattr(func, "__name__", "").strip("_")
            name = ".".join(filter(None, [self._scope[-1][0], OPERATORS.get(bare, bare)]))
            node = numbered(name, self._calls[name])
            self._calls[name] += 1
            if self._only is None or node in self._only:
                self._seen(node, value)
        return value

    def _enter_module(self, name: str, *, leaf: bool) -> Any:
        # The root is a network, whatever its class.
        return lambda _module, _args: self._scope.append((name, bool(self._scope) and (leaf or self._scope[-1][1])))

    def _leave_module(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        name, leaf = self._scope.pop()
        if leaf:
            self._calls[name] += 1  # a function of the same name is numbered on from there


def numbered(name: str, call: int) -> str:
    """Return the node of the first, second, … call: call 0, 1, …"""
    return f"{name}_{call}" if call else name


def is_leaf(module: nn.Module) -> bool:
    """Return whether a graph shows a module as one node: torch's own layers, but for containers."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
