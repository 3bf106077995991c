"""Build the network of a run: pretrained or new weights, with a new classifier or a fitted head.

Linear probing, then fine-tuning (Kumar et al. 2022): the head is the convex solution on stored features, merged with
its scaler into a layer.
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
    """Build a copy of a network with a new classifier; return it, and the architecture that rebuilds it.

    start: `scratch` for new weights, else the source's weights are used. seed: of all new weights. head: initialises
    the classifier; a probe does so later, since it is fitted to outputs of the network.
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
