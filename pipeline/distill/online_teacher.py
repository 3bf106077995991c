"""A teacher's network that runs in every step: what stored scores are compared with."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.backbones.hooks import LOGITS, collect
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import InputSpec, TapSpec, resolve
from pipeline.errors import TrainingError, bullets
from pipeline.readers.image import ImageReader
from pipeline.store.identity import differences


class TeacherOutput(NamedTuple):
    """What a teacher says of a batch: logits float32 (n, classes), and rows of its nodes by the names of the hints."""

    logits: Tensor
    hints: Mapping[str, Tensor]


class OnlineTeacher:
    """A frozen network, in evaluation mode and float32, on the images that the student gets.

    `columns`: which of its outputs stand for the student's classes, in their order; None: as they are. `hints`: its
    nodes by the names of the hints. `inputs`: the student's.

    Raises TrainingError if it reads images otherwise than the student does, mean and deviation excepted, and
    BackboneError for nodes that it does not have.
    """

    def __init__(
        self,
        teacher: Backbone,
        inputs: InputSpec,
        *,
        columns: Sequence[int] | None = None,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        spec = teacher.spec
        own, wanted = (dict(ImageReader(spec_of_input.image).identity) for spec_of_input in (inputs, spec.input))
        if different := differences(wanted, own):
            title = "`teacher_outputs: online`: expected a student that reads images as its teacher does, got another. "
            raise TrainingError(bullets(f"{title}Use stored scores, or give both one input", different))
        named = {name: TapSpec(node=node) for name, node in (hints or {}).items()}
        self._nodes = {**resolve(named, spec, where="teacher_outputs: online"), LOGITS: TapSpec(node=LOGITS)}
        self._taps = spec.taps
        self.architecture = spec.architecture
        self._network = teacher.module.eval().requires_grad_(requires_grad=False)
        self._columns = None if columns is None else torch.tensor(columns)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
        its_mean, its_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.input.mean, spec.input.std))
        # One image from the other: x' = (x std + mean - mean') / std'. Exactly the same where both are equal.
        self._factor, self._shift = std / its_std, (mean - its_mean) / its_std

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Do with all tensors what a module around this does with its own: move them to a device."""
        self._network._apply(change)  # type: ignore[no-untyped-call]
        self._factor, self._shift = change(self._factor), change(self._shift)
        self._columns = None if self._columns is None else change(self._columns)

    def __deepcopy__(self, _memo: object) -> "OnlineTeacher":
        """Return the teacher itself: copies of a student, such as the average of its weights, need no second one."""
        return self

    def __call__(self, images: Tensor) -> TeacherOutput:
        """Run the teacher on images as the student gets them, float32 (n, channels, height, width)."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            its = images * self._factor + self._shift
            hints = {
                name: value.float() for name, value in collect(self._network, its, self._nodes, self._taps).items()
            }
        logits = hints.pop(LOGITS)
        return TeacherOutput(logits if self._columns is None else logits[:, self._columns], hints)
