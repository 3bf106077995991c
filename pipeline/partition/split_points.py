"""Cuts: the nodes at which a network can be cut in two, and what runs on either side.

A node cuts a network if all that the output takes from the input goes through its value: no skip connection passes it
by. What comes after it is trained on stored rows of that value as the whole network is on pixels, for it runs the
network's own modules: their weights, their modes and their random numbers are those of the network.
"""

import operator
from collections.abc import Iterable

import torch
from torch import fx, nn

from pipeline.backbones.hooks import FUNCTION, LOGITS, collect, without_attention_fastpath
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.errors import BackboneError, bullets, unknown_node
from pipeline.partition.graph import Traced, ancestors, modes, trace
from pipeline.partition.tail import Tail, named

TOLERANCE = 1e-4  # how far the logits of a suffix may be off, in parts of the largest


def trace_for_split(network: nn.Module, spec: BackboneSpec) -> Traced:
    """Return the graph of a network in evaluation mode, in which the taps were surveyed.

    Raises BackboneError if the network cannot be traced.
    """
    with modes(network, training=False):
        return trace(network, name=named(spec))


def find_split_points(traced: Traced, spec: BackboneSpec) -> list[str]:
    """Return all nodes at which a network can be cut, in order, from `input` on, without those that are the logits."""
    narrow = {node: number for number, node in enumerate(traced.narrow()) if node is not traced.logits}
    places = {name: traced.find(name, tap) for name, tap in spec.taps.items() if not tap.mixed}
    found = [(narrow[place], name) for name, place in places.items() if place in narrow]
    return [name for _, name in sorted(found, key=lambda pair: pair[0])]


def suffix(network: nn.Module, node: str, *, spec: BackboneSpec) -> Tail:
    """Return what comes after a node (or an alias): a module from float rows (n, *shape of the tap) to logits.

    Raises BackboneError if the network cannot be cut there, if a weight is used on both sides, or if rows of the node
    do not give the network's logits, in evaluation mode, within `TOLERANCE`.
    """
    _sides(network, node, spec)
    made = Tail(network, spec.node(node), spec)
    _compare(made, spec)
    return made


def suffix_parameters(network: nn.Module, node: str, *, spec: BackboneSpec) -> set[str]:
    """Return the names of all parameters that run after a cut; raises BackboneError as `suffix` does."""
    return _sides(network, node, spec)[1]


def suffix_modules(network: nn.Module, node: str, *, spec: BackboneSpec) -> set[str]:
    """Return the names of all modules of which something runs after a cut, and of those that contain them; "" is the
    network.

    Layers that run before it too are left out. Raises BackboneError if the network cannot be cut there.
    """
    traced, cut = _cut(network, node, spec)
    result = set[str]()
    for one in traced.rest(cut)[0]:
        result.update(ancestors(traced.scopes[one]))
        if one.op == "call_module":
            result.update(
                name for name, _ in network.get_submodule(str(one.target)).named_modules(prefix=str(one.target))
            )
    return result


def blocks(network: nn.Module, *, spec: BackboneSpec) -> list[tuple[str, list[str]]]:
    """Return the blocks of a network in order: of each the cut before it and the names of its parameters.

    A block reaches from one cut to the next that is what a module returns: a residual block, a block of a transformer,
    a layer outside of such blocks. Where modules of a class join what they split, none of that class is taken apart.
    Norms, and parameters outside of layers, as those of positions, belong to the block before them. Raises
    BackboneError if the network cannot be traced.
    """
    traced = trace_for_split(network, spec)
    whole = _joining(traced)
    cuts = [
        node
        for node in find_split_points(traced, spec)
        if spec.taps[node].kind != FUNCTION and not whole.intersection(list(ancestors(node))[1:])
    ]
    result: list[tuple[str, list[str]]] = []
    known = set[str]()
    for start, end in zip(cuts, [*cuts[1:], LOGITS], strict=True):
        there = _parameters(traced, traced.before(_place(traced, end, spec)))
        new = [name for name, _ in network.named_parameters() if name in there - known]
        known |= there
        if result and all(_is_norm(network, name) or not in_layer(network, name) for name in new):
            result[-1][1].extend(new)
        elif new:
            result.append((start, new))
    return result


def _is_norm(network: nn.Module, parameter: str) -> bool:
    """Return whether a parameter is the scale or the shift of a norm."""
    return "norm" in type(_owner(network, parameter)).__name__.lower() and network.get_parameter(parameter).ndim <= 1


def in_layer(network: nn.Module, parameter: str) -> bool:
    """Return whether a parameter belongs to a layer of torch's own, or of a class made from one; not so tokens,
    positions.
    """
    kinds = set(type(_owner(network, parameter)).__mro__) - {nn.Module}
    return any(kind.__module__.startswith("torch.nn.modules.") for kind in kinds)


def _owner(network: nn.Module, parameter: str) -> nn.Module:
    """Return the module that has a parameter itself."""
    return network.get_submodule(parameter.rpartition(".")[0])


def _joining(traced: Traced) -> set[str]:
    """Return the modules of the classes that join several values, such as residual blocks, those among them that do
    not.
    """
    live = traced.after(traced.input)
    joins = (node for node in traced.graph.nodes if len(live.intersection(traced.values(node))) > 1)
    classes = {type(traced.network.get_submodule(traced.scopes[node])) for node in joins}
    return {name for name, part in traced.network.named_modules() if name and type(part) in classes}


def _cut(network: nn.Module, name: str, spec: BackboneSpec) -> tuple[Traced, fx.Node]:
    """Return the graph, and the place in it of a node or an alias."""
    traced = trace_for_split(network, spec)
    return traced, _place(traced, _checked(traced, name, spec), spec)


def _sides(network: nn.Module, name: str, spec: BackboneSpec) -> tuple[set[str], set[str]]:
    """Return the names of the parameters before and after a cut."""
    traced, cut = _cut(network, name, spec)
    before, after = (_parameters(traced, nodes) for nodes in (traced.before(cut), traced.rest(cut)[0]))
    if shared := before & after:
        raise BackboneError(
            f"{named(spec)}: expected other weights before {name!r} than after it, got {len(shared)} that both use: "
            f"{', '.join(sorted(shared)[:8])}. Cut elsewhere, or train on pixels."
        )
    return before, after


def _place(traced: Traced, node: str, spec: BackboneSpec) -> fx.Node:
    result = traced.find(node, spec.taps.get(node))
    assert result is not None, "cuts are in the graph"
    return result


def _checked(traced: Traced, name: str, spec: BackboneSpec) -> str:
    """Return the node of a name or an alias; raises BackboneError if the network cannot be cut there."""
    node, order = spec.node(name), list(spec.taps)
    if node not in spec.taps:
        raise BackboneError(f"{named(spec)}: {unknown_node(name, (*spec.aliases, *spec.taps))}")
    legal = [one for one in find_split_points(traced, spec) if one != node]
    place = traced.find(node, spec.taps[node])
    if spec.taps[node].mixed:
        reason = "its rows depend on the other samples of their batch"
    elif place is None:
        reason = "it is inside of what torch.fx does not look into"
    elif place is traced.logits:
        reason = "it is the network's output, and nothing comes after it"
    elif place not in traced.narrow():
        reason = "a part of what the output depends on passes it by, such as a skip connection"
    else:
        return node
    here = order.index(node)
    nearest = {
        "before it": [one for one in legal if order.index(one) < here][-3:],
        "after it": [one for one in legal if order.index(one) > here][:3],
    }
    raise BackboneError(
        bullets(
            f"{named(spec)}: expected a node that cuts the network in two, got {name!r}: {reason}. The nearest that do",
            [f"{side}: {', '.join(names) or '(there is none)'}" for side, names in nearest.items()],
        )
    )


def _parameters(traced: Traced, nodes: Iterable[fx.Node]) -> set[str]:
    """Return the names of the parameters that nodes use; a tied one has the first of its names."""
    names = {id(parameter): name for name, parameter in traced.network.named_parameters()}
    result: set[str] = set()
    for node in nodes:
        if node.op == "call_module":
            result.update(names[id(one)] for one in traced.network.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(traced.network)
            result.update({names[id(value)]} if id(value) in names else ())
    return result


def _compare(made: Tail, spec: BackboneSpec) -> None:
    """Raise BackboneError unless rows of the node give the logits of the network, in evaluation mode."""
    like = next(made.network.parameters())
    images = torch.randn(2, *spec.input.shape, generator=torch.Generator().manual_seed(0)).to(like)
    with modes(made.network, training=False), torch.no_grad(), without_attention_fastpath():
        logits = made.network(images)
        rows = collect(made.network, images, {"rows": TapSpec(node=made.node)}, spec.taps)["rows"]
        off = float((made(rows) - logits).abs().max() / logits.abs().max().clamp_min(torch.finfo(like.dtype).tiny))
    if not off <= TOLERANCE:
        raise BackboneError(
            f"{named(spec)}: expected rows of {made.node!r} to give the network's logits within {TOLERANCE:g} of the "
            f"largest, got {off:.3g}. Its graph is not what it computes: train on pixels."
        )
