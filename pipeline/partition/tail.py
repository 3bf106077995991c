"""What comes after a cut of a network, as a module: stored rows of a tap to logits."""

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from pipeline.backbones.hooks import without_attention_fastpath
from pipeline.backbones.spec import BackboneSpec, Tap
from pipeline.errors import BackboneError
from pipeline.partition.graph import Traced, trace
from pipeline.partition.tracer import bare_name

Forward = Callable[[nn.Module, Tensor], Tensor]


class Tail(nn.Module):
    """Float rows (n, *shape of the tap) to logits, by the network's own modules.

    The whole network is inside, so that it is moved, trained and saved as one. Its graph is traced anew for each
    combination of the modes of its modules that occurs.
    """

    def __init__(self, network: nn.Module, node: str, spec: BackboneSpec) -> None:
        super().__init__()
        self.network, self.node, self.spec = network, node, spec
        self._compiled: dict[tuple[bool, ...], Forward] = {}

    def forward(self, rows: Tensor) -> Tensor:
        """Convert rows to logits. The rows stay as they are, whatever the network does in place.

        Raises BackboneError where the network can be cut there in other modes of its modules only.
        """
        state = tuple(part.training for part in self.network.modules())
        if state not in self._compiled:
            self._compiled[state] = self._compile()
        with without_attention_fastpath():
            return self._compiled[state](self.network, rows.clone())

    def _compile(self) -> Forward:
        name = named(self.spec)
        traced = trace(self.network, name=name)
        tap = self.spec.taps[self.node]
        cut = traced.find(self.node, tap)
        if cut is None or traced.logits in traced.after(traced.input, around=cut):
            raise BackboneError(
                f"{name}: expected {self.node!r} to cut the network in training as it does in evaluation, and it does "
                "not. Choose another node, or train on pixels."
            )
        forward: Forward = type(fx.GraphModule(self.network, _graph(traced, cut, tap, self.spec))).forward
        return forward


def named(spec: BackboneSpec) -> str:
    """Return what messages call a network."""
    return str(spec.architecture.get("name") or spec.architecture.get("family") or "network")


def _graph(traced: Traced, cut: fx.Node, tap: Tap, spec: BackboneSpec) -> fx.Graph:
    """Return the graph from rows to logits."""
    needed, asking = traced.rest(cut)
    graph = fx.Graph()
    rows = graph.placeholder("rows")
    # A linear layer gives of a mean over positions the mean of what it gives: the mean stands at one position.
    made = {cut: graph.call_function(_at_one_position, (rows, tap.averaged)) if tap.input_of else rows}
    for node in traced.graph.nodes:
        if node in asking:
            made[node] = _answer(graph, made[cut], node, traced, spec)
        elif node in needed:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(made[traced.logits])
    return graph


def _at_one_position(rows: Tensor, axes: Sequence[int]) -> Tensor:
    """Return rows with axes of one position each."""
    for axis in axes:
        rows = rows.unsqueeze(axis)
    return rows


def _answer(graph: fx.Graph, rows: fx.Node, node: fx.Node, traced: Traced, spec: BackboneSpec) -> fx.Node:
    """Return what is asked of a tensor that comes before the cut, such as its number of rows, told without it."""
    asked, name = node.all_input_nodes[0], bare_name(node)
    if name in ("dtype", "device", "is_cuda", "is_floating_point"):
        return graph.node_copy(node, lambda _node: rows)
    tap = next((spec.taps[one] for one, place in traced.names.items() if place is asked and one in spec.taps), None)
    if tap is None or name not in ("shape", "size", "dim", "ndim", "ndimension"):
        raise BackboneError(
            f"{named(spec)}: expected that what comes after the cut does without what comes before it, got a call of "
            f"{name!r} on {asked.name}. Choose a later node, or train on pixels."
        )
    shape = graph.call_function(_shape, (rows, tap.shape))
    if name in ("dim", "ndim", "ndimension"):
        return graph.call_function(len, (shape,))
    axes = [*node.args[1:], *node.kwargs.values()] if name == "size" else []
    return graph.call_function(operator.getitem, (shape, axes[0])) if axes else shape


def _shape(rows: Tensor, tail: tuple[int, ...]) -> torch.Size:
    """Return the shape of as many rows of another tap."""
    return torch.Size((len(rows), *tail))
