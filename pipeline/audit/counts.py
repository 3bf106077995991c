"""Count the rows of a task's splits, measure the distances between their distributions, and count excluded copies.

The distance between two splits, or two domains, is the total variation distance of their class distributions,
½ Σ |p(class) − q(class)|: 0 for equal distributions, 1 for disjoint classes. For a regression, the distance is the
Kolmogorov–Smirnov statistic of the targets. Sampling noise makes either larger than 0 where there are few rows.
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

MOST = 100  # the most entries of a list in the record; counts cover all of them
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def splits_of(task: Task) -> list[str]:
    """Return the splits that have rows: train, validation, test."""
    return [name for name in SPLITS if len(task.rows(name))]


def classes(task: Task) -> dict[str, dict[str, int]] | None:
    """Return the number of rows of each class or label, per split; None for a regression."""
    if task.kind == "regression":
        return None
    return {split: _counts(task, task.rows(split)) for split in splits_of(task)}


def targets(task: Task) -> dict[str, dict[str, Any]] | None:
    """Return count, mean, deviation and quantiles of a regression's targets, per split; None for other tasks."""
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
    """Return the number of rows of each domain, per split; None if all rows are of the same domain."""
    if "domain" not in task.table.column_names or len(pc.unique(task.table["domain"])) < 2:
        return None
    names = task.table["domain"].to_numpy()
    return {split: dict(sorted(Counter(names[task.rows(split)].tolist()).items())) for split in splits_of(task)}


def shift(task: Task) -> dict[str, Any]:
    """Return the distances between splits and between domains, largest first."""
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
    """Return the numbers of byte-identical copies that are not in the task, with the paths of some.

    excluded: copies within a data set. conflicts: copies with different labels. between_datasets: images that several
    data sets contain and that are one row of the task. across_splits: always 0, since each row has another content.
    """
    paths: list[dict[str, str]] = []
    kinds = Counter[str]()
    for dataset in datasets:
        listed = manifest.ManifestPaths(manifests, dataset).excluded
        if not listed.is_file():
            continue
        with listed.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["kind"] in ("duplicate", "conflict"):
                    kinds[row["kind"]] += 1
                    if len(paths) < MOST:
                        paths.append({"path": row["path"], "reason": row["reason"]})
    keys = pa.concat_arrays(
        [manifest.read(manifests, dataset, ["key"])["key"].combine_chunks() for dataset in datasets]
    )
    return {
        "across_splits": len(task) - pc.count_distinct(task.table["key"]).as_py(),
        "excluded": kinds["duplicate"],
        "conflicts": kinds["conflict"],
        "between_datasets": len(keys) - pc.count_distinct(keys).as_py(),
        "paths": paths,
    }


def _counts(task: Task, rows: np.ndarray) -> dict[str, int]:
    values = task.table["target"].combine_chunks().take(pa.array(rows))
    counts = Counter((values.flatten() if task.kind == "multilabel" else values).to_pylist())
    return {name: counts[name] for name in task.classes}


def _distances(task: Task, rows: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    if task.kind == "regression":
        from scipy.stats import ks_2samp

        values = {name: task.targets[own] for name, own in rows.items()}
        pairs = itertools.combinations(values, 2)
        distances = {(a, b): float(ks_2samp(values[a], values[b]).statistic) for a, b in pairs}
    else:
        counts = {name: np.array(list(_counts(task, own).values()), dtype=np.float64) for name, own in rows.items()}
        shares = {name: count / max(1.0, count.sum()) for name, count in counts.items()}
        pairs = itertools.combinations(shares, 2)
        distances = {(a, b): 0.5 * float(np.abs(shares[a] - shares[b]).sum()) for a, b in pairs}
    farthest = sorted(distances.items(), key=lambda item: (-item[1], item[0]))[:MOST]
    return [{"between": list(names), "distance": round(distance, 6)} for names, distance in farthest]
