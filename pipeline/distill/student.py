"""The student: a network, what is taken out of it to be like a teacher's, and learned projections of that."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.backbones.hooks import INPUT, observe
from pipeline.backbones.spec import BackboneSpec
from pipeline.distill.feature_pairs import FeaturePair
from pipeline.distill.online_teacher import OnlineTeacher, TeacherOutput
from pipeline.errors import TrainingError


class Output(NamedTuple):
    """Of a batch in training: logits (n, classes), the student's rows by the names of pairs, what a live teacher says.

    Fabric looks into tuples and dicts for tensors, and not into frozen dataclasses.
    """

    logits: Tensor
    rows: Mapping[str, Tensor]
    teacher: TeacherOutput | None


class Student(nn.Module):
    """In training images to `Output`, in evaluation to logits.

    `network` is trained as `Frozen` says and is all that is kept in the end. The projections (`seed`: of their weights)
    are trained beside it and go with it into checkpoints. `live` is in no checkpoint: it never changes.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: BackboneSpec,
        pairs: Mapping[str, FeaturePair],
        *,
        online: OnlineTeacher | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.pairs, self.online = network, dict(pairs), online
        self._taps = {pair.node: spec.taps[pair.node] for pair in pairs.values()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Names of modules have no dots.
            projections = {_module(name): pair.projection() for name, pair in pairs.items() if pair.projected}
        self.projections = nn.ModuleDict(projections)

    def forward(self, images: Tensor) -> Output | Tensor:
        """Run the network on images float32 (n, channels, height, width).

        Raises TrainingError if a node does not run in training, or has another shape there.
        """
        if not self.training:
            logits: Tensor = self.network(images)
            return logits
        teacher = None if self.online is None else self.online(images)
        values = {INPUT: images}

        def keep(node: str, value: Tensor) -> None:
            values[node] = value.clone()  # before the network overwrites it

        with observe(self.network, keep, {node: tap for node, tap in self._taps.items() if node != INPUT}):
            logits = self.network(images)
        return Output(logits, {name: self._row(name, pair, values) for name, pair in self.pairs.items()}, teacher)

    def _row(self, name: str, pair: FeaturePair, values: Mapping[str, Tensor]) -> Tensor:
        shape = tuple(values[pair.node].shape[1:]) if pair.node in values else None
        if shape != pair.student.shape:
            raise TrainingError(
                f"{name}: expected {pair.node!r} of the shape {pair.student.shape} in training as in evaluation, got "
                f"{'nothing' if shape is None else shape}. Choose another node of the student."
            )
        rows = pair.of_student(values[pair.node])
        if not pair.projected:
            return rows
        projected: Tensor = self.projections[_module(name)](rows)
        return projected

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.online is not None:
            self.online.move(fn)
        return self


def _module(name: str) -> str:
    return name.replace(".", "_")
