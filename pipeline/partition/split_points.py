"""Split points: the nodes at which a network can be split in two, and the modules on either side.

A node splits a network if the output depends on the input only through its value: no skip connection bypasses it. The
tail is trained on stored rows of that value exactly as the whole network is on pixels, since it runs the network's own
modules, with their weights, modes and random numbers.
"""

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn

from pipeline.backbones.hooks import FUNCTION, LOGITS, collect, without_attention_fastpath
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.errors import BackboneError, bullets, unknown_node
from pipeline.partition.graph import Traced, ancestors, set_modes, trace
from pipeline.partition.tail import Tail, network_name

TOLERANCE = 1e-4  # largest error of the tail's logits, relative to the largest logit


def trace_for_split(network: nn.Module, spec: BackboneSpec) -> Traced:
    """Return the graph of a network in evaluation mode, in which the taps were surveyed.

    Raises BackboneError if the network cannot be traced.
    """
    with set_modes(network, training=False):
        return trace(network, name=network_name(spec))


def find_split_points(traced: Traced, spec: BackboneSpec) -> list[str]:
    """Return all nodes at which a network can be split, in order, from `input` on, without the logits."""
    dominators = {node: number for number, node in enumerate(traced.dominators()) if node is not traced.logits}
    graph_nodes = {name: traced.find(name, tap) for name, tap in spec.taps.items() if not tap.mixed}
    ranked = [(dominators[node], name) for name, node in graph_nodes.items() if node in dominators]
    return [name for _, name in sorted(ranked, key=lambda pair: pair[0])]


def build_tail(network: nn.Module, node: str, *, spec: BackboneSpec) -> Tail:
    """Return the tail after a node or an alias: a module from float rows (n, *shape of the tap) to logits.

    Raises BackboneError if the network cannot be split there, if a weight is used on both sides, or if rows of the node
    do not give the network's logits, in evaluation mode, within `TOLERANCE`.
    """
    _split_parameters(network, node, spec)
    tail = Tail(network, spec.node(node), spec)
    _check_logits(tail, spec)
    return tail


def tail_parameters(network: nn.Module, node: str, *, spec: BackboneSpec) -> set[str]:
    """Return the names of all parameters of the tail after a node; raises BackboneError as `build_tail` does."""
    return _split_parameters(network, node, spec)[1]


def tail_modules(network: nn.Module, node: str, *, spec: BackboneSpec) -> set[str]:
    """Return the names of all modules that run in the tail after a node, and of the modules around them; "" is the
    root.

    Layers that run before the node too are omitted. Raises BackboneError if the network cannot be split there.
    """
    traced, cut = _find_split(network, node, spec)
    result = set[str]()
    for graph_node in traced.tail_nodes(cut)[0]:
        result.update(ancestors(traced.scopes[graph_node]))
        if graph_node.op == "call_module":
            target = str(graph_node.target)
            result.update(name for name, _ in network.get_submodule(target).named_modules(prefix=target))
    return result


def blocks(network: nn.Module, *, spec: BackboneSpec) -> list[tuple[str, list[str]]]:
    """Return the blocks of a network in order: for each, the split point before it and the names of its parameters.

    A block ends at the next split point that is a module's output: a residual block, a block of a transformer, or a
    layer outside of such blocks. Modules of a class that joins several values are never divided. Norms, and parameters
    outside of layers such as positional embeddings, belong to the block before them. Raises BackboneError if the
    network cannot be traced.
    """
    traced = trace_for_split(network, spec)
    undivided = _joining_modules(traced)
    cuts = [
        node
        for node in find_split_points(traced, spec)
        if spec.taps[node].kind != FUNCTION and not undivided.intersection(list(ancestors(node))[1:])
    ]
    result: list[tuple[str, list[str]]] = []
    known = set[str]()
    for start, end in zip(cuts, [*cuts[1:], LOGITS], strict=True):
        used = _parameters(traced, traced.before(_graph_node(traced, end, spec)))
        new = [name for name, _ in network.named_parameters() if name in used - known]
        known |= used
        if result and all(_is_norm(network, name) or not in_layer(network, name) for name in new):
            result[-1][1].extend(new)
        elif new:
            result.append((start, new))
    return result


def _is_norm(network: nn.Module, parameter: str) -> bool:
    """Return whether a parameter is the scale or shift of a norm."""
    return "norm" in type(_owner(network, parameter)).__name__.lower() and network.get_parameter(parameter).ndim <= 1


def in_layer(network: nn.Module, parameter: str) -> bool:
    """Return whether a parameter belongs to a torch layer or a subclass, unlike tokens and positional embeddings."""
    kinds = set(type(_owner(network, parameter)).__mro__) - {nn.Module}
    return any(kind.__module__.startswith("torch.nn.modules.") for kind in kinds)


def _owner(network: nn.Module, parameter: str) -> nn.Module:
    """Return the module that owns a parameter."""
    return network.get_submodule(parameter.rpartition(".")[0])


def _joining_modules(traced: Traced) -> set[str]:
    """Return the names of all modules whose class joins several values in any module, such as residual blocks."""
    dependent = traced.after(traced.input)
    joins = (node for node in traced.graph.nodes if len(dependent.intersection(traced.values(node))) > 1)
    classes = {type(traced.network.get_submodule(traced.scopes[node])) for node in joins}
    return {name for name, part in traced.network.named_modules() if name and type(part) in classes}


def _find_split(network: nn.Module, name: str, spec: BackboneSpec) -> tuple[Traced, fx.Node]:
    """Return the graph, and its node for a split point or an alias."""
    traced = trace_for_split(network, spec)
    return traced, _graph_node(traced, _validate_split(traced, name, spec), spec)


def _split_parameters(network: nn.Module, name: str, spec: BackboneSpec) -> tuple[set[str], set[str]]:
    """Return the names of the parameters before and after a split point."""
    traced, cut = _find_split(network, name, spec)
    before, after = (_parameters(traced, nodes) for nodes in (traced.before(cut), traced.tail_nodes(cut)[0]))
    if shared := before & after:
        raise BackboneError(
            f"{network_name(spec)}: expected different weights before and after {name!r}, got {len(shared)} that both "
            f"use: {', '.join(sorted(shared)[:8])}. Choose another node, or train on pixels."
        )
    return before, after


def _graph_node(traced: Traced, node: str, spec: BackboneSpec) -> fx.Node:
    result = traced.find(node, spec.taps.get(node))
    assert result is not None, "split points are in the graph"
    return result


def _validate_split(traced: Traced, name: str, spec: BackboneSpec) -> str:
    """Return the node of a name or an alias; raises BackboneError if the network cannot be split there."""
    node, order = spec.node(name), list(spec.taps)
    if node not in spec.taps:
        raise BackboneError(f"{network_name(spec)}: {unknown_node(name, (*spec.aliases, *spec.taps))}")
    others = [other for other in find_split_points(traced, spec) if other != node]
    graph_node = traced.find(node, spec.taps[node])
    if spec.taps[node].mixed:
        reason = "its rows depend on the other samples of their batch"
    elif graph_node is None:
        reason = "it is inside a module that torch.fx does not trace"
    elif graph_node is traced.logits:
        reason = "it is the network's output, and nothing comes after it"
    elif graph_node not in traced.dominators():
        reason = "the output depends on values that bypass it, such as a skip connection"
    else:
        return node
    here = order.index(node)
    nearest = {
        "before it": [other for other in others if order.index(other) < here][-3:],
        "after it": [other for other in others if order.index(other) > here][:3],
    }
    raise BackboneError(
        bullets(
            f"{network_name(spec)}: expected a node that splits the network in two, got {name!r}: {reason}. The "
            "nearest that do",
            [f"{side}: {', '.join(names) or '(there is none)'}" for side, names in nearest.items()],
        )
    )


def _parameters(traced: Traced, nodes: Iterable[fx.Node]) -> set[str]:
    """Return the names of the parameters that nodes use; a tied parameter has the first of its names."""
    names = {id(parameter): name for name, parameter in traced.network.named_parameters()}
    result: set[str] = set()
    for node in nodes:
        if node.op == "call_module":
            module = traced.network.get_submodule(str(node.target))
            result.update(names[id(parameter)] for parameter in module.parameters())
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(traced.network)
            result.update({names[id(value)]} if id(value) in names else ())
    return result


def _check_logits(tail: Tail, spec: BackboneSpec) -> None:
    """Raise BackboneError unless rows of the node give the logits of the network, in evaluation mode."""
    like = next(tail.network.parameters())
    images = torch.randn(2, *spec.input.shape, generator=torch.Generator().manual_seed(0)).to(like)
    with set_modes(tail.network, training=False), torch.no_grad(), without_attention_fastpath():
        logits = tail.network(images)
        rows = collect(tail.network, images, {"rows": TapSpec(node=tail.node)}, spec.taps)["rows"]
        off = float((tail(rows) - logits).abs().max() / logits.abs().max().clamp_min(torch.finfo(like.dtype).tiny))
    if not off <= TOLERANCE:
        raise BackboneError(
            f"{network_name(spec)}: expected rows of {tail.node!r} to give the network's logits within {TOLERANCE:g} "
            f"of the largest, got an error of {off:.3g}. The traced graph computes something else: train on pixels."
        )
