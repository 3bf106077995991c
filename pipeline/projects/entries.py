"""The entries that `icecore add` writes into params.yaml: a data set, a backbone, a run of heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.projects.data_summary import DataSummary
from pipeline.projects.params_text import PENULTIMATE, relative_to_project, task_settings
from pipeline.projects.yaml_text import append, insert
from pipeline.task import Kind

if TYPE_CHECKING:
    from pipeline.projects.backbone import NamedBackbone

Params = Mapping[str, Any]
"""The content of params.yaml."""


@dataclass(frozen=True)
class Entry:
    """An addition to params.yaml: a mapping (`value`) at `path`, or `item` at the end of the list at `path`."""

    path: tuple[str, ...]
    value: Mapping[str, Any] | None = None
    item: str = ""


def write_entries(text: str, entries: Sequence[Entry]) -> str:
    """Return the text of params.yaml with the entries added; raises ConfigError if an entry cannot be added."""
    for entry in entries:
        if entry.value is None:
            text = append(text, entry.path, entry.item)
        else:
            *above, name = entry.path
            text = insert(text, above, name, entry.value)
    return text


def data_entries(params: Params, name: str, data: DataSummary) -> list[Entry]:
    """Return the entries of a data set and its task, and its addition to the extraction of every backbone."""
    _refuse_known(params, "prepare", name)
    _refuse_known(params, "split", name)
    entries = [Entry(("prepare", name), relative_to_project(data.config, Path.cwd()))]
    extracted = _names(params, "extract")
    entries += [Entry(("extract", backbone, "datasets"), item=name) for backbone in extracted]
    entries += [
        Entry(("extract", backbone), {"datasets": [name], "taps": PENULTIMATE})
        for backbone in _names(params, "freeze")
        if not extracted
    ]
    return [*entries, Entry(("split", name), task_settings(name, data))]


def backbone_entries(
    params: Params, name: str, backbone: "NamedBackbone", *, taps: Mapping[str, Any], datasets: Sequence[str]
) -> list[Entry]:
    """Return the entries of a backbone and its extraction over some data sets, by default over all."""
    _refuse_known(params, "freeze", name)
    _refuse_known(params, "extract", name)
    extracted = list(datasets) or _names(params, "prepare")
    entries = [Entry(("freeze", name), backbone.settings)]
    return [*entries, Entry(("extract", name), {"datasets": extracted, "taps": dict(taps)})] if extracted else entries


def fit_entries(
    params: Params,
    name: str,
    *,
    task: str | None,
    backbone: str | None,
    inputs: Sequence[str],
    head: str | None,
    labels_per_class: Sequence[int],
) -> list[Entry]:
    """Return the entry of a run of `fit`.

    task, backbone: entries of `split` and `extract`; None for the only entry.
    inputs: taps, or several taps joined by +; by default all taps of the backbone.
    head: the head; None for the default of the task's kind.
    """
    _refuse_known(params, "fit", name)
    task = task or _only(params, "split", "--task")
    backbone = backbone or _only(params, "extract", "--backbone")
    taps = (params.get("extract") or {}).get(backbone, {}).get("taps", {})
    used: list[Any] = [taps_.split("+") if "+" in taps_ else taps_ for taps_ in inputs] or list(taps)
    kind: Kind = (params.get("split") or {}).get(task, {}).get("kind", "classification")
    chosen = head or ("ridge" if kind == "regression" else "logistic")
    value: dict[str, Any] = {"task": task, "backbone": backbone, "inputs": used, "head": chosen}
    if labels_per_class:
        value["labels_per_class"] = list(labels_per_class)
    return [Entry(("fit", name), value)]


def _names(params: Params, section: str) -> list[str]:
    entries = params.get(section)
    return [str(name) for name in entries] if isinstance(entries, Mapping) else []


def _refuse_known(params: Params, section: str, name: str) -> None:
    if name in _names(params, section):
        raise ConfigError(
            f"{section}.{name}: expected a new name, but `{section}` already has this entry. Choose another name, or "
            "change the entry in params.yaml."
        )


def _only(params: Params, section: str, option: str) -> str:
    """Return the only entry of a section; raises ConfigError that asks for an option if there are more or none."""
    names = _names(params, section)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"{option}: needed, unless `{section}` has exactly one entry; it has: {listed}.")
    return names[0]
