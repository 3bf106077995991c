"""The network of another run as the start of one: its weights, and its classifier with the classes of the task.

So a student that was distilled without labels is fine-tuned on the labelled target.
"""

from pathlib import Path

import torch

from pipeline.backbones import serialization
from pipeline.backbones.classifier import last_layer
from pipeline.backbones.serialization import Backbone
from pipeline.errors import TrainingError
from pipeline.files import read_json, sha256_file
from pipeline.task import Task


def has_network(run: Path) -> bool:
    """Whether a run left a network, and not heads."""
    return (run / "backbone" / serialization.JSON).is_file()


def continued(run: Path, task: Task, *, path: Path) -> Backbone:
    """The network of a run of `finetune` or `distill`, its outputs the classes of a task, in their order.

    path: that of the task. Of several tasks the student's outputs for this one are kept. Raises TrainingError for a run
    on other tasks: rows that it trained on could be test rows of this one.
    """
    made = read_json(run / "model.json")
    known = [made["task"], *made.get("also", [])]
    if sha256_file(path) not in [one["sha256"] for one in known]:
        told = ", ".join(one["name"] for one in known)
        raise TrainingError(
            f"{run}: expected a run on the task {path.stem} as it is now, got one on {told}. Run `dvc repro`, or "
            f"freeze {run / 'backbone'} (`source: folder`) and start from that backbone."
        )
    source = serialization.read(run / "backbone")
    if task.kind == "regression":
        return source
    names = [f"{path.stem}:{name}" for name in task.classes] if made.get("also") else list(task.classes)
    rows = torch.tensor([source.spec.classes.index(name) for name in names])
    architecture = {**source.spec.architecture, "classes": len(rows)}
    network = serialization.build(architecture)
    last = last_layer(network, architecture)
    (prefix,) = (name for name, part in network.named_modules() if part is last)
    own = {f"{prefix}.weight", f"{prefix}.bias"}
    state = {name: value[rows] if name in own else value for name, value in source.module.state_dict().items()}
    serialization.load_state(network, state, where=str(run))
    spec = source.spec.model_copy(update={"architecture": architecture, "classes": tuple(task.classes)})
    return Backbone(spec, serialization.freeze(network))
