"""The graph of a network: what runs in which order and what needs what.

torch.fx runs the network's own Python on symbols. So a graph holds for the modes that all modules had at that moment:
where `forward` asks for `self.training`, the answer is in the graph. Modules are called as they are, in the mode that
they have when the graph runs.
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
    """A graph, its nodes by the names of taps, and of each node whether it is a tensor and where it was called."""

    network: nn.Module
    graph: fx.Graph
    names: Mapping[str, fx.Node]
    inputs: Mapping[str, fx.Node]  # what each module gets in its first call
    kinds: Mapping[fx.Node, Kind]
    scopes: Mapping[fx.Node, str]

    @property
    def input(self) -> fx.Node:
        """The network's input."""
        return self.names[INPUT]

    @property
    def logits(self) -> fx.Node:
        """The network's output; the first of several, as networks with auxiliary classifiers have them in training."""
        return self.names[LOGITS]

    def find(self, name: str, tap: Tap | None) -> fx.Node | None:
        """Return the node of a tap, or None if the graph has none."""
        return self.names.get(name) if tap is None or tap.input_of is None else self.inputs.get(tap.input_of)

    def values(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes whose values a node is made of. A shape or a dtype is made of no values."""
        return [] if self.kinds[node] == "number" else [one for one in node.all_input_nodes if not self.number(one)]

    def number(self, node: fx.Node) -> bool:
        """Return whether a node is a number, a shape, a dtype or a device."""
        return self.kinds[node] == "number"

    def after(self, start: fx.Node, *, around: fx.Node | None = None) -> set[fx.Node]:
        """Return all nodes whose values depend on a node, itself too; `ancestors` a node: by ways that avoid it."""
        result = {start} - {around}
        for node in self.graph.nodes:
            if node.op != "output" and node is not around and result.intersection(self.values(node)):
                result.add(node)
        return result

    def before(self, end: fx.Node) -> set[fx.Node]:
        """Return all nodes that a node needs, itself too, numbers among them."""
        result, waiting = set[fx.Node](), [end]
        while waiting:
            node = waiting.pop()
            if node not in result:
                result.add(node)
                waiting += node.all_input_nodes
        return result

    def rest(self, cut: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
        """Return what has to run after a cut, and those of it that ask what comes before for no more than a shape or
        the like.

        Beside what the logits need that is what works on the value of the cut in place.
        """
        after, around = self.after(cut), self.after(self.input, around=cut)
        outside = around - after - {cut}
        asking = {node for node in self.graph.nodes if self.number(node) and outside.intersection(node.all_input_nodes)}
        found, waiting = set[fx.Node](), [self.logits, *(node for node in after - around if self.in_place(node))]
        while waiting:
            node = waiting.pop()
            if node not in found and node is not cut:
                found.add(node)
                waiting += [] if node in asking else node.all_input_nodes
        return found, asking & found

    def in_place(self, node: fx.Node) -> bool:
        """Return whether a node overwrites what it gets."""
        if node.op == "call_module":
            return bool(getattr(self.network.get_submodule(str(node.target)), "inplace", False))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))

    def narrow(self) -> list[fx.Node]:
        """Return the nodes that all ways from the input to the logits pass, in order: no edge jumps over one of
        them.
        """
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
    """Return the graph of a network in its present modes; raises BackboneError if its Python cannot be run on
    symbols.
    """
    tracer = Tracer(network)
    try:
        graph = tracer.trace(network, concrete_args=_defaults(network))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BackboneError(
            f"{name}: expected a network whose graph torch.fx can trace, got {type(error).__name__}: {reason} Without "
            "a graph it cannot be cut: train it on pixels, with `head`, `full` or `patterns`."
        ) from error
    names = {**tracer.names, **_ends(graph, name)}
    if APPENDED in tracer.inputs:
        names[PENULTIMATE] = tracer.inputs[APPENDED]
    return Traced(network, graph, names, tracer.inputs, tracer.kinds, tracer.scopes)


@contextlib.contextmanager
def modes(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Yield all modules of a network in one mode for a while."""
    before = [(part, part.training) for part in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


def _defaults(network: nn.Module) -> dict[str, Any]:
    """Return all arguments of `forward` but the first, by their defaults."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    return {one.name: one.default for one in parameters[1:] if one.default is not inspect.Parameter.empty}


def _ends(graph: fx.Graph, name: str) -> dict[str, fx.Node]:
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
    """Yield a dotted name and those of all that contain it, up to the network, which is ""."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
