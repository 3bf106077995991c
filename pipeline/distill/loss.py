"""The loss of a student: the weighted sum of the loss of labels and the losses of teachers' outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.distill import kd_losses
from pipeline.distill.feature_pairs import FeaturePair
from pipeline.distill.losses_config import LossesConfig, at
from pipeline.distill.online_teacher import TeacherOutput
from pipeline.distill.student import Output
from pipeline.distill.targets import DistillTargets
from pipeline.errors import TrainingError
from pipeline.task import Kind
from pipeline.training.losses import SupervisedLoss

RELATIONS = {"relational.distance": kd_losses.distance, "relational.angle": kd_losses.angle}
NODES = {"hints": kd_losses.hint, "attention": kd_losses.attention}


@dataclass(frozen=True)
class OutputSlice:
    """The outputs of a student for a task: the columns from `start` up to, not including, `stop`."""

    task: str
    kind: Kind
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        """Return the columns of logits (n, outputs)."""
        return slice(self.start, self.stop)


class DistillationLoss:
    """A `losses.Objective` of `Output` and `DistillTargets`; validation measures the first branch by its labels.

    The loss of a row is the weighted sum over losses and branches. The loss of labels is zero for rows with label -1,
    and a teacher's losses are zero for rows without its scores; the mean over a batch is always over all rows. Hints
    are those of the first branch's teacher. The target class of decoupled distillation is the label of a row, or the
    teacher's top class for rows without a label.

    `pairs`: those of `pairs_of`. `weights`: of classes, by task, as `class_weights` gives them.

    Raises TrainingError for a regression, and for decoupled distillation of a multilabel branch.
    """

    def __init__(
        self,
        branches: Sequence[OutputSlice],
        losses: LossesConfig,
        pairs: Mapping[str, FeaturePair],
        *,
        label_smoothing: float = 0.0,
        weights: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        _refuse_kinds(branches, losses)
        self.branches, self.losses, self.pairs = tuple(branches), losses, dict(pairs)
        self.outputs = max(branch.stop for branch in branches)
        self._of_labels = [
            SupervisedLoss(
                branch.kind,
                branch.stop - branch.start,
                label_smoothing=label_smoothing,
                weights=(weights or {}).get(branch.task),
            )
            for branch in branches
        ]
        self._share = 0.0

    @property
    def kind(self) -> Kind:
        """Return the kind of the first branch."""
        return self.branches[0].kind

    def advance(self, share: float) -> None:
        """Set the progress of training, from 0 at its first step to 1 at its last, on which weights depend."""
        self._share = share

    def __call__(self, output: Output, targets: DistillTargets) -> Tensor:
        """Return the loss of each row, (n,), with the present weights.

        Raises TrainingError if a loss needs an output that no teacher has.
        """
        teacher = TeacherOutput(targets.logits, targets.hints) if output.teacher is None else output.teacher
        known = targets.known if output.teacher is None else torch.ones_like(targets.known)
        self._refuse_missing(teacher)
        total = torch.zeros(len(targets), device=output.logits.device)
        for name, weight in self.losses.active.items():
            if name == "labels":
                losses = self._sum(lambda place: self._labels(place, output.logits, targets))
            elif name == "soft":
                losses = self._sum(lambda place: self._soft(place, output.logits, teacher.logits, known))
            elif name == "decoupled":
                losses = self._sum(lambda place: self._decoupled(place, output.logits, teacher.logits, known, targets))
            else:
                losses = self._compare(name, output, teacher, known[:, 0])
            total = total + at(weight, self._share) * losses
        return total

    def plain(self, logits: Tensor, targets: DistillTargets) -> Tensor:
        """Return the loss of each row by its label in the first branch, (n,), for validation.

        Raises TrainingError for rows without a label.
        """
        missing = int((targets.labels[:, 0] < 0).sum())
        if missing:
            raise TrainingError(
                f"validation: expected a label of each row in {self.branches[0].task!r}, got {missing} rows without. "
                "Validate on labelled rows."
            )
        return self._of_labels[0].plain(logits[:, self.branches[0].columns], self._targets(0, targets))

    def right(self, logits: Tensor, targets: DistillTargets) -> Tensor:
        """Return which rows are right in the first branch, bool (n,)."""
        return self._of_labels[0].right(logits[:, self.branches[0].columns], self._targets(0, targets))

    def check(self, targets: DistillTargets, *, where: str) -> None:
        """Raise TrainingError for labels that the network has no output for."""
        for number, branch in enumerate(self.branches):
            labels = targets.labels[:, number]
            own = f"{where}, {branch.task}" if len(self.branches) > 1 else where
            self._of_labels[number].check(labels[labels >= 0], where=own)

    def _sum(self, loss: Callable[[int], Tensor]) -> Tensor:
        """Sum a loss of logits over all branches."""
        return torch.stack([loss(number) for number in range(len(self.branches))]).sum(dim=0)

    def _targets(self, number: int, targets: DistillTargets) -> Tensor:
        """Return the labels of a branch in the form of its kind; the first class for rows without a label."""
        branch = self.branches[number]
        if branch.kind == "classification":
            return targets.labels[:, number].clamp(min=0)
        if targets.truth is None or targets.truth.shape[1] != self.outputs:
            raise TrainingError(
                f"{branch.task}: expected the classes of each row, float32 (n, {self.outputs}), of a multilabel task, "
                f"got {'none' if targets.truth is None else tuple(targets.truth.shape)}. Give `truth` with the signals."
            )
        return targets.truth[:, branch.columns]

    def _labels(self, number: int, logits: Tensor, targets: DistillTargets) -> Tensor:
        own = logits[:, self.branches[number].columns]
        losses = self._of_labels[number](own, self._targets(number, targets))
        return torch.where(targets.labels[:, number] >= 0, losses, 0.0)

    def _soft(self, number: int, logits: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
        branch, config = self.branches[number], self.losses.soft
        assert config is not None, "it is active"
        loss = kd_losses.soft if branch.kind == "classification" else kd_losses.soft_binary
        losses = loss(logits[:, branch.columns], teacher[:, branch.columns], temperature=config.temperature)
        return torch.where(known[:, number], losses, 0.0)

    def _decoupled(
        self, number: int, logits: Tensor, teacher: Tensor, known: Tensor, targets: DistillTargets
    ) -> Tensor:
        branch, config = self.branches[number], self.losses.decoupled
        assert config is not None, "it is active"
        own, wanted, labels = logits[:, branch.columns], teacher[:, branch.columns], targets.labels[:, number]
        losses = kd_losses.decoupled(
            own,
            wanted,
            torch.where(labels >= 0, labels, wanted.argmax(dim=1)),
            temperature=config.temperature,
            alpha=config.alpha,
            beta=config.beta,
        )
        return torch.where(known[:, number], losses, 0.0)

    def _compare(self, name: str, output: Output, teacher_output: TeacherOutput, known: Tensor) -> Tensor:
        """Compute a loss of the nodes of a pair."""
        own = name if name in self.pairs else "relational"
        pair = self.pairs[own]
        student, teacher = output.rows[own], pair.of_teacher(teacher_output.hints[pair.hint])
        if own == "relational":
            return RELATIONS[name](student, teacher, known)
        return torch.where(known, NODES[name.partition(".")[0]](student, teacher), 0.0)

    def _refuse_missing(self, teacher: TeacherOutput) -> None:
        of_logits = [name for name in ("soft", "decoupled") if name in self.losses.active]
        if of_logits and teacher.logits.shape[1] != self.outputs:
            raise TrainingError(
                f"{' and '.join(of_logits)}: expected a teacher's logits of {self.outputs} classes, got "
                f"{teacher.logits.shape[1] or 'none'}. Give the run a `teacher` of its classes, or leave the loss out."
            )
        lost = {name: pair.hint for name, pair in self.pairs.items() if pair.hint not in teacher.hints}
        for name, hint in lost.items():
            raise TrainingError(
                f"{name}: expected the teacher's rows of {hint!r}, got {', '.join(teacher.hints) or 'none'}. Add it to "
                "the `hints` of the teacher, or leave the loss out."
            )


def _refuse_kinds(branches: Sequence[OutputSlice], losses: LossesConfig) -> None:
    for branch in branches:
        if branch.kind == "regression":
            raise TrainingError(
                f"{branch.task}: expected classes to distil, got a regression. Fine-tune the student with its targets."
            )
        if branch.kind == "multilabel" and losses.decoupled is not None:
            raise TrainingError(
                f"{branch.task}: expected one target class per row for `decoupled`, got a multilabel task. Take `soft`."
            )
