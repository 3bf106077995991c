"""The network of another run as the start of one: its weights, and its classifier with the classes of the task.

So a student that was distilled without labels is fine-tuned on the labelled target.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.backbones import serialization
from pipeline.backbones.classifier import last_layer, linear_of
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import HeadError, TrainingError
from pipeline.files import read_json, sha256_file
from pipeline.heads import saved
from pipeline.task import Kind, Task


def has_network(run: Path) -> bool:
    """Whether a run left a network, and not heads."""
    return (run / "backbone" / serialization.JSON).is_file()


def network_of_run(run: Path, task: Task, *, path: Path) -> Backbone:
    """The network of a run of `finetune` or `distill`, its outputs the classes of a task, in their order.

    path: that of the task. Of several tasks the student's outputs for this one are kept. Raises TrainingError for a run
    on other tasks: rows that it trained on could be test rows of this one.
    """
    made = read_json(run / "model.json")
    known = [made["task"], *made.get("extra_tasks", [])]
    if sha256_file(path) not in [one["sha256"] for one in known]:
        told = ", ".join(one["name"] for one in known)
        raise TrainingError(
            f"{run}: expected a run on the task {path.stem} as it is now, got one on {told}. Run `dvc repro`, or "
            f"freeze {run / 'backbone'} (`source: folder`) and start from that backbone."
        )
    source = serialization.read(run / "backbone")
    if task.kind == "regression":
        return source
    names = [f"{path.stem}:{name}" for name in task.classes] if made.get("extra_tasks") else list(task.classes)
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


def fitted_head(
    run: Path, *, labels: int | None, draw: int | None, spec: BackboneSpec, classes: Sequence[str], kind: Kind
) -> tuple[nn.Linear, str]:
    """The head that a run fitted to the same training set, as one layer, and the digest of its file.

    Of a run that was refitted the head from before.

    Raises HeadError where the run has no such head on the backbone's last features, or one that saw validation rows.
    """
    if not (run / "model.json").is_file():
        raise HeadError(f"{run}: expected a run's folder with model.json, got none. Run `dvc repro fit@{run.name}`.")
    made = read_json(run / "model.json")
    learnt = made["task"]
    if learnt["kind"] != kind or learnt["classes"] != list(classes):
        different = ", ".join(sorted(set(learnt["classes"]) ^ set(classes))[:12])
        raise HeadError(
            f"{run}: expected a head of a {kind} with the classes of this task, got a {learnt['kind']}"
            f"{f'; the classes differ in: {different}' if different else ''}. Fit the head on this task."
        )
    wanted = f"a linear head on `{PENULTIMATE}` of this backbone, with `labels_per_class: {labels or 'all'}`"
    last = [name for name, feature in made["features"].items() if _is_last(feature["identity"], spec)]
    fits = [one for one in made["fits"] if one["input"] in last and (one["labels"], one["draw"]) == (labels, draw)]
    if not fits:
        there = sorted({f"{one['head']} on {one['input']}, {one['labels'] or 'all'} labels" for one in made["fits"]})
        raise HeadError(f"{run}: expected {wanted}, got: {'; '.join(there[:8])}.")
    if len(fits) > 1:
        names = ", ".join(sorted(one["file"] for one in fits))
        raise HeadError(
            f"{run}: expected one head to start from, got {len(fits)}: {names}. Fit it in a run of its own."
        )
    file = fits[0].get("before_refit", fits[0]["file"])
    if fits[0].get("refit", made["settings"].get("refit")) and "before_refit" not in fits[0]:
        raise HeadError(
            f"{run}: expected a head that saw no validation rows, since these choose the epoch, got one that was "
            "refitted to them. Fit it with `refit: false`."
        )
    path = run / file
    return linear_of(saved.read(path), classes=classes, kind=kind), sha256_file(path)


def _is_last(identity: dict[str, Any], spec: BackboneSpec) -> bool:
    """Whether features are what the last layer of a backbone gets, whole."""
    last = spec.taps.get(PENULTIMATE)
    if last is None or identity["weights"] != spec.weights_digest or identity["node"] != PENULTIMATE:
        return False
    pools = ("none", "flatten", "mean") if last.averaged else ("none", "flatten")
    same = identity["pool"] == "mean" or identity.get("definition", {}) == last.definition
    return same and identity["pool"] in pools and "projection" not in identity
