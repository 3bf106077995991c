"""What the splits of a task hold, how far their distributions lie apart, and the copies that were left out of it.

The distance of two splits, or of two domains, is the total variation of their class distributions,
½ Σ |p(class) − q(class)|: 0 where they are equal, 1 where they share no class. Of a regression it is the
Kolmogorov–Smirnov distance of the targets. Few rows alone make it larger than 0.
"""

import csv
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import manifest
from pipeline.task import SPLITS, Task

MOST = 100  # rows of a list that are written; the count is of all
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def splits_of(task: Task) -> list[str]:
    """Return the splits that have rows, in their order."""
    return [name for name in SPLITS if len(task.rows(name))]


def classes(task: Task) -> dict[str, dict[str, int]] | None:
    """Return the rows of each class, or with each label, per split; None for a regression."""
    if task.kind == "regression":
        return None
    return {split: _counts(task, task.rows(split)) for split in splits_of(task)}


def targets(task: Task) -> dict[str, dict[str, Any]] | None:
    """Count, mean, standard deviation and quantiles of a regression's targets, a split; None of other tasks."""
    if task.kind != "regression":
        return None
    result = {}
    for split in splits_of(task):
        values = task.targets[task.rows(split)]
        quantiles = {f"{share:g}": float(np.quantile(values, share)) for share in QUANTILES}
        result[split] = {
            "count": len(values),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "quantiles": quantiles,
        }
    return result


def domains(task: Task) -> dict[str, dict[str, int]] | None:
    """Return the rows of each domain per split; None where all rows are of one."""
    if "domain" not in task.table.column_names or len(pc.unique(task.table["domain"])) < 2:
        return None
    names = task.table["domain"].to_numpy()
    return {split: dict(sorted(Counter(names[task.rows(split)].tolist()).items())) for split in splits_of(task)}


def shift(task: Task) -> dict[str, Any]:
    """Return the distance of each two splits, and of each two domains, the farthest first."""
    by_split = {split: task.rows(split) for split in splits_of(task)}
    by_domain = {}
    if domains(task) is not None:
        names = task.table["domain"].to_numpy()
        by_domain = {name: np.flatnonzero(names == name) for name in sorted(set(names))}
    return {
        "measure": "Kolmogorov–Smirnov" if task.kind == "regression" else "total variation",
        "splits": _distances(task, by_split),
        "domains": _distances(task, by_domain) or None,
    }


def copies(manifests: Path, datasets: Sequence[str], task: Task) -> dict[str, Any]:
    """Return the byte duplicates that were left out; none are across splits, since a row is a distinct content.

    `excluded` copies within a data set and `conflicts`, copies with different labels, as prepare found them, with their
    paths; `between_datasets` contents that several data sets have, which are one row.
    """
    found: list[dict[str, str]] = []
    kinds = Counter[str]()
    for dataset in datasets:
        listed = manifest.ManifestPaths(manifests, dataset).excluded
        if not listed.is_file():
            continue
        with listed.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["kind"] in ("duplicate", "conflict"):
                    kinds[row["kind"]] += 1
                    if len(found) < MOST:
                        found.append({"path": row["path"], "reason": row["reason"]})
    keys = pa.concat_arrays(
        [manifest.read(manifests, dataset, ["key"])["key"].combine_chunks() for dataset in datasets]
    )
    return {
        "across_splits": len(task) - pc.count_distinct(task.table["key"]).as_py(),
        "excluded": kinds["duplicate"],
        "conflicts": kinds["conflict"],
        "between_datasets": len(keys) - pc.count_distinct(keys).as_py(),
        "paths": found,
    }


def _counts(task: Task, rows: np.ndarray) -> dict[str, int]:
    values = task.table["target"].combine_chunks().take(pa.array(rows))
    found = Counter((values.flatten() if task.kind == "multilabel" else values).to_pylist())
    return {name: found[name] for name in task.classes}


def _distances(task: Task, rows: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    if task.kind == "regression":
        from scipy.stats import ks_2samp

        held = {name: task.targets[own] for name, own in rows.items()}
        apart = {(a, b): float(ks_2samp(held[a], held[b]).statistic) for a, b in itertools.combinations(held, 2)}
    else:
        counts = {name: np.array(list(_counts(task, own).values()), dtype=np.float64) for name, own in rows.items()}
        shares = {name: found / max(1.0, found.sum()) for name, found in counts.items()}
        apart = {(a, b): 0.5 * float(np.abs(shares[a] - shares[b]).sum()) for a, b in itertools.combinations(shares, 2)}
    farthest = sorted(apart.items(), key=lambda one: (-one[1], one[0]))[:MOST]
    return [{"between": list(names), "distance": round(distance, 6)} for names, distance in farthest]
