"""What of a network is trained and what is frozen: parameters, BatchNorm statistics and dropout alike.

A frozen part gives the same values in training as in evaluation: its modules stay in evaluation mode. Setting
`requires_grad` alone does not do that, and leaves BatchNorm moving with every batch.
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
    """Freeze a network but for a part of it.

    unfreeze: from which epoch on what comes after which node is trained; until the first of them it is `what`. new:
    modules with fresh weights (`replace_classifier.new_modules`), which are never frozen; patterns train them too.

    Raises BackboneError or ConfigError where the network has no such part, where a new module would be frozen, and
    where something that was trained would be frozen later.
    """
    phases = [phase_of(network, spec, what, 0, new)]
    for epoch, node in sorted((unfreeze or {}).items()):
        phases.append(phase_of(network, spec, FromTap(from_tap=node), epoch, new))
        if lost := phases[-2].trained - phases[-1].trained:
            raise ConfigError(
                f"unfreeze: expected that more is trained from epoch {epoch} on, got {node!r}, which freezes "
                f"{counted(len(lost), 'parameter')} trained before, such as {min(lost)}. Name nodes from the last "
                "to the first."
            )
    cold = [name for name, _ in network.named_parameters() if is_within(name, new) and name not in phases[0].trained]
    if cold:
        convolution = ", or leave `convolution` out" if len(new) > 1 else ""
        raise ConfigError(
            f"train: expected a part with all that is new in the network, got one without {', '.join(cold[:4])}. Train "
            f"from an earlier node{convolution}."
        )
    if batch_norm == "frozen":
        still = {name for name, part in network.named_modules() if isinstance(part, _BatchNorm)}
        still = {name for name in still if not is_within(name, new)}
        phases = [without_modules(phase, still) for phase in phases]
    return TrainableParts(network, spec, phases, batch_norm)


class TrainableParts:
    """What of a network is frozen, in each epoch."""

    def __init__(self, network: nn.Module, spec: BackboneSpec, phases: Sequence[Phase], batch_norm: BatchNorms) -> None:
        self.network, self.spec, self.batch_norm = network, spec, batch_norm
        self._phases = tuple(phases)
        self._phase = self._phases[0]
        self.start(0)

    def start(self, epoch: int) -> bool:
        """Train what is to be trained in an epoch, counted from 0; whether that is more than before."""
        before = self._phase
        self._phase = next(phase for phase in reversed(self._phases) if phase.epoch <= epoch)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in self._phase.trained)
        return self._phase.trained != before.trained

    def cut(self, epoch: int) -> str | None:
        """Return the node that divides what is frozen in an epoch from what is trained; None where no node does."""
        return next(phase.cut for phase in reversed(self._phases) if phase.epoch <= epoch)

    def train_mode(self, network: nn.Module | None = None) -> None:
        """Put what is trained into training mode, and the rest into evaluation mode.

        `network`: what wraps the network, such as what comes after a cut.
        """
        (network or self.network).train()
        for name, part in self.network.named_modules():
            part.training = name in self._phase.live

    def digest(self) -> str:
        """Return the SHA-256 of all parameters and buffers that are frozen from the first epoch to the last."""
        trained, live = self._ever_trained, frozenset[str]().union(*(phase.live for phase in self._phases))
        parameters = {id(parameter): name for name, parameter in self.network.named_parameters()}
        modules = {id(part): name for name, part in self.network.named_modules()}
        frozen = {}
        for name, value in self.network.state_dict(keep_vars=True).items():
            part = self.network.get_submodule(name.rpartition(".")[0])
            # What stands under two names has the first of them.
            known = parameters.get(id(value))
            if known not in trained if known is not None else modules[id(part)] not in live:
                frozen[name] = value
        return weights_digest(frozen)

    @property
    def _ever_trained(self) -> frozenset[str]:
        return frozenset[str]().union(*(phase.trained for phase in self._phases))

    def groups(self, lr: float, *, layer_decay: float = 1.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Group the parameters that are trained at some time for an optimizer: by block and weight decay.

        The learning rate of a block is `layer_decay` times that of the next; the last has `lr`. Biases, norms and what
        stands outside of layers (class tokens, positions, layer scales) have no weight decay. Raises BackboneError for
        a layer-wise decay of a network that cannot be traced.
        """
        trained = self._ever_trained
        order = blocks(self.network, spec=self.spec) if layer_decay != 1 else []
        depths = {name: len(order) - 1 - number for number, (_, names) in enumerate(order) for name in names}
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if name in trained:
                decays = parameter.ndim > 1 and in_layer(self.network, name)
                # What does not run in evaluation, such as auxiliary classifiers, learns as the first block does.
                depth = depths.get(name, max(len(order) - 1, 0))
                groups.setdefault((depth, decays), []).append(parameter)
        return [
            {"params": parameters, "lr": lr * layer_decay**depth, "weight_decay": weight_decay if decays else 0.0}
            for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def norms(self) -> list[_BatchNorm]:
        """Return the BatchNorm layers that follow the batches, in this epoch."""
        return [
            part
            for name, part in self.network.named_modules()
            if isinstance(part, _BatchNorm) and name in self._phase.live
        ]

    def check_batch(self, size: int, *, rows: int | None = None) -> None:
        """Raise ConfigError for batches of one sample, if a BatchNorm layer is to learn from them.

        size: of a batch. rows: how many there are to train on; None: enough. A last batch of one sample needs no check:
        `samples.batches` puts it into the batch before.
        """
        if min(size, size if rows is None else rows) >= 2 or not (norms := self.norms()):
            return
        if rows == 1:
            raise ConfigError(
                f"training rows: expected two at least, for {len(norms)} BatchNorm layers take the statistics of a "
                "batch, got 1. Train on more samples, or set `batch_norm: frozen`."
            )
        raise ConfigError(
            f"batch: expected two samples at least, for {len(norms)} BatchNorm layers take the statistics of a "
            f"batch, got {size}. Set a larger `batch_size` or `batch_norm: frozen`."
        )

    @torch.no_grad()
    def recalibrate(self, run: nn.Module, batches: Iterable[Tensor]) -> int:
        """Compute the statistics of all BatchNorm layers that are trained anew, as means over batches; how many.

        `run` is the network, or what comes after a cut, and `batches` what it takes, all of one size but for the last,
        which is left out if it is of one sample ("precise BN": Wu and Johnson 2021, arXiv 2105.07576). Everything else
        is in evaluation mode, and so is the network at the end. Raises ConfigError without batches of two samples.
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
                "recalibrate: expected batches of two training samples at least, got none. Set a larger `batch_size`."
            )
        return len(norms)
