"""The tail of a network after a split point, as a module from stored rows of a tap to logits."""

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
    """A module from float rows (n, *shape of the tap) to logits, which runs the network's own modules.

    It contains the whole network, which is moved, trained and saved with it. The graph is traced for each combination
    of module modes that occurs.
    """

    def __init__(self, network: nn.Module, node: str, spec: BackboneSpec) -> None:
        super().__init__()
        self.network, self.node, self.spec = network, node, spec
        self._compiled: dict[tuple[bool, ...], Forward] = {}

    def forward(self, rows: Tensor) -> Tensor:
        """Compute logits of rows, which are not changed in place.

        Raises BackboneError if the network cannot be split there in the present modes of its modules.
        """
        state = tuple(part.training for part in self.network.modules())
        if state not in self._compiled:
            self._compiled[state] = self._compile()
        with without_attention_fastpath():
            return self._compiled[state](self.network, rows.clone())

    def _compile(self) -> Forward:
        name = network_name(self.spec)
        traced = trace(self.network, name=name)
        tap = self.spec.taps[self.node]
        cut = traced.find(self.node, tap)
        if cut is None or traced.logits in traced.after(traced.input, avoiding=cut):
            raise BackboneError(
                f"{name}: expected {self.node!r} to split the network in training as in evaluation, but it does not. "
                "Choose another node, or train on pixels."
            )
        forward: Forward = type(fx.GraphModule(self.network, _graph(traced, cut, tap, self.spec))).forward
        return forward


def network_name(spec: BackboneSpec) -> str:
    """Return the name of a network in messages."""
    return str(spec.architecture.get("name") or spec.architecture.get("family") or "network")


def _graph(traced: Traced, cut: fx.Node, tap: Tap, spec: BackboneSpec) -> fx.Graph:
    """Return the graph from rows to logits."""
    needed, queries = traced.tail_nodes(cut)
    graph = fx.Graph()
    rows = graph.placeholder("rows")
    # A linear layer commutes with a mean over positions: the mean takes the place of a single position.
    nodes = {cut: graph.call_function(_add_axes, (rows, tap.averaged)) if tap.input_of else rows}
    for node in traced.graph.nodes:
        if node in queries:
            nodes[node] = _replace_query(graph, nodes[cut], node, traced, spec)
        elif node in needed:
            nodes[node] = graph.node_copy(node, nodes.__getitem__)
    graph.output(nodes[traced.logits])
    return graph


def _add_axes(rows: Tensor, axes: Sequence[int]) -> Tensor:
    """Add axes of length 1."""
    for axis in axes:
        rows = rows.unsqueeze(axis)
    return rows


def _replace_query(graph: fx.Graph, rows: fx.Node, node: fx.Node, traced: Traced, spec: BackboneSpec) -> fx.Node:
    """Return a node for the metadata of a tensor before the cut, such as its number of rows, computed from `rows`."""
    queried, name = node.all_input_nodes[0], bare_name(node)
    if name in ("dtype", "device", "is_cuda", "is_floating_point"):
        return graph.node_copy(node, lambda _node: rows)
    tap = next((spec.taps[tap] for tap, node in traced.names.items() if node is queried and tap in spec.taps), None)
    if tap is None or name not in ("shape", "size", "dim", "ndim", "ndimension"):
        raise BackboneError(
            f"{network_name(spec)}: expected the tail not to depend on earlier values, got a call of {name!r} on "
            f"{queried.name}. Choose a later node, or train on pixels."
        )
    shape = graph.call_function(_shape_of_tap, (rows, tap.shape))
    if name in ("dim", "ndim", "ndimension"):
        return graph.call_function(len, (shape,))
    axes = [*node.args[1:], *node.kwargs.values()] if name == "size" else []
    return graph.call_function(operator.getitem, (shape, axes[0])) if axes else shape


def _shape_of_tap(rows: Tensor, tail: tuple[int, ...]) -> torch.Size:
    """Return the shape that a tap has for the same number of rows."""
    return torch.Size((len(rows), *tail))
