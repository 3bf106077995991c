"""Settings of a training that would change nothing, or that do not suit a task. Values only, no torch.

Each is returned as a line that begins with the setting and ends with what to do.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.task import Kind

if TYPE_CHECKING:
    from pipeline.training.config import DistillConfig, FinetuneConfig, LoopConfig, RunConfig

OF_SCHEDULES = {
    "milestones": ("step",),
    "decay": ("step", "plateau"),
    "plateau": ("plateau",),
    "warmup": ("cosine", "step", "plateau", "constant"),
}
"""The schedules that each setting belongs to."""


def idle_settings(config: "LoopConfig") -> Iterator[str]:
    """Yield the settings of the loop that no other setting gives an effect."""
    stated = config.model_fields_set
    if config.optimiser == "adamw" and "momentum" in stated:
        yield "`momentum` belongs to `optimiser: sgd`, adamw has its own: leave it out"
    for name, schedules in OF_SCHEDULES.items():
        if name in stated and config.schedule not in schedules:
            yield f"`{name}` belongs to `schedule: {' or '.join(schedules)}`, got {config.schedule}: leave it out"
    watched = config.schedule == "plateau" or config.weights == "best" or config.patience is not None
    if config.monitor == "accuracy" and not watched:
        yield "nothing looks at `monitor` where the last weights are kept: leave it out"


def idle_in_run(config: "RunConfig") -> Iterator[str]:
    """Yield the settings of a run's training sets that have no effect."""
    if config.draws > 1 and not config.labels_per_class:
        yield "`draws` are of few labels: expected `labels_per_class` with it, or leave it out"


def idle_in_finetuning(config: "FinetuneConfig") -> Iterator[str]:
    """Yield the settings of fine-tuning that nothing follows from."""
    yield from _idle_init(config)
    late = sorted(epoch for epoch in config.unfreeze if epoch >= config.epochs)
    if late:
        last = config.epochs - 1
        yield f"`unfreeze` from epoch {late[0]} on never happens: expected at most {last}, the last of `epochs`, from 0"
    if config.unfreeze and config.input == "pixels" and config.train in (None, "full"):
        yield "`unfreeze` has nothing to add where all is trained: expected `train` with less, such as `train: head`"


def idle_in_distillation(config: "DistillConfig") -> Iterator[str]:
    """Yield the settings of distillation that nothing follows from."""
    yield from _idle_init(config)
    if config.unlabelled and not config.labels_per_class:
        yield "`unlabelled` adds the rows that `labels_per_class` leaves out: expected both, or leave it out"
    losses = config.losses
    idle = {name for name in losses.weights if name != "labels" and name not in losses.active}
    if not {"relational.distance", "relational.angle"} <= idle:  # one of the two may be off
        idle -= {"relational.distance", "relational.angle"}
    if losses.decoupled is not None and not losses.decoupled.alpha and not losses.decoupled.beta:
        idle.add("decoupled")
    for name in sorted(idle):
        yield f"`losses.{name}` has no weight: expected one above 0, or leave it out"


def _idle_init(config: "FinetuneConfig | DistillConfig") -> Iterator[str]:
    if "init" in config.classifier.model_fields_set and config.classifier.init == "probe" and config.start == "scratch":
        yield "`classifier: {init: probe}` belongs to `start: backbone`, got scratch: leave it out"


def unsuited(config: "LoopConfig", kind: Kind, *, validation: bool) -> Iterator[str]:
    """Yield the settings that do not suit a task of a kind; `validation`: whether the task has such rows."""
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
                yield f"{name}: expected none for a {kind}: it mixes images of two classes. Leave it out."
    if not validation:
        asked = {
            "patience": config.patience is not None,
            "schedule: plateau": config.schedule == "plateau",
            "weights: best": config.weights == "best" and "weights" in config.model_fields_set,
            "monitor": config.monitor == "accuracy",
        }
        for name in (name for name, given in asked.items() if given):
            yield f"{name}: expected a task with validation rows, got one without. Give it some, or leave this out."
