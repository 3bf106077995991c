"""The student: a network, what is taken out of it for a teacher's hints, and learned projections of that."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from pipeline.backbones.spec import BackboneSpec
from pipeline.training.live import Live, Told
from pipeline.training.pairs import Pair


class Output(NamedTuple):
    """Of a batch in training: logits (n, classes), the student's rows by the names of pairs, what a live teacher says.

    Fabric looks into tuples and dicts for tensors, and not into frozen dataclasses.
    """

    logits: Tensor
    rows: Mapping[str, Tensor]
    teacher: Told | None


class Student(nn.Module):
    """In training images to `Output`, in evaluation to logits.

    `network` is trained as `Frozen` says and saved alone; the projections (`seed`: of their weights) are trained beside
    it and go with it into checkpoints. `live` is in no state and no list of parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: BackboneSpec,
        pairs: Mapping[str, Pair],
        *,
        live: Live | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        raise NotImplementedError
