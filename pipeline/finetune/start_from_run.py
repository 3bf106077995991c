"""Start from another run: its network with the classes of the task, or its fitted head.

For example, a student that was distilled without labels is fine-tuned on the labelled target.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.backbones import serialization
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.replace_classifier import last_layer
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import SPEC_FILE, BackboneSpec
from pipeline.errors import HeadError, TrainingError
from pipeline.files import sha256_file
from pipeline.heads import saved
from pipeline.heads.linear_layer import linear_of
from pipeline.model_record import HeadsRecord, NetworkRecord, read_record
from pipeline.task import Kind, Task


def has_network(run: Path) -> bool:
    """Return whether the model of a run is a network, not heads."""
    return (run / "backbone" / SPEC_FILE).is_file()


def network_of_run(run: Path, task: Task, *, path: Path) -> Backbone:
    """Return the network of a run of `finetune` or `distill`, with the classes of a task as outputs, in their order.

    path: of the task. For a student of several tasks, the outputs of this task are kept. Raises TrainingError for a run
    on other tasks, whose training rows could be test rows of this task.
    """
    record = read_record(run)
    assert isinstance(record, NetworkRecord), "the run left a network"
    if sha256_file(path) not in [known.sha256 for known in record.tasks]:
        names = ", ".join(known.name for known in record.tasks)
        raise TrainingError(
            f"{run}: expected a run on the task {path.stem} as it is now, got one on {names}. Run `icecore repro`, or "
            f"freeze {run / 'backbone'} (`source: folder`) and start from that backbone."
        )
    source = serialization.read(run / "backbone")
    if task.kind == "regression":
        return source
    outputs = [f"{path.stem}:{name}" for name in task.classes] if record.extra_tasks else list(task.classes)
    rows = torch.tensor([source.spec.classes.index(name) for name in outputs])
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
    """Return the head that a run fitted to the same training set, as a layer, and the digest of its file.

    If the head was refitted, the head before the refit is used. Raises HeadError if the run has no such head on the
    backbone's penultimate features, or if the head was fitted to validation rows.
    """
    record = read_record(run)
    learned = record.task
    if learned.kind != kind or learned.classes != tuple(classes):
        different = ", ".join(sorted(set(learned.classes) ^ set(classes))[:12])
        raise HeadError(
            f"{run}: expected a head of a {kind} with the classes of this task, got a {learned.kind}"
            f"{f'; the classes differ in: {different}' if different else ''}. Fit the head on this task."
        )
    assert isinstance(record, HeadsRecord), "the run left no network"
    wanted = f"a linear head on `{PENULTIMATE}` of this backbone, with `labels_per_class: {labels or 'all'}`"
    last = [name for name, features in record.features.items() if _is_last(features.identity, spec)]
    fits = [fit for fit in record.fits if fit.input in last and (fit.labels, fit.draw) == (labels, draw)]
    if not fits:
        available = sorted({f"{fit.head} on {fit.input}, {fit.labels or 'all'} labels" for fit in record.fits})
        raise HeadError(f"{run}: expected {wanted}, got: {'; '.join(available[:8])}.")
    if len(fits) > 1:
        names = ", ".join(sorted(fit.file for fit in fits))
        raise HeadError(
            f"{run}: expected a single head to start from, got {len(fits)}: {names}. Fit it in a run of its own."
        )
    (fit,) = fits
    refit = record.settings.get("refit") if fit.refit is None else fit.refit
    if refit and fit.before_refit is None:
        raise HeadError(
            f"{run}: expected a head that was not fitted to validation rows, which choose the epoch, got a head "
            "refitted to them. Fit it with `refit: false`."
        )
    path = run / (fit.before_refit or fit.file)
    return linear_of(saved.read(path), classes=classes, kind=kind), sha256_file(path)


def _is_last(identity: dict[str, Any], spec: BackboneSpec) -> bool:
    """Return whether features are the complete inputs of a backbone's last layer."""
    last = spec.taps.get(PENULTIMATE)
    if last is None or identity["weights"] != spec.weights_digest or identity["node"] != PENULTIMATE:
        return False
    pools = ("none", "flatten", "mean") if last.averaged else ("none", "flatten")
    same = identity["pool"] == "mean" or identity.get("definition", {}) == last.definition
    return same and identity["pool"] in pools and "projection" not in identity
