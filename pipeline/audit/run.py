"""Audit one task, and say what it costs before it is begun."""

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
from pipeline.audit.neighbours import Centred, centre, contradicted, multiply_adds, near_duplicates
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

    `features` holds a folder per backbone, and `extracted` says what each is of. Where none has the data sets of the
    task, the parts that need features are only the reason `why`.
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
    best = min(range(len(sources)), key=lambda one: _width(taps[one]))
    backbone, tap = sources[best].backbone, sources[best].tap
    audited = select_rows(config, loaded, taps[best])
    about = {"backbone": backbone, "tap": tap, **audited.about}
    why = _no_judgement(config, audited)
    cost = multiply_adds([len(own) for own in audited.by_split.values()], len(audited.mean), neighbours=not why)
    reporter.message(
        f"{counted(len(audited.rows), 'row')} of {backbone}/{tap}, {len(audited.mean):,} wide: {cost:.1e} multiply-adds"
    )
    near: dict[str, Any] = about | _near(config, audited)
    odd: dict[str, Any] = {"why": why} if why else about | _contradicted(config, audited)
    _add_paths(manifests, datasets, near["pairs"], odd.get("rows", []))
    return record | {"near_duplicates": near, "contradicted": odd}


def _width(tap: Features) -> tuple[bool, bool, int]:
    """Return what taps are chosen by: vectors before maps, features before pixels and logits, then the narrowest."""
    node = tap.index.identity.get("node")
    return len(tap.shape) > 1, node in ("input", "logits"), math.prod(tap.shape)


@dataclass(frozen=True)
class AuditedRows:
    """The rows that an audit looks at, by their numbers in the task, and how many it does not."""

    task: Task
    keys: np.ndarray
    tap: Features
    rows: np.ndarray
    mean: np.ndarray
    about: dict[str, int]

    @property
    def by_split(self) -> dict[str, np.ndarray]:
        """The rows of each split that has some."""
        found = {split: np.intersect1d(self.rows, self.task.rows(split)) for split in counts.splits_of(self.task)}
        return {split: rows for split, rows in found.items() if len(rows)}

    def source(self, rows: np.ndarray, *, unit: bool) -> Centred:
        """Return some rows, less the mean of all rows."""
        return Centred(Rows([self.tap], self.keys[rows].tolist()), self.mean, unit=unit)


def select_rows(config: AuditConfig, task: Task, tap: Features) -> AuditedRows:
    """Return the rows to audit: those with features that say something, a sample of these above `max_rows`.

    The sample of a task is the same in each audit.
    """
    keys = task.keys
    there = np.isin(key_arrays.from_hex(keys), tap.key_array)
    chosen = np.flatnonzero(there)
    if len(chosen) > config.max_rows:
        order = sorted(chosen.tolist(), key=lambda row: position(str(keys[row]), salt="audit-0"))
        chosen = np.sort(order[: config.max_rows])
    middle = centre(Rows([tap], keys[chosen].tolist()))
    rows = chosen[middle.telling]
    about = {
        "audited": len(rows),
        "of": len(task),
        "without_features": int((~there).sum()),
        "degenerate": int((~middle.telling).sum()),
    }
    return AuditedRows(task, keys, tap, rows, middle.mean, about)


def _near(config: AuditConfig, seen: AuditedRows) -> dict[str, Any]:
    by_split = seen.by_split
    parts = {split: seen.source(rows, unit=True) for split, rows in by_split.items()}
    count, pairs = near_duplicates(parts, near=config.duplicate_threshold, most=counts.MOST)
    listed = [
        {
            "similarity": pair.similarity,
            "splits": list(pair.splits),
            "keys": [seen.keys[by_split[split][row]] for split, row in zip(pair.splits, pair.rows, strict=True)],
        }
        for pair in pairs
    ]
    return {"threshold": config.duplicate_threshold, "count": count, "pairs": listed}


def _no_judgement(config: AuditConfig, seen: AuditedRows) -> str | None:
    """Return why neighbours have nothing to say about the targets, if they have not."""
    if seen.task.kind != "classification":
        return f"neighbours are asked for a class, and this is a task of kind {seen.task.kind}"
    if len(seen.rows) <= config.neighbours:
        return f"expected more than {config.neighbours} rows with features, got {len(seen.rows)}"
    return None


def _contradicted(config: AuditConfig, seen: AuditedRows) -> dict[str, Any]:
    targets = seen.task.targets[seen.rows].astype(str)
    source = seen.source(seen.rows, unit=False)
    majority, share, judged = contradicted(source, targets, neighbours=config.neighbours)
    wrong = np.flatnonzero(judged & (majority != targets) & (share >= config.disagreement))
    worst = sorted(wrong.tolist(), key=lambda row: (-share[row], seen.keys[seen.rows[row]]))[: counts.MOST]
    splits = seen.task.table["split"].to_numpy()
    listed = [
        {
            "key": seen.keys[seen.rows[row]],
            "split": splits[seen.rows[row]],
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
        "count": len(wrong),
        "rows": listed,
    }


def _add_paths(
    manifests: Path, datasets: Sequence[str], pairs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> None:
    """Put the path of each key beside it; of a content that several data sets have, that in the first."""
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
