"""icecore: features of any layer of a frozen network, computed once and reused.

    Backbone         a frozen network with its preprocessing; `embed` returns features of a folder or of images
    Features         stored features, with the path and the class of each row
    FrozenFeatures   a scikit-learn transformer from images to features
    evaluate         choose a head on held-out rows and measure it on test rows; returns an Evaluation
    load             load a run of a project as a TrainedModel, which predicts images
    PipelineError    base class of all errors with a message for users

Importing this module is fast: each public name is imported when it is first used.

>>> import icecore
>>> "Backbone" in icecore.__all__
True
"""

import importlib
from typing import TYPE_CHECKING, Any

from pipeline import __version__

if TYPE_CHECKING:
    from pipeline.errors import PipelineError
    from pipeline.inference.backbone import Backbone
    from pipeline.inference.evaluation import Evaluation, evaluate
    from pipeline.inference.frozen_features import FrozenFeatures
    from pipeline.inference.trained_model import TrainedModel, load
    from pipeline.store.features import Features

__all__ = [
    "Backbone",
    "Evaluation",
    "Features",
    "FrozenFeatures",
    "PipelineError",
    "TrainedModel",
    "__version__",
    "evaluate",
    "load",
]

_MODULES = {
    "Backbone": "pipeline.inference.backbone",
    "Evaluation": "pipeline.inference.evaluation",
    "Features": "pipeline.store.features",
    "FrozenFeatures": "pipeline.inference.frozen_features",
    "PipelineError": "pipeline.errors",
    "TrainedModel": "pipeline.inference.trained_model",
    "evaluate": "pipeline.inference.evaluation",
    "load": "pipeline.inference.trained_model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'icecore' has no attribute {name!r}. It has {', '.join(_MODULES)}.")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, including names that are not imported yet."""
    return sorted({*globals(), *__all__})
