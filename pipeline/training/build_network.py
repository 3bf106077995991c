"""What a network begins with: the weights of a backbone or none, a new classifier or a head that `fit` found.

Linear probing, then fine-tuning (Kumar et al. 2022): the head is the convex solution on stored features, folded with
its scaler into one layer.
"""

from typing import Any

import torch
from torch import nn

from pipeline.backbones import serialization
from pipeline.backbones.replace_classifier import init_from_linear, replace_classifier
from pipeline.backbones.serialization import Backbone
from pipeline.training.config import SCRATCH, ClassifierConfig


def build_network(
    source: Backbone,
    *,
    start: str,
    classifier: ClassifierConfig,
    seed: int,
    classes: int,
    head: nn.Linear | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a copy of a network with a new classifier; return it, and the architecture that builds it again.

    `start`: `scratch` for new weights, else those of the source. All that is new is drawn from the seed. `head`: what
    the classifier starts from; a probe takes its place later, since it is fitted to what the network computes.
    """
    torch.manual_seed(seed)
    network = serialization.build(source.spec.architecture)
    if start != SCRATCH:
        serialization.load_state(network, source.module.state_dict(), where="start")
    network, architecture = replace_classifier(
        source.spec, network, classes=classes, **classifier.model_dump(exclude={"init"}, exclude_none=True)
    )
    if head is not None:
        init_from_linear(network, architecture, head)
    return network, architecture
