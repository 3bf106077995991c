"""params.yaml of a new project, as text with comments, from what its images hold and the backbones that it compares."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.projects.data_summary import DataSummary
from pipeline.projects.yaml_text import block, inline
from pipeline.sources import filesystem

if TYPE_CHECKING:
    from pipeline.projects.backbone import NamedBackbone

HEADER = """\
# The settings of this project: a section per stage of dvc.yaml. `icecore check` finds mistakes in them, `icecore repro`
# runs what they changed. `icecore settings SECTION` lists every key with its default and meaning, and `icecore add`
# writes further entries. A section that is left out is empty."""

DATASET = "photos"
"""The name of the data set and of its task."""

FEW_LABELS = (1, 2, 5, 10, 20, 50, 100)
"""Labels per class of learning curves, as far as the classes have so many."""

TRAIN_SHARE = 0.6
STRATIFIED = 50
"""Samples of the smallest class below which every class is cut at exact shares."""

PENULTIMATE = {"penultimate": {"node": "penultimate"}}


@dataclass(frozen=True)
class Extraction:
    """A backbone and the taps of it that are kept, by name."""

    backbone: "NamedBackbone"
    taps: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PENULTIMATE)


def params_text(folder: Path, data: DataSummary | None, extractions: Sequence[Extraction]) -> str:
    """Return params.yaml of a project in `folder`; without data the sections that need some are left out."""
    parts = [HEADER]
    if data is None:
        parts.append("# There are no images yet: `icecore add data NAME PATH` names some.")
    else:
        parts += _section(f"The data: {data.describe()}", "prepare", {DATASET: within(data.config, folder)})
    freeze = {one.backbone.name: one.backbone.settings for one in extractions}
    parts += _section("Networks that stay as they are.", "freeze", freeze)
    if data is None:
        return "\n\n".join(parts) + "\n"
    extract = {one.backbone.name: {"datasets": [DATASET], "taps": dict(one.taps)} for one in extractions}
    parts += _section(_note_on_layers(extractions), "extract", extract)
    parts += _section(_note_on_split(data), "split", {DATASET: task_settings(DATASET, data)})
    parts += _section(
        "What leaks between the splits, and labels that look wrong.", "audit", {"duplicate_threshold": 0.95}
    )
    parts += _section("Heads on the features; each is chosen on held-out rows.", "fit", _fits(data, extractions))
    parts.append(f"report: {inline({'title': _title(data)})}")
    return "\n\n".join(parts) + "\n"


def run_name(backbone: str) -> str:
    """Return the name of the run that trains on all labels with the features of a backbone."""
    return f"{DATASET}_{backbone}"[:120]


def _section(comment: str, name: str, entries: Mapping[str, Any]) -> list[str]:
    """Return a section below a comment, as one part; none where it has no entries."""
    if not entries:
        return []
    lines = [f"# {line}" for line in comment.splitlines()]
    return ["\n".join([*lines, f"{name}:", *block(entries, 2)])]


def within(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings of `prepare` with paths below the project's folder relative to it."""
    found = dict(config)
    for key in ("root", "base"):
        path = found.get(key)
        if path is not None and not filesystem.is_url(path) and Path(path).is_relative_to(folder):
            found[key] = Path(path).relative_to(folder).as_posix()
    return found


def _title(data: DataSummary) -> str:
    return Path(str(data.config["root"]).rstrip("/")).stem or DATASET


def _note_on_layers(extractions: Sequence[Extraction]) -> str:
    name = extractions[0].backbone.outline.listed if extractions else "NAME"
    return f"Layers whose output is stored, once. `icecore layers {name}` lists all of them."


def _note_on_split(data: DataSummary) -> str:
    text = "Which rows train, choose and report"
    if data.splits:
        return f"{text}: as the data say. `by: hash` passes over that, and cuts all rows by `sizes`."
    return f"{text}: cut by `sizes`, by the content of each image."


def task_settings(dataset: str, data: DataSummary) -> dict[str, Any]:
    """Return the settings of a task on a data set."""
    found: dict[str, Any] = {"datasets": [dataset]}
    if data.kind != "classification":
        found["kind"] = data.kind
    if data.targets != ("label",):
        found["target"] = data.targets[0] if len(data.targets) == 1 else list(data.targets)
    if not data.splits:
        found["sizes"] = {"train": 0.6, "validation": 0.2, "test": 0.2}
        if data.kind == "classification" and data.rows is not None and data.smallest < STRATIFIED:
            found["stratify"] = True
    if few := few_labels(data):
        found["few_shot"] = {"labels_per_class": few[-1], "draws": 5}
    return found


def few_labels(data: DataSummary) -> list[int]:
    """Return the numbers of labels per class of a learning curve; most classes have twice as many training rows."""
    if data.kind != "classification" or not data.classes:
        return []
    share = TRAIN_SHARE
    if data.splits:
        share = data.splits["train"] / sum(data.splits.values())
    rows = math.floor(statistics.median_low(data.classes.values()) * share)
    return [count for count in FEW_LABELS if count <= rows / 2]


def _fits(data: DataSummary, extractions: Sequence[Extraction]) -> dict[str, Any]:
    """Return a run per backbone on all training rows, and one on few labels."""
    head = "ridge" if data.kind == "regression" else "logistic"
    fits: dict[str, Any] = {}
    few = few_labels(data)
    for one in extractions:
        own = {"task": DATASET, "backbone": one.backbone.name, "inputs": list(one.taps), "head": head}
        fits[run_name(one.backbone.name)] = own
        if few:
            fits[f"few_labels_{one.backbone.name}"[:120]] = {**own, "labels_per_class": few}
    return fits
