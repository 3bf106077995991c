"""The job of a training set, the paths of its run, and the versions of packages that influence the result."""

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
    """The paths that fine-tuning and distillation share."""

    manifests: Path
    model: Path
    predictions: Path
    curves: Path
    cache: Path


@dataclass(frozen=True)
class TrainingJob:
    """A network to train on a training set, with everything that influences the result.

    head, input: names of the network and its inputs in the predictions.
    """

    head: str
    input: str
    training: Training
    network: nn.Module
    module: nn.Module
    """The module that runs on a batch: the network, its tail, or a module around it."""

    architecture: dict[str, Any]
    trainable: TrainableParts
    context: TrainContext
    targets: Targets
    samples: Samples
    validation: Samples | None
    made_from: dict[str, Any]
    probes: Sequence[Probe] = ()
    """The heads that initialise the classifier, one per task; empty for other initialisations."""

    counts: Mapping[str, Any] = field(default_factory=dict)
    """Further counts in the record of a training set, besides its labelled rows."""


def packages(*architectures: Mapping[str, Any], from_pixels: bool, probe: bool) -> dict[str, str]:
    """Return the versions of the packages that a training uses: for networks, decoding and probes."""
    more = [name for name, used in (("pillow", from_pixels), ("scikit-learn", probe), ("scipy", probe)) if used]
    networks = dict.fromkeys(name for architecture in architectures for name in packages_of(architecture))
    return versions(*networks, "lightning-fabric", "numpy", *more)
