"""A node of the student beside a node of its teacher: whether they can be compared, and in which shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.backbones.spec import BackboneSpec, Tap
from pipeline.training.knowledge import LossesConfig


@dataclass(frozen=True)
class Pair:
    """Two nodes that are compared.

    `node`: of the student. `hint`: the teacher's, by its name. `form`: vectors (n, d), maps (n, c, *size), or rows of
    any shape made flat.
    """

    node: str
    hint: str
    student: Tap
    teacher: Tap
    form: Literal["vector", "map", "flat"]
    size: tuple[int, ...] = ()
    projected: bool = False

    def of_student(self, rows: Tensor) -> Tensor:
        """The student's rows (n, *its shape) in the form."""
        raise NotImplementedError

    def of_teacher(self, rows: Tensor) -> Tensor:
        """The teacher's rows (n, *its shape) in the form."""
        raise NotImplementedError


def pairs_of(losses: LossesConfig, spec: BackboneSpec, hints: Mapping[str, Tap]) -> dict[str, Pair]:
    """The pairs that losses compare, by the names of the losses: `hints.0`, `attention.1`, `relational`.

    `spec`: the student's; `hints`: the teacher's nodes whose rows there are, by name. Raises TrainingError with all
    nodes and hints that do not exist and all pairs whose shapes cannot be compared.
    """
    raise NotImplementedError
