"""The entries that `icecore add` writes into params.yaml: a data set, a backbone, a run of heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.projects.data_summary import DataSummary
from pipeline.projects.params_text import PENULTIMATE, task_settings, within
from pipeline.projects.yaml_text import append, insert
from pipeline.task import Kind

if TYPE_CHECKING:
    from pipeline.projects.backbone import NamedBackbone

Params = Mapping[str, Any]
"""params.yaml as it stands."""


@dataclass(frozen=True)
class Entry:
    """A mapping that is written below `section.name`; or, without one, `item` at the end of the list at `path`."""

    path: tuple[str, ...]
    value: Mapping[str, Any] | None = None
    item: str = ""


def write_entries(text: str, entries: Sequence[Entry]) -> str:
    """Return the text of params.yaml with the entries; raises ConfigError where an entry is there already."""
    for entry in entries:
        if entry.value is None:
            text = append(text, entry.path, entry.item)
        else:
            *above, name = entry.path
            text = insert(text, above, name, entry.value)
    return text


def data_entries(params: Params, name: str, data: DataSummary) -> list[Entry]:
    """Return a data set with its task, over which every backbone of the project is extracted."""
    _refuse_known(params, "prepare", name)
    _refuse_known(params, "split", name)
    found = [Entry(("prepare", name), within(data.config, Path.cwd()))]
    extracted = _names(params, "extract")
    found += [Entry(("extract", backbone, "datasets"), item=name) for backbone in extracted]
    found += [
        Entry(("extract", backbone), {"datasets": [name], "taps": PENULTIMATE})
        for backbone in _names(params, "freeze")
        if not extracted
    ]
    return [*found, Entry(("split", name), task_settings(name, data))]


def backbone_entries(
    params: Params, name: str, backbone: "NamedBackbone", *, taps: Mapping[str, Any], datasets: Sequence[str]
) -> list[Entry]:
    """Return a backbone, extracted over some data sets; over all, where none is named."""
    _refuse_known(params, "freeze", name)
    _refuse_known(params, "extract", name)
    over = list(datasets) or _names(params, "prepare")
    found = [Entry(("freeze", name), backbone.settings)]
    return [*found, Entry(("extract", name), {"datasets": over, "taps": dict(taps)})] if over else found


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
    """Return a run of fit.

    task, backbone: entries of `split` and `extract`; the only one where it is None. inputs: taps, several joined by +;
    all of the backbone where none is named. head: by the kind of the task where it is None.
    """
    _refuse_known(params, "fit", name)
    task = task or _only(params, "split", "--task")
    backbone = backbone or _only(params, "extract", "--backbone")
    taps = (params.get("extract") or {}).get(backbone, {}).get("taps", {})
    used: list[Any] = [one.split("+") if "+" in one else one for one in inputs] or list(taps)
    kind: Kind = (params.get("split") or {}).get(task, {}).get("kind", "classification")
    chosen = head or ("ridge" if kind == "regression" else "logistic")
    value: dict[str, Any] = {"task": task, "backbone": backbone, "inputs": used, "head": chosen}
    if labels_per_class:
        value["labels_per_class"] = list(labels_per_class)
    return [Entry(("fit", name), value)]


def _names(params: Params, section: str) -> list[str]:
    found = params.get(section)
    return [str(name) for name in found] if isinstance(found, Mapping) else []


def _refuse_known(params: Params, section: str, name: str) -> None:
    if name in _names(params, section):
        raise ConfigError(
            f"{section}.{name}: expected a name that {section} does not have yet, got one that it has. Choose another, "
            "or change the entry in params.yaml."
        )


def _only(params: Params, section: str, option: str) -> str:
    """Return the one entry of a section."""
    names = _names(params, section)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"{option}: expected it, since `{section}` has not one entry, but: {listed}.")
    return names[0]
