"""Training settings without effect, or unsuitable for a task. Values only, without torch.

Each problem is a line that begins with the setting and ends with advice.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.task import Kind

if TYPE_CHECKING:
    from pipeline.training.config import ClassifierConfig, LoopConfig, RunConfig

OF_SCHEDULES = {
    "warmup": ("cosine", "step", "plateau", "constant"),
}
"""{setting: schedules that use it}."""


def idle_settings(config: "LoopConfig") -> Iterator[str]:
    """Yield the settings of the loop that have no effect with the other settings."""
    stated = config.model_fields_set
    if config.optimiser == "adamw" and "momentum" in stated:
        yield "`momentum` belongs to `optimiser: sgd`, adamw has its own: leave it out"
    for name, schedules in OF_SCHEDULES.items():
        if name in stated and config.schedule not in schedules:
            yield f"`{name}` belongs to `schedule: {' or '.join(schedules)}`, got {config.schedule}: leave it out"
    watched = config.schedule == "plateau" or config.weights == "best" or config.patience is not None
    if config.monitor == "accuracy" and not watched:
        yield "`monitor` has no effect when the last weights are saved: leave it out"


def idle_in_run(config: "RunConfig") -> Iterator[str]:
    """Yield the settings of a run's training sets that have no effect."""
    if config.draws > 1 and not config.labels_per_class:
        yield "`draws` need `labels_per_class`: set it, or leave `draws` out"


def idle_init(classifier: "ClassifierConfig", start: str) -> Iterator[str]:
    """Yield a problem if the classifier cannot start as a probe, because the network has new weights."""
    if "init" in classifier.model_fields_set and classifier.init == "probe" and start == "scratch":
        yield "`classifier: {init: probe}` belongs to `start: backbone`, got scratch: leave it out"


def unsuited(config: "LoopConfig", kind: Kind, *, validation: bool) -> Iterator[str]:
    """Yield the problems of the settings for a kind of task; `validation`: whether it has validation rows."""
    if kind == "regression":
        if config.label_smoothing:
            yield "label_smoothing: expected none for a regression, which has no classes. Leave it out."
        if config.class_weights != "none":
            yield "class_weights: expected none for a regression, which has no classes. Leave it out."
        if config.monitor == "accuracy":
            yield "monitor: expected loss for a regression, which has no accuracy, got accuracy. Leave it out."
    if kind != "classification":
        for name in ("mixup", "cutmix"):
            if getattr(config, name):
                yield f"{name}: expected none for a {kind}, since it mixes images of two classes. Leave it out."
    if not validation:
        asked = {
            "patience": config.patience is not None,
            "schedule: plateau": config.schedule == "plateau",
            "weights: best": config.weights == "best" and "weights" in config.model_fields_set,
            "monitor": config.monitor == "accuracy",
        }
        for name in (name for name, given in asked.items() if given):
            yield f"{name}: expected a task with validation rows, got none. Set its `sizes`, or leave this out."
