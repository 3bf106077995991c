"""The graph of a network, traced by torch.fx, and queries on it: dominators, ancestors, descendants.

torch.fx runs the network's Python on symbols. A graph is therefore valid for the modes that the modules had when it was
traced: a branch on `self.training` is fixed in the graph. The modules themselves run in their present mode.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from pipeline.backbones.hooks import APPENDED, INPUT, LOGITS, PENULTIMATE
from pipeline.backbones.spec import Tap
from pipeline.errors import BackboneError
from pipeline.partition.tracer import Kind, Tracer


@dataclass(frozen=True)
class Traced:
    """A traced graph: its nodes by tap name, and the kind and calling module of each node."""

    network: nn.Module
    graph: fx.Graph
    names: Mapping[str, fx.Node]
    inputs: Mapping[str, fx.Node]  # the input of each module in its first call
    kinds: Mapping[fx.Node, Kind]
    scopes: Mapping[fx.Node, str]

    @property
    def input(self) -> fx.Node:
        """The network's input."""
        return self.names[INPUT]

    @property
    def logits(self) -> fx.Node:
        """The network's output; the first of several outputs, such as with auxiliary classifiers in training."""
        return self.names[LOGITS]

    def find(self, name: str, tap: Tap | None) -> fx.Node | None:
        """Return the node of a tap, or None if the graph has none."""
        return self.names.get(name) if tap is None or tap.input_of is None else self.inputs.get(tap.input_of)

    def values(self, node: fx.Node) -> list[fx.Node]:
        """Return the tensor inputs of a node. Shapes and dtypes do not depend on values, and have none."""
        return [] if self.number(node) else [value for value in node.all_input_nodes if not self.number(value)]

    def number(self, node: fx.Node) -> bool:
        """Return whether a node is a number, a shape, a dtype or a device."""
        return self.kinds[node] == "number"

    def after(self, start: fx.Node, *, avoiding: fx.Node | None = None) -> set[fx.Node]:
        """Return a node and all nodes that depend on it; with `avoiding`, only along paths without that node."""
        result = {start} - {avoiding}
        for node in self.graph.nodes:
            if node.op != "output" and node is not avoiding and result.intersection(self.values(node)):
                result.add(node)
        return result

    def before(self, end: fx.Node) -> set[fx.Node]:
        """Return a node and all nodes that it needs, numbers included."""
        result, waiting = set[fx.Node](), [end]
        while waiting:
            node = waiting.pop()
            if node not in result:
                result.add(node)
                waiting += node.all_input_nodes
        return result

    def tail_nodes(self, cut: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
        """Return the nodes that run after a cut, and those of them that query only metadata of tensors before the cut.

        The nodes are those that the logits need, and those that change the value of the cut in place.
        """
        after, bypassing = self.after(cut), self.after(self.input, avoiding=cut)
        outside = bypassing - after - {cut}
        queries = {
            node for node in self.graph.nodes if self.number(node) and outside.intersection(node.all_input_nodes)
        }
        needed, waiting = set[fx.Node](), [self.logits, *(node for node in after - bypassing if self.in_place(node))]
        while waiting:
            node = waiting.pop()
            if node not in needed and node is not cut:
                needed.add(node)
                waiting += [] if node in queries else node.all_input_nodes
        return needed, queries & needed

    def in_place(self, node: fx.Node) -> bool:
        """Return whether a node overwrites its input."""
        if node.op == "call_module":
            return bool(getattr(self.network.get_submodule(str(node.target)), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))

    def dominators(self) -> list[fx.Node]:
        """Return, in order, the nodes on all paths from the input to the logits (dominators of the logits)."""
        result, inside = [], self.after(self.input) & self.before(self.logits)
        order = [node for node in self.graph.nodes if node in inside]
        position = {node: number for number, node in enumerate(order)}
        farthest = 0
        for number, node in enumerate(order):
            if farthest <= number:
                result.append(node)
            users = [position[user] for user in node.users if user in position and node in self.values(user)]
            farthest = max(farthest, *users, 0)
        return result


def trace(network: nn.Module, *, name: str) -> Traced:
    """Trace the graph of a network in its present modes; raises BackboneError if torch.fx cannot trace it."""
    tracer = Tracer(network)
    try:
        graph = tracer.trace(network, concrete_args=_defaults(network))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BackboneError(
            f"{name}: expected a network whose graph torch.fx can trace, got {type(error).__name__}: {reason} Without "
            "a graph, it cannot be split: train it on pixels, with `head`, `full` or `patterns`."
        ) from error
    names = {**tracer.names, **_find_input_and_logits(graph, name)}
    if APPENDED in tracer.inputs:
        names[PENULTIMATE] = tracer.inputs[APPENDED]
    return Traced(network, graph, names, tracer.inputs, tracer.kinds, tracer.scopes)


@contextlib.contextmanager
def set_modes(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Set all modules of a network to a mode during the block."""
    before = [(part, part.training) for part in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Return the defaults of `forward`'s arguments after the first."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    return {p.name: p.default for p in parameters[1:] if p.default is not inspect.Parameter.empty}


def _find_input_and_logits(graph: fx.Graph, name: str) -> dict[str, fx.Node]:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if isinstance(output, fx.Node) and inspect.isclass(output.target) and issubclass(output.target, tuple):
        output = output.args  # a named tuple
    logits = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(logits, fx.Node):
        raise BackboneError(
            f"{name}: expected a network that returns a tensor, or several of which the first are the logits, got "
            f"{type(output).__name__}. Train it on pixels, with `head`, `full` or `patterns`."
        )
    return {INPUT: inputs[0], LOGITS: logits}


def ancestors(name: str) -> Iterator[str]:
    """Yield a dotted name and the names of the modules around it, up to the network, whose name is ""."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
