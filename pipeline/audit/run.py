"""Audit one task, and say what it costs before it is begun."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest
from pipeline.audit import AuditConfig, Extracted, choose, counts
from pipeline.audit.counts import MOST
from pipeline.audit.neighbours import Centred, centre, contradicted, multiply_adds, near_duplicates
from pipeline.heads.rows import Rows
from pipeline.split.assign import position
from pipeline.store import keys as key_arrays
from pipeline.store.features import Features
from pipeline.task import Task

Say = Callable[[str], None]


def audit(
    config: AuditConfig,
    name: str,
    datasets: Sequence[str],
    *,
    task: Path,
    manifests: Path,
    features: Path,
    extracted: Mapping[str, Extracted],
    say: Say,
) -> dict[str, Any]:
    """What `data/tasks/<task>.audit.json` has.

    `features` holds a folder a backbone, and `extracted` says what each is of. Where none has the data sets of the
    task, the parts that need features are only the reason `why`.
    """
    loaded = Task.read(task)
    found = {
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
    chosen = choose(config, name, datasets, extracted)
    if isinstance(chosen, str):
        return found | {"near_duplicates": {"why": chosen}, "contradicted": {"why": chosen}}
    backbone, taps = chosen
    opened = {tap: Features.open(features / backbone / tap) for tap in taps}
    tap = min(opened, key=lambda one: (int(np.prod(opened[one].shape)), one))
    return found | by_features(config, loaded, opened[tap], (backbone, tap), _paths(manifests, datasets), say)


def by_features(
    config: AuditConfig, task: Task, tap: Features, named: tuple[str, str], paths: pa.Table, say: Say
) -> dict[str, Any]:
    """`near_duplicates` and `contradicted` of the rows that have telling features, or of a sample of them."""
    there = np.isin(key_arrays.from_hex(task.keys), tap.key_array)
    chosen = np.flatnonzero(there)
    if len(chosen) > config.most_rows:
        keys, salt = task.keys, f"audit-{config.seed}"
        order = sorted(chosen.tolist(), key=lambda row: position(keys[row], salt=salt))
        chosen = np.sort(order[: config.most_rows])
    middle = centre(Rows([tap], task.keys[chosen].tolist()))
    rows = chosen[middle.telling]
    about = {
        "backbone": named[0],
        "tap": named[1],
        "rows": len(rows),
        "of": len(task),
        "without_features": int((~there).sum()),
        "degenerate": int((~middle.telling).sum()),
    }
    by_split = {split: np.intersect1d(rows, task.rows(split)) for split in counts.splits_of(task)}
    judging = task.kind == "classification" and len(rows) > config.neighbours
    cost = multiply_adds({split: len(own) for split, own in by_split.items()}, len(middle.mean), neighbours=judging)
    say(f"{len(rows):,} rows of {'/'.join(named)}, {len(middle.mean):,} wide: {cost:.1e} multiply-adds")

    def source(own: np.ndarray, *, unit: bool) -> Centred:
        return Centred(Rows([tap], task.keys[own].tolist()), middle.mean, unit=unit)

    parts = {split: source(own, unit=True) for split, own in by_split.items() if len(own)}
    count, pairs = near_duplicates(parts, near=config.near, most=MOST)
    near = [(pair, [by_split[split][row] for split, row in zip(pair.splits, pair.rows, strict=True)]) for pair in pairs]
    odd: dict[str, Any] = {"why": _no_judgement(task, config)}
    if judging:
        odd = about | {"neighbours": config.neighbours} | _contradicted(config, task, rows, source(rows, unit=False))
    shown = {task.keys[row] for _, both in near for row in both} | {one["key"] for one in odd.get("rows_found", [])}
    named_paths = _look_up(paths, shown)
    if judging:
        odd["rows"], odd["audited"] = [one | {"path": named_paths[one["key"]]} for one in odd.pop("rows_found")], len(rows)
    return {
        "near_duplicates": about
        | {
            "threshold": config.near,
            "count": count,
            "pairs": [
                {
                    "similarity": pair.similarity,
                    "splits": list(pair.splits),
                    "keys": [task.keys[row] for row in both],
                    "paths": [named_paths[task.keys[row]] for row in both],
                }
                for pair, both in near
            ],
        },
        "contradicted": odd,
    }
