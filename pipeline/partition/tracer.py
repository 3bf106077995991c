"""A torch.fx tracer that names nodes as taps are: modules by call, functions by the calling module."""

import functools
import importlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import fx, nn

from pipeline.backbones.hooks import OPERATORS, first_input, is_leaf, numbered

Kind = Literal["tensor", "number", "tuple", "tuple item"]

# Attributes and methods of a tensor that do not depend on its values.
METADATA = ("size", "dim", "numel", "shape", "ndim", "dtype", "device", "is_cuda", "ndimension", "is_floating_point")
TUPLES = ("chunk", "split", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split", "meshgrid")
SCALAR_MODULES = ("_operator", "builtins", "math")  # modules of functions that compute numbers from numbers


class Tracer(fx.Tracer):
    """Traces a network, and records the name, kind and calling module of each node."""

    def __init__(self, network: nn.Module) -> None:
        leaves, functions = _untraced()
        super().__init__(autowrap_modules=_autowrapped(), autowrap_functions=functions)
        self._network, self._leaves = network, leaves
        self._paths = [""]
        self._module_calls, self._calls = Counter[str](), Counter[str]()
        self.names: dict[str, fx.Node] = {}
        self.inputs: dict[str, fx.Node] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.scopes: dict[fx.Node, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        """Return whether a module is not traced into: torch's own layers, and modules whose library says so."""
        return is_leaf(m) or isinstance(m, self._leaves)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a module, and record the names of its input and output."""
        path = self.path_of_module(m)
        given = first_input(args, kwargs)
        if isinstance(given, fx.Proxy):
            self.inputs.setdefault(path, given.node)
        self._paths.append(path)
        value = super().call_module(m, forward, args, kwargs)
        self._paths.pop()
        if isinstance(value, fx.Proxy):
            self.names[numbered(path, self._module_calls[path])] = value.node
        self._module_calls[path] += 1
        self._calls[path] += is_leaf(m)  # a function of the same name continues the numbers
        return value

    def create_node(self, kind: str, target: Any, *more: Any, **options: Any) -> fx.Node:
        """Create a node; record its calling module, its kind, and the name of a function's tensor."""
        node, scope = super().create_node(kind, target, *more, **options), self._paths[-1]
        self.scopes[node] = scope
        self.kinds[node] = _kind(node, self.kinds, self._network)
        if kind in ("call_function", "call_method") and self.kinds[node] == "tensor":
            bare = bare_name(node)
            name = ".".join(filter(None, [scope, OPERATORS.get(bare, bare)]))
            self.names[numbered(name, self._calls[name])] = node
            self._calls[name] += 1
        return node


def bare_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, or of the attribute that it reads."""
    if node.target is getattr:
        return str(node.args[1])
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(target).strip("_")


def _kind(node: fx.Node, kinds: Mapping[fx.Node, Kind], network: nn.Module) -> Kind:
    inputs = [kinds[value] for value in node.all_input_nodes]
    if node.op == "call_module":
        returns_tuple = isinstance(network.get_submodule(str(node.target)), nn.MultiheadAttention)
        return "tuple" if returns_tuple else "tensor"
    if node.op not in ("call_function", "call_method"):
        return "tensor"
    name = bare_name(node)
    if name == "getitem":
        return {"tuple": "tuple item", "number": "number"}.get(inputs[0], "tensor")  # type: ignore[return-value]
    if name in METADATA or name == "assert":
        return "number"
    plain = getattr(node.target, "__module__", None) in SCALAR_MODULES
    if plain and inputs and all(kind == "number" for kind in inputs):
        return "number"
    return "tuple" if name in TUPLES else "tensor"


@functools.cache
def _autowrapped() -> tuple[Any, ...]:
    from torchvision import ops

    return (math, ops)


def _untraced() -> tuple[tuple[type, ...], tuple[Callable[..., Any], ...]]:
    """Return the modules and functions of torchvision and timm that must not be traced into."""
    from torchvision import ops

    leaves = [value for value in vars(ops).values() if inspect.isclass(value) and issubclass(value, nn.Module)]
    functions: list[Callable[..., Any]] = []
    if "timm" in sys.modules:  # a network of timm has imported it
        layers: Any = importlib.import_module("timm.layers")
        leaves += layers.get_notrace_modules()
        functions += [function for function in layers.get_notrace_functions() if callable(function)]
    leaves = [leaf for leaf in leaves if not issubclass(leaf, nn.Sequential)]
    return tuple(leaves), tuple(functions)
