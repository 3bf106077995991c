"""Audit one task; the expected cost is reported before the computation starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest
from pipeline.audit import counts
from pipeline.audit.config import AuditConfig, Extracted, choose
from pipeline.audit.neighbours import CentredRows, centre, multiply_adds, near_duplicates, neighbour_votes
from pipeline.errors import counted
from pipeline.files import AnyPath, as_path
from pipeline.runtime import Reporter
from pipeline.split.assign import position
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.streaming.rows import Rows
from pipeline.task import Task


def audit(
    config: AuditConfig,
    name: str,
    datasets: Sequence[str],
    *,
    task: AnyPath,
    manifests: AnyPath,
    features: AnyPath,
    extracted: Mapping[str, Extracted],
    reporter: Reporter,
) -> dict[str, Any]:
    """Audit one task, and return the content of `data/audits/<task>.json`.

    features: the folder with a folder per backbone. extracted: the data sets and taps of each backbone.

    If no backbone has features of all data sets of the task, the parts that need features hold only the reason, `why`.
    """
    task = as_path(task, "audit: task")
    manifests = as_path(manifests, "audit: manifests")
    features = as_path(features, "audit: features")
    loaded = Task.read(task)
    record = {
        "format": 1,
        "task": name,
        "kind": loaded.kind,
        "rows": len(loaded),
        "classes": counts.classes(loaded),
        "targets": counts.targets(loaded),
        "domains": counts.domains(loaded),
        "shift": counts.shift(loaded),
        "byte_duplicates": counts.copies(manifests, datasets, loaded),
    }
    sources = choose(config, datasets, extracted)
    if isinstance(sources, str):
        return record | {"near_duplicates": {"why": sources}, "contradicted": {"why": sources}}
    taps = [Features.open(features / source.backbone / source.tap) for source in sources]
    best = min(range(len(sources)), key=lambda index: _preference(taps[index]))
    backbone, tap = sources[best].backbone, sources[best].tap
    audited = select_rows(config, loaded, taps[best])
    about = {"backbone": backbone, "tap": tap, **audited.about}
    why = _reason_not_judged(config, audited)
    cost = multiply_adds([len(own) for own in audited.by_split.values()], len(audited.mean), neighbours=not why)
    reporter.message(
        f"{counted(len(audited.rows), 'row')} of {backbone}/{tap}, {len(audited.mean):,} wide: {cost:.1e} multiply-adds"
    )
    duplicates: dict[str, Any] = about | _near_duplicates(config, audited)
    suspects: dict[str, Any] = {"why": why} if why else about | _suspect_labels(config, audited)
    _add_paths(manifests, datasets, duplicates["pairs"], suspects.get("rows", []))
    return record | {"near_duplicates": duplicates, "contradicted": suspects}


def _preference(tap: Features) -> tuple[bool, bool, int]:
    """Return a tap's sort key: vectors before maps, features before pixels and logits, then the narrowest."""
    node = tap.index.identity.get("node")
    return len(tap.shape) > 1, node in ("input", "logits"), math.prod(tap.shape)


@dataclass(frozen=True)
class AuditedRows:
    """The rows of a task that are audited (row numbers), their features' mean, and counts of the rows left out."""

    task: Task
    keys: np.ndarray
    tap: Features
    rows: np.ndarray
    mean: np.ndarray
    about: dict[str, int]

    @property
    def by_split(self) -> dict[str, np.ndarray]:
        """The audited rows of each split that has any."""
        audited = {split: np.intersect1d(self.rows, self.task.rows(split)) for split in counts.splits_of(self.task)}
        return {split: rows for split, rows in audited.items() if len(rows)}

    def source(self, rows: np.ndarray, *, unit: bool) -> CentredRows:
        """Return the features of some rows, with the mean of all audited rows subtracted."""
        return CentredRows(Rows([self.tap], self.keys[rows].tolist()), self.mean, unit=unit)


def select_rows(config: AuditConfig, task: Task, tap: Features) -> AuditedRows:
    """Return the rows to audit: those with usable features; a sample of at most `max_rows`.

    A task has the same sample in every audit.
    """
    keys = task.keys
    has_features = np.isin(key_arrays.from_hex(keys), tap.key_array)
    sample = np.flatnonzero(has_features)
    if len(sample) > config.max_rows:
        order = sorted(sample.tolist(), key=lambda row: position(str(keys[row]), salt="audit-0"))
        sample = np.sort(order[: config.max_rows])
    centred = centre(Rows([tap], keys[sample].tolist()))
    rows = sample[centred.usable]
    about = {
        "audited": len(rows),
        "of": len(task),
        "without_features": int((~has_features).sum()),
        "degenerate": int((~centred.usable).sum()),
    }
    return AuditedRows(task, keys, tap, rows, centred.mean, about)


def _near_duplicates(config: AuditConfig, audited: AuditedRows) -> dict[str, Any]:
    by_split = audited.by_split
    parts = {split: audited.source(rows, unit=True) for split, rows in by_split.items()}
    count, pairs = near_duplicates(parts, near=config.duplicate_threshold, most=counts.MOST)
    listed = [
        {
            "similarity": pair.similarity,
            "splits": list(pair.splits),
            "keys": [audited.keys[by_split[split][row]] for split, row in zip(pair.splits, pair.rows, strict=True)],
        }
        for pair in pairs
    ]
    return {"threshold": config.duplicate_threshold, "count": count, "pairs": listed}


def _reason_not_judged(config: AuditConfig, audited: AuditedRows) -> str | None:
    """Return why labels cannot be compared with those of neighbours; None if they can."""
    if audited.task.kind != "classification":
        return f"neighbours vote for a class, and this is a task of kind {audited.task.kind}"
    if len(audited.rows) <= config.neighbours:
        return f"expected more than {config.neighbours} rows with features, got {len(audited.rows)}"
    return None


def _suspect_labels(config: AuditConfig, audited: AuditedRows) -> dict[str, Any]:
    targets = audited.task.targets[audited.rows].astype(str)
    source = audited.source(audited.rows, unit=False)
    majority, share, judged = neighbour_votes(source, targets, neighbours=config.neighbours)
    suspect = np.flatnonzero(judged & (majority != targets) & (share >= config.disagreement))
    worst = sorted(suspect.tolist(), key=lambda row: (-share[row], audited.keys[audited.rows[row]]))[: counts.MOST]
    splits = audited.task.table["split"].to_numpy()
    listed = [
        {
            "key": audited.keys[audited.rows[row]],
            "split": splits[audited.rows[row]],
            "target": str(targets[row]),
            "neighbours_say": str(majority[row]),
            "share": round(float(share[row]), 6),
        }
        for row in worst
    ]
    return {
        "neighbours": config.neighbours,
        "threshold": config.disagreement,
        "not_judged": int((~judged).sum()),
        "count": len(suspect),
        "rows": listed,
    }


def _add_paths(
    manifests: Path, datasets: Sequence[str], pairs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> None:
    """Add the path of each key, in place. An image of several data sets has its path in the first of them."""
    wanted = pa.array([*(key for pair in pairs for key in pair["keys"]), *(row["key"] for row in rows)], pa.string())
    paths: dict[str, str] = {}
    for dataset in reversed(datasets):
        table = manifest.read(manifests, dataset, ["key", "path"])
        table = table.filter(pc.is_in(table["key"], wanted))
        paths |= dict(zip(table["key"].to_pylist(), table["path"].to_pylist(), strict=True))
    for pair in pairs:
        pair["paths"] = [paths[key] for key in pair["keys"]]
    for row in rows:
        row["path"] = paths[row["key"]]
