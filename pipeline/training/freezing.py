"""Freeze parts of a network: parameters, BatchNorm statistics and dropout.

A frozen part computes the same values in training as in evaluation: its modules stay in evaluation mode. With
`requires_grad=False` only, BatchNorm statistics would still change with every batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.backbones.serialization import weights_digest
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import ConfigError, counted
from pipeline.partition.split_points import blocks, in_layer
from pipeline.training.config import BatchNorms, FromTap, Part
from pipeline.training.phases import Phase, is_within, phase_of, without_modules


def prepare(
    network: nn.Module,
    spec: BackboneSpec,
    what: Part,
    *,
    batch_norm: BatchNorms,
    unfreeze: Mapping[int, str] | None = None,
    new: Sequence[str] = (),
) -> "TrainableParts":
    """Freeze a network except for a part of it.

    unfreeze: {epoch: node}. From that epoch on, everything after the node is trained; before the first entry, `what`
    is. new: modules with new weights (`replace_classifier.new_modules`), which must not be frozen; patterns train them
    too.

    Raises BackboneError or ConfigError if the network has no such part, if a new module would be frozen, and if a
    trained part would be frozen later.
    """
    phases = [phase_of(network, spec, what, 0, new)]
    for epoch, node in sorted((unfreeze or {}).items()):
        phases.append(phase_of(network, spec, FromTap(from_tap=node), epoch, new))
        if lost := phases[-2].trained - phases[-1].trained:
            raise ConfigError(
                f"unfreeze: expected a larger trained part from epoch {epoch} on, got {node!r}, which freezes "
                f"{counted(len(lost), 'parameter')} trained before, such as {min(lost)}. List nodes from the last "
                "to the first."
            )
    cold = [name for name, _ in network.named_parameters() if is_within(name, new) and name not in phases[0].trained]
    if cold:
        convolution = ", or leave out `convolution`" if len(new) > 1 else ""
        raise ConfigError(
            f"train: expected a part that contains all new modules, got a part without {', '.join(cold[:4])}. Train "
            f"from an earlier node{convolution}."
        )
    if batch_norm == "frozen":
        still = {name for name, part in network.named_modules() if isinstance(part, _BatchNorm)}
        still = {name for name in still if not is_within(name, new)}
        phases = [without_modules(phase, still) for phase in phases]
    return TrainableParts(network, spec, phases, batch_norm)


class TrainableParts:
    """The trainable and frozen parts of a network in each epoch."""

    def __init__(self, network: nn.Module, spec: BackboneSpec, phases: Sequence[Phase], batch_norm: BatchNorms) -> None:
        self.network, self.spec, self.batch_norm = network, spec, batch_norm
        self._phases = tuple(phases)
        self._phase = self._phases[0]
        self.start(0)

    def start(self, epoch: int) -> bool:
        """Set `requires_grad` for an epoch, counted from 0; return whether the trained part changed."""
        before = self._phase
        self._phase = next(phase for phase in reversed(self._phases) if phase.epoch <= epoch)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in self._phase.trained)
        return self._phase.trained != before.trained

    def cut(self, epoch: int) -> str | None:
        """Return the node between the frozen and the trained part in an epoch; None if there is no such node."""
        return next(phase.cut for phase in reversed(self._phases) if phase.epoch <= epoch)

    def train_mode(self, network: nn.Module | None = None) -> None:
        """Set the trained part to training mode, and the rest to evaluation mode.

        network: a module around the network, such as its tail.
        """
        (network or self.network).train()
        for name, part in self.network.named_modules():
            part.training = name in self._phase.train_mode_modules

    def digest(self) -> str:
        """Return the SHA-256 of all parameters and buffers that are frozen in every epoch."""
        trained, live = (
            self._ever_trained,
            frozenset[str]().union(*(phase.train_mode_modules for phase in self._phases)),
        )
        parameters = {id(parameter): name for name, parameter in self.network.named_parameters()}
        modules = {id(part): name for name, part in self.network.named_modules()}
        frozen = {}
        for name, value in self.network.state_dict(keep_vars=True).items():
            part = self.network.get_submodule(name.rpartition(".")[0])
            # A tensor with two names has the first.
            known = parameters.get(id(value))
            if known not in trained if known is not None else modules[id(part)] not in live:
                frozen[name] = value
        return weights_digest(frozen)

    @property
    def _ever_trained(self) -> frozenset[str]:
        return frozenset[str]().union(*(phase.trained for phase in self._phases))

    def groups(self, lr: float, *, layer_decay: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups for all parameters that are trained in any epoch: by block and decay.

        The learning rate of a block is `layer_decay` times that of the next; the last has `lr`. Biases, norms and
        parameters outside of layers (class tokens, positions, layer scales) have no weight decay. Raises BackboneError
        for layer-wise decay in a network that cannot be traced.
        """
        trained = self._ever_trained
        order = blocks(self.network, spec=self.spec) if layer_decay != 1 else []
        depths = {name: len(order) - 1 - number for number, (_, names) in enumerate(order) for name in names}
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if name in trained:
                decays = parameter.ndim > 1 and in_layer(self.network, name)
                # Modules that do not run in evaluation (auxiliary classifiers) have the rate of the first block.
                depth = depths.get(name, max(len(order) - 1, 0))
                groups.setdefault((depth, decays), []).append(parameter)
        return [
            {"params": parameters, "lr": lr * layer_decay**depth, "weight_decay": weight_decay if decays else 0.0}
            for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def norms(self) -> list[_BatchNorm]:
        """Return the BatchNorm layers in training mode in the present epoch."""
        return [
            part
            for name, part in self.network.named_modules()
            if isinstance(part, _BatchNorm) and name in self._phase.train_mode_modules
        ]

    def check_batch(self, size: int, *, rows: int | None = None) -> None:
        """Raise ConfigError for batches of a single sample, if a BatchNorm layer is in training mode.

        size: batch size. rows: number of training rows; None: enough. A last batch of a single sample needs no check:
        `samples.batches` merges it into the batch before.
        """
        if min(size, size if rows is None else rows) >= 2 or not (norms := self.norms()):
            return
        if rows == 1:
            raise ConfigError(
                f"training rows: expected at least two, since {len(norms)} BatchNorm layers compute the statistics of "
                "a batch, got 1. Train on more samples, or set `batch_norm: frozen`."
            )
        raise ConfigError(
            f"batch: expected at least two samples, since {len(norms)} BatchNorm layers compute the statistics of a "
            f"batch, got {size}. Set a larger `batch_size` or `batch_norm: frozen`."
        )

    @torch.no_grad()
    def recalibrate(self, run: nn.Module, batches: Iterable[Tensor]) -> int:
        """Recompute the statistics of all trained BatchNorm layers as means over batches; return their number.

        run: the network or its tail. batches: its inputs, of equal size except for the last, which is skipped if it has
        a single sample ("precise BN": Wu and Johnson 2021, arXiv 2105.07576). All other modules are in evaluation mode,
        and so is the network at the end. Raises ConfigError without batches of two samples.
        """
        norms, count = [norm for norm in self.norms() if norm.track_running_stats], 0
        momenta = [norm.momentum for norm in norms]
        run.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        try:
            for batch in batches:
                if len(batch) > 1:
                    run(batch)
                    count += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            run.eval()
        if norms and not count:
            raise ConfigError(
                "recalibrate: expected batches of at least two training samples, got none. Set a larger `batch_size`."
            )
        return len(norms)
