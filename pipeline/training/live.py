"""A teacher's network that runs in every step: what stored scores are compared with."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from pipeline.backbones.artefact import Backbone
from pipeline.backbones.spec import InputSpec


class Told(NamedTuple):
    """What a teacher says of a batch: logits float32 (n, classes), and rows of its nodes by the names of the hints."""

    logits: Tensor
    hints: Mapping[str, Tensor]


class Live:
    """A frozen network, in evaluation mode and float32, on the images that the student gets.

    `columns`: which of its outputs stand for the student's classes, in their order; None: as they are. `hints`: its
    nodes by the names of the hints. `inputs`: the student's.

    Raises TrainingError if it reads images otherwise than the student does, mean and std excepted, and BackboneError
    for nodes that it does not have.
    """

    def __init__(
        self,
        teacher: Backbone,
        inputs: InputSpec,
        *,
        columns: Sequence[int] | None = None,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Told:
        """Images as the student gets them, float32 (n, channels, height, width)."""
        raise NotImplementedError
