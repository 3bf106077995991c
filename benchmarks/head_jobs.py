"""Run the measurements of benchmarks/heads.py, each in a separate process: `head_jobs.py JOB FOLDER name=value...`

A job prints one line of JSON: its seconds, the peak of the process's resident memory and what that was after imports,
in MiB, and what else the table needs. The rows are those that `write` left in FOLDER.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import shards

from pipeline.store import index, key_arrays
from pipeline.store.features import Features
from pipeline.store.shard_format import Layout
from pipeline.streaming.rows import Rows

SHARD = 16_384
MIB = 2**20
PENALTIES = tuple(np.logspace(-2, 7, 20).tolist())  # of ridge, which chooses among them without another pass


def write(folder: Path, rows: int, width: int, classes: int, *, seed: int = 0) -> None:
    """Write features like those of a network, positive and correlated, with classes: float16 shards, one at a time.

    `keys.npy` and `classes.npy` beside them are in the order of the disk.
    """
    random = np.random.default_rng(seed)
    means = random.normal(size=(classes, 64)).astype(np.float32)
    mixing = (random.normal(size=(64, width)) / 8).astype(np.float32)
    layout = Layout("0" * 64, "float16", (width,))
    records, held, labels = [], [], []
    for start in range(0, rows, SHARD):
        count = min(SHARD, rows - start)
        codes = random.integers(0, classes, count)
        hidden = means[codes] + 4 * random.standard_normal((count, 64), dtype=np.float32)
        x = hidden @ mixing + random.standard_normal((count, width), dtype=np.float32) / 2
        keys = np.sort(np.frombuffer(random.bytes(16 * count), key_arrays.DTYPE))
        records.append(shards.write(folder, keys, np.maximum(x, 0), layout))
        held.append(keys)
        labels.append(codes)
    every = np.concatenate(held)
    index.commit(folder, identity={}, layout=layout, shards=records, keys=held, wanted=np.sort(every), rejected={})
    np.save(folder / "keys.npy", every)
    np.save(folder / "classes.npy", np.concatenate(labels).astype(np.int32))


def opened(folder: Path, start: int, stop: int) -> tuple[Rows, np.ndarray]:
    """Return some rows in the order of the disk as a row source, and their classes."""
    keys, classes = (np.load(folder / f"{name}.npy", mmap_mode="r")[start:stop] for name in ("keys", "classes"))
    return Rows([features(folder)], np.asarray(keys)), np.array(classes)


@cache
def features(folder: Path) -> Features:
    """Open the features, once per process."""
    return Features.open(folder)


def ridge(folder: Path, *, rows: int, test: int) -> dict[str, Any]:
    """Fit our ridge with 20 penalties in one pass over the store, and predict test rows with each."""
    from pipeline.streaming.ridge import StreamingRidgeClassifier

    X, y = opened(folder, 0, rows)
    start = time.perf_counter()
    head = StreamingRidgeClassifier(alphas=PENALTIES).fit(X, y)
    seconds = time.perf_counter() - start
    np.save(folder / "ours.npy", head.predict(opened(folder, rows, rows + test)[0]))
    return {"seconds": seconds, "alpha": head.alpha_}


def ridge_in_memory(folder: Path, *, rows: int, test: int, alpha: float) -> dict[str, Any]:
    """Fit scikit-learn's ridge with one penalty to rows in memory; loading is not timed."""
    from sklearn.linear_model import RidgeClassifier

    X, y = opened(folder, 0, rows)
    loaded = X[:]
    start = time.perf_counter()
    head = RidgeClassifier(alpha=alpha, solver="cholesky").fit(loaded, y)
    seconds = time.perf_counter() - start
    held, truth = opened(folder, rows, rows + test)
    found = head.predict(held[:])
    return {
        "seconds": seconds,
        "agree": float((found == np.load(folder / "ours.npy")).mean()),
        "accuracy": float((found == truth).mean()),
    }


def large(folder: Path, *, head: str, rows: int, test: int) -> dict[str, Any]:
    """Fit a head to many rows on disk, and predict test rows."""
    from sklearn.base import clone

    from pipeline.streaming.knn import StreamingKNeighborsClassifier
    from pipeline.streaming.lda import StreamingLDA
    from pipeline.streaming.logistic import StreamingLogisticRegression
    from pipeline.streaming.ridge import StreamingRidgeClassifier

    heads = {
        "ridge": StreamingRidgeClassifier(alphas=PENALTIES),
        "lda": StreamingLDA(),
        "logistic": StreamingLogisticRegression(standardize=True),
        "knn": StreamingKNeighborsClassifier(10, metric="cosine"),
    }
    X, y = opened(folder, 0, rows)
    start = time.perf_counter()
    fitted = clone(heads[head]).fit(X, y)
    held, truth = opened(folder, rows, rows + test)
    accuracy = float((fitted.predict(held) == truth).mean())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "accuracy": accuracy, "passes": int(getattr(fitted, "passes_", 1))}


def path(folder: Path, *, rows: int, values: int, in_memory: bool) -> dict[str, Any]:
    """Run a sweep of C, and each C separately; return seconds and passes over the rows."""
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression

    from pipeline.streaming.logistic import StreamingLogisticRegression

    X, y = opened(folder, 0, rows)
    Cs = np.logspace(-6, 5, values).tolist()
    head: Any = StreamingLogisticRegression(standardize=True)
    data: Any = X
    if in_memory:
        from sklearn.preprocessing import StandardScaler

        head, data = LogisticRegression(max_iter=10_000), StandardScaler().fit_transform(X[:])
    passes = count_passes()
    warnings.simplefilter("ignore")
    single = []
    for C in Cs:
        seconds, _ = timed(lambda C=C: clone(head).set_params(C=C).fit(data, y))
        single.append((seconds, passes()))

    def sweep() -> list[Any]:
        if not in_memory:
            return list(head.fit_path(data, y, Cs))
        from pipeline.heads.regularisation_path import fit_path

        return [found for found, _ in fit_path(head, "C", Cs, data, y)]

    seconds, _ = timed(sweep)
    return {
        "seconds": seconds,
        "median": float(np.median([one for one, _ in single])),
        "count": passes(),
        "median_count": float(np.median([one for _, one in single])),
        "all_count": sum(one for _, one in single),
        "all_seconds": float(sum(one for one, _ in single)),
    }


def count_passes() -> Callable[[], int]:
    """Count passes from now on: of moments, our losses and scikit-learn's. It returns who tells them."""
    from scipy import optimize

    from pipeline.streaming.logistic_loss import Loss

    passes = [0]
    measure, at, searching = Loss._measure, Loss.at, optimize.minimize

    def measured(self: Loss, *given: Any, **options: Any) -> None:
        passes[0] += 1
        measure(self, *given, **options)

    def counted(self: Loss, *point: Any) -> Any:
        passes[0] += 1
        return at(self, *point)

    def searched(*args: Any, **options: Any) -> Any:
        found = searching(*args, **options)
        passes[0] += 0 if options.get("callback") else found.nfev  # ours has one, and is counted above
        return found

    Loss._measure, Loss.at, optimize.minimize = measured, counted, searched  # type: ignore[method-assign]

    def since() -> int:
        found, passes[0] = passes[0], 0
        return found

    return since


def knn(folder: Path, *, rows: int, queries: int, metric: str, in_memory: bool) -> dict[str, Any]:
    """Find the 10 nearest rows of each query."""
    from pipeline.streaming.exact_search import nearest

    X, _ = opened(folder, 0, rows)
    asked = opened(folder, rows, rows + queries)[0][:]
    if in_memory:
        from sklearn.neighbors import NearestNeighbors

        fitted = NearestNeighbors(n_neighbors=10, algorithm="brute", metric=metric).fit(X[:])
        seconds, (_, found) = timed(lambda: fitted.kneighbors(asked))
        return {"seconds": seconds, "agree": float((found == np.load(folder / "nearest.npy")).mean())}
    seconds, (_, found) = timed(lambda: nearest(asked, X, 10, metric=metric))
    np.save(folder / "nearest.npy", found)
    return {"seconds": seconds}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def resident(name: str) -> float:
    """Return VmRSS or VmHWM of this process, in MiB; 0 without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "ridge": ridge,
    "ridge_in_memory": ridge_in_memory,
    "large": large,
    "path": path,
    "knn": knn,
}


if __name__ == "__main__":
    import sklearn.linear_model
    import sklearn.neighbors  # noqa: F401 - so that imports are not in what a job takes

    job, folder, *given = sys.argv[1:]
    imports = resident("VmRSS")
    told = JOBS[job](Path(folder), **{name: json.loads(value) for name, value in (one.split("=", 1) for one in given)})
    print(json.dumps({**told, "peak": resident("VmHWM"), "imports": imports}))
