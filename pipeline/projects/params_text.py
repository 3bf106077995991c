"""Write params.yaml of a new project with comments, given a summary of its data and the backbones to compare."""

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
# The settings of this project, one section per stage of dvc.yaml. `icecore check` finds mistakes, `icecore repro` runs
# the stages that a change affects. `icecore settings SECTION` lists every key with its default and meaning, and
# `icecore add` adds entries. Sections may be left out."""

DATASET = "photos"
"""The name of the data set and its task."""

FEW_LABELS = (1, 2, 5, 10, 20, 50, 100)
"""Labels per class of the learning curve, up to the size of the classes."""

TRAIN_SHARE = 0.6
STRATIFIED = 50
"""If the smallest class has fewer samples, the split is stratified."""

PENULTIMATE = {"penultimate": {"node": "penultimate"}}


@dataclass(frozen=True)
class Extraction:
    """A backbone and the taps to store, by name."""

    backbone: "NamedBackbone"
    taps: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PENULTIMATE)


def params_text(folder: Path, data: DataSummary | None, extractions: Sequence[Extraction]) -> str:
    """Return params.yaml of a project in `folder`; without data, sections that need data are left out."""
    parts = [HEADER]
    if data is None:
        parts.append("# There is no data yet: `icecore add data NAME PATH` adds a data set.")
    else:
        parts += _section(
            f"The data: {data.describe()}", "prepare", {DATASET: relative_to_project(data.config, folder)}
        )
    freeze = {item.backbone.name: item.backbone.settings for item in extractions}
    parts += _section("Frozen backbones.", "freeze", freeze)
    if data is None:
        return "\n\n".join(parts) + "\n"
    extract = {item.backbone.name: {"datasets": [DATASET], "taps": dict(item.taps)} for item in extractions}
    parts += _section(_note_on_layers(extractions), "extract", extract)
    parts += _section(_note_on_split(data), "split", {DATASET: task_settings(DATASET, data)})
    parts += _section(
        "Look for leaks between the splits, and for labels that look wrong.", "audit", {"duplicate_threshold": 0.95}
    )
    parts += _section("Heads on the features, chosen on held-out rows.", "fit", _fits(data, extractions))
    parts.append(f"report: {inline({'title': _title(data)})}")
    return "\n\n".join(parts) + "\n"


def run_name(backbone: str) -> str:
    """Return the name of the run that fits a head to all labels on the features of a backbone."""
    return f"{DATASET}_{backbone}"[:120]


def _section(comment: str, name: str, entries: Mapping[str, Any]) -> list[str]:
    """Return a section below a comment, as a list of one text; an empty list if the section has no entries."""
    if not entries:
        return []
    lines = [f"# {line}" for line in comment.splitlines()]
    return ["\n".join([*lines, f"{name}:", *block(entries, 2)])]


def relative_to_project(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings of `prepare` with paths inside the project's folder made relative."""
    relative = dict(config)
    for key in ("root", "base"):
        path = relative.get(key)
        if path is not None and not filesystem.is_url(path) and Path(path).is_relative_to(folder):
            relative[key] = Path(path).relative_to(folder).as_posix()
    return relative


def _title(data: DataSummary) -> str:
    return Path(str(data.config["root"]).rstrip("/")).stem or DATASET


def _note_on_layers(extractions: Sequence[Extraction]) -> str:
    name = extractions[0].backbone.outline.listed if extractions else "NAME"
    return f"Layers whose output is stored. `icecore layers {name}` lists all layers."


def _note_on_split(data: DataSummary) -> str:
    text = "Train rows fit, validation rows choose, test rows report"
    if data.splits:
        return f"{text}: as split in the data. `by: hash` ignores that, and cuts all rows by `sizes`."
    return f"{text}: cut by `sizes` and the hash of each image."


def task_settings(dataset: str, data: DataSummary) -> dict[str, Any]:
    """Return the settings of a task on a data set."""
    settings: dict[str, Any] = {"datasets": [dataset]}
    if data.kind != "classification":
        settings["kind"] = data.kind
    if data.targets != ("label",):
        settings["target"] = data.targets[0] if len(data.targets) == 1 else list(data.targets)
    if not data.splits:
        settings["sizes"] = {"train": 0.6, "validation": 0.2, "test": 0.2}
        if data.kind == "classification" and data.rows is not None and data.smallest < STRATIFIED:
            settings["stratify"] = True
    if few := few_labels(data):
        settings["few_shot"] = {"labels_per_class": few[-1], "draws": 5}
    return settings


def few_labels(data: DataSummary) -> list[int]:
    """Return the labels per class of a learning curve: at most half the training rows of the median class."""
    if data.kind != "classification" or not data.classes:
        return []
    share = TRAIN_SHARE
    if data.splits:
        share = data.splits["train"] / sum(data.splits.values())
    rows = math.floor(statistics.median_low(data.classes.values()) * share)
    return [count for count in FEW_LABELS if count <= rows / 2]


def _fits(data: DataSummary, extractions: Sequence[Extraction]) -> dict[str, Any]:
    """Return for each backbone a run on all training rows and, if there are enough, a run on few labels."""
    head = "ridge" if data.kind == "regression" else "logistic"
    fits: dict[str, Any] = {}
    few = few_labels(data)
    for item in extractions:
        settings = {"task": DATASET, "backbone": item.backbone.name, "inputs": list(item.taps), "head": head}
        fits[run_name(item.backbone.name)] = settings
        if few:
            fits[f"few_labels_{item.backbone.name}"[:120]] = {**settings, "labels_per_class": few}
    return fits
