"""Phases of a training: the parameters trained from an epoch on, and the modules in training mode."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.backbones.hooks import INPUT, PENULTIMATE, without_attention_fastpath
from pipeline.backbones.replace_classifier import classifier_node, new_modules
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import ConfigError, bullets, counted, unknown
from pipeline.partition.graph import ancestors, set_modes
from pipeline.partition.split_points import blocks, tail_modules, tail_parameters
from pipeline.training.config import FromTap, LastBlocks, Part, Patterns


@dataclass(frozen=True)
class Phase:
    """The trained part of a network from an epoch on."""

    epoch: int
    cut: str | None  # the node after which everything is trained, if there is one
    trained: frozenset[str]  # parameters
    train_mode_modules: frozenset[str]  # modules in training mode


def phase_of(network: nn.Module, spec: BackboneSpec, what: Part, epoch: int, new: Sequence[str]) -> Phase:
    """Return the phase of a setting from an epoch on. new: modules with new weights, classifier included.

    Raises BackboneError or ConfigError if the network has no such part.
    """
    parameters = [name for name, _ in network.named_parameters()]
    modules = [name for name, _ in network.named_modules()]
    if what == "full":
        return Phase(epoch, INPUT, frozenset(parameters), frozenset(modules))
    if what == "head":
        parts = new or new_modules(spec.architecture) or (classifier_node(spec),)
        trained = frozenset(name for name in parameters if is_within(name, parts))
        live = {name for name in modules if is_within(name, parts)}.union(*map(ancestors, parts))
        return Phase(epoch, PENULTIMATE if len(parts) == 1 else None, trained, frozenset(live))
    if isinstance(what, Patterns):
        # A new classifier must always be trained; patterns are for the original network.
        trained = _matching(parameters, what.patterns) | {name for name in parameters if is_within(name, new)}
        return Phase(epoch, None, trained, _live(network, spec, trained))
    if isinstance(what, LastBlocks):
        what = FromTap(from_tap=_start(network, spec, what.last_k))
    trained = frozenset(tail_parameters(network, what.from_tap, spec=spec))
    live = tail_modules(network, what.from_tap, spec=spec)
    return Phase(epoch, spec.node(what.from_tap), trained, frozenset(live))


def _start(network: nn.Module, spec: BackboneSpec, last: int) -> str:
    """Return the node before the last blocks."""
    known = blocks(network, spec=spec)
    if last > len(known):
        title = f"last_k: expected at most {len(known)}, the number of blocks, got {last}. The blocks begin after"
        lines = [f"{start}: {counted(len(names), 'parameter')} from {names[0]}" for start, names in known]
        raise ConfigError(bullets(title, lines))
    return known[-last][0]


def _matching(parameters: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Return the parameters that match any pattern; raises ConfigError with all patterns without a match."""
    known = {part for name in parameters for part in ancestors(name) if part}
    matched, problems = set[str](), []
    for pattern in patterns:
        fitting = set(fnmatch.filter(known, pattern))
        matching = {name for name in parameters if fitting.intersection(ancestors(name))}
        if not matching:
            problems.append(unknown("parameter or module", pattern, known))
        matched |= matching
    if problems:
        raise ConfigError(bullets("train: patterns that match nothing", problems))
    return frozenset(matched)


def _live(network: nn.Module, spec: BackboneSpec, trained: frozenset[str]) -> frozenset[str]:
    """Return the modules in training mode for an arbitrary set of trained parameters.

    Modules that run before the first trained layer are in evaluation mode, and so are layers whose own parameters are
    all frozen.
    """
    order: dict[str, int] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda _part, _args: order.update({name: order.get(name, len(order))})

    hooks = [part.register_forward_pre_hook(record(name)) for name, part in network.named_modules()]
    like = next(network.parameters())
    try:
        with set_modes(network, training=False), torch.no_grad(), without_attention_fastpath():
            network(torch.zeros(2, *spec.input.shape).to(like))
    finally:
        for hook in hooks:
            hook.remove()
    owners = {name.rpartition(".")[0] for name in trained}
    first = min((order[name] for owner in owners for name in [_called(owner, order)]), default=0)
    live = {name for owner in owners for name in ancestors(owner)}
    for name, part in network.named_modules():
        frozen = any(True for _ in part.parameters(recurse=False)) and name not in owners
        if order.get(name, -1) >= first and not frozen:
            live.add(name)
    return frozenset(live)


def _called(name: str, order: Mapping[str, int]) -> str:
    """Return a module or its nearest parent that was called: some layers use weights of submodules directly."""
    return next((parent for parent in ancestors(name) if parent in order), "")


def is_within(name: str, parts: Sequence[str]) -> bool:
    """Return whether a name is one of `parts`, or inside one of them."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def without_modules(phase: Phase, modules: set[str]) -> Phase:
    """Return the phase with further modules frozen."""
    trained = frozenset(name for name in phase.trained if name.rpartition(".")[0] not in modules)
    return dataclasses.replace(phase, trained=trained, train_mode_modules=phase.train_mode_modules - modules)
