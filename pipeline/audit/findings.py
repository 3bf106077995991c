"""What an audit reports by features: near duplicates, and targets that neighbours contradict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest
from pipeline.audit import counts
from pipeline.audit.config import AuditConfig
from pipeline.audit.neighbours import near_duplicates, neighbour_votes
from pipeline.audit.rows import AuditedRows


def list_near_duplicates(config: AuditConfig, audited: AuditedRows) -> dict[str, Any]:
    """Return the number of pairs of two splits that are near duplicates, and the closest of them."""
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


def reason_not_judged(config: AuditConfig, audited: AuditedRows) -> str | None:
    """Return why labels cannot be compared with those of neighbours; None if they can."""
    if audited.task.kind != "classification":
        return f"neighbours vote for a class, and this is a task of kind {audited.task.kind}"
    if len(audited.rows) <= config.neighbours:
        return f"expected more than {config.neighbours} rows with features, got {len(audited.rows)}"
    return None


def list_suspect_labels(config: AuditConfig, audited: AuditedRows) -> dict[str, Any]:
    """Return the number of targets that the nearest neighbours contradict, and the clearest of them."""
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


def add_paths(
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
