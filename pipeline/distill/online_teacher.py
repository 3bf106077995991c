"""A teacher network that runs in every training step, instead of stored scores."""

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
    """A teacher's outputs for a batch: logits float32 (n, classes), and {hint: rows}."""

    logits: Tensor
    hints: Mapping[str, Tensor]


class OnlineTeacher:
    """A frozen network, in evaluation mode and float32, that runs on the student's images.

    columns: its outputs for the student's classes, in their order; None: all. hints: {hint: node}. inputs: the
    student's.

    Raises TrainingError if its preprocessing differs from the student's in more than mean and deviation, and
    BackboneError for nodes that do not exist.
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
            title = "`teacher_outputs: online`: expected a student with its teacher's preprocessing, got another. "
            raise TrainingError(bullets(f"{title}Use stored scores, or give both the same `input`", different))
        named = {name: TapSpec(node=node) for name, node in (hints or {}).items()}
        self._nodes = {**resolve(named, spec, where="teacher_outputs: online"), LOGITS: TapSpec(node=LOGITS)}
        self._taps = spec.taps
        self.architecture = spec.architecture
        self._network = teacher.module.eval().requires_grad_(requires_grad=False)
        self._columns = None if columns is None else torch.tensor(columns)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
        teacher_mean, teacher_std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (spec.input.mean, spec.input.std)
        )
        # Convert between normalisations: x' = (x std + mean - mean') / std'. Exact if both are equal.
        self._factor, self._shift = std / teacher_std, (mean - teacher_mean) / teacher_std

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a function of `nn.Module._apply` to all tensors, such as a move to a device."""
        self._network._apply(change)  # type: ignore[no-untyped-call]
        self._factor, self._shift = change(self._factor), change(self._shift)
        self._columns = None if self._columns is None else change(self._columns)

    def __deepcopy__(self, _memo: object) -> "OnlineTeacher":
        """Return the teacher itself: copies of a student, such as its moving average, share it."""
        return self

    def __call__(self, images: Tensor) -> TeacherOutput:
        """Run the teacher on images as the student gets them, float32 (n, channels, height, width)."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            inputs = images * self._factor + self._shift
            hints = {
                name: value.float() for name, value in collect(self._network, inputs, self._nodes, self._taps).items()
            }
        logits = hints.pop(LOGITS)
        return TeacherOutput(logits if self._columns is None else logits[:, self._columns], hints)
