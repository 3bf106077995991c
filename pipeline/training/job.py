"""A network that is about to be trained, and the versions that shape the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.backbones.probe import packages_of
from pipeline.runtime import versions
from pipeline.training.classifier_init import Probe
from pipeline.training.data import Samples
from pipeline.training.freezing import TrainableParts
from pipeline.training.loop import TrainContext
from pipeline.training.targets import Targets


@dataclass(frozen=True)
class TrainingJob:
    """A network that is about to be trained on one training set, and all that shapes the result."""

    network: nn.Module
    module: nn.Module
    """What of it runs on a batch."""

    architecture: dict[str, Any]
    frozen: TrainableParts
    setting: TrainContext
    targets: Targets
    samples: Samples
    validation: Samples | None
    made_from: dict[str, Any]
    probes: Sequence[Probe] = ()
    """As which the classifier starts, one per task; none where it starts otherwise."""


def packages(*architectures: Mapping[str, Any], from_pixels: bool, probe: bool) -> dict[str, str]:
    """Return the versions of what a training runs: the networks, what decodes pixels, what fits a probe."""
    more = [name for name, there in (("pillow", from_pixels), ("scikit-learn", probe), ("scipy", probe)) if there]
    networks = dict.fromkeys(name for one in architectures for name in packages_of(one))
    return versions(*networks, "lightning-fabric", "numpy", *more)
