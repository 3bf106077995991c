"""What a student minimises: the labels' loss and those that a teacher's signals give, each with its weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.task import Kind
from pipeline.training.knowledge import LossesConfig
from pipeline.training.pairs import Pair
from pipeline.training.signals import Signals
from pipeline.training.student import Output


@dataclass(frozen=True)
class Branch:
    """A task of a student: the columns of its outputs from `start` to before `stop`."""

    task: str
    kind: Kind
    start: int
    stop: int


class Distillation:
    """An objective (`losses.Goal`) of `Output` and `Signals`; validation measures the first branch by its labels.

    `weights`: of classes, by task, as `class_weights` gives them. Hints are of the teacher of the first branch.

    Raises TrainingError for decoupled distillation of a multilabel branch, and for a regression.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        losses: LossesConfig,
        pairs: Mapping[str, Pair],
        *,
        label_smoothing: float = 0.0,
        weights: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        raise NotImplementedError

    def __call__(self, output: Output, signals: Signals) -> Tensor:
        """The loss of each row, (n,), with the weights of now."""
        raise NotImplementedError
