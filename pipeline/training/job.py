"""The job of one training set, the paths of its run, and the versions that shape the result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import files
from pipeline.backbones.reference_output import packages_of
from pipeline.runtime import versions
from pipeline.task import Training
from pipeline.training.data import Samples
from pipeline.training.freezing import TrainableParts
from pipeline.training.linear_probe import Probe
from pipeline.training.loop import TrainContext
from pipeline.training.targets import Targets


@dataclass(frozen=True)
class RunPaths(files.Paths):
    """What fine-tuning and distillation both read and write."""

    manifests: Path
    model: Path
    predictions: Path
    curves: Path
    cache: Path


@dataclass(frozen=True)
class TrainingJob:
    """A network that is about to be trained on one training set, and all that shapes the result.

    head, input: what predictions call the network and its inputs.
    """

    head: str
    input: str
    training: Training
    network: nn.Module
    module: nn.Module
    """The part of the network, or the module around it, that runs on a batch."""

    architecture: dict[str, Any]
    trainable: TrainableParts
    context: TrainContext
    targets: Targets
    samples: Samples
    validation: Samples | None
    made_from: dict[str, Any]
    probes: Sequence[Probe] = ()
    """The heads that the classifier starts as, one per task; none where it starts otherwise."""

    counts: Mapping[str, Any] = field(default_factory=dict)
    """What the record of a training set counts besides its labelled rows."""


def packages(*architectures: Mapping[str, Any], from_pixels: bool, probe: bool) -> dict[str, str]:
    """Return the versions of what a training runs: the networks, what decodes pixels, what fits a probe."""
    more = [name for name, there in (("pillow", from_pixels), ("scikit-learn", probe), ("scipy", probe)) if there]
    networks = dict.fromkeys(name for architecture in architectures for name in packages_of(architecture))
    return versions(*networks, "lightning-fabric", "numpy", *more)
