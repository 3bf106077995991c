"""A run without settings against LogisticRegressionCV on the same features: `python benchmarks/defaults.py`.

The plain recipe is what a person who knows scikit-learn writes: `LogisticRegressionCV(Cs=45)` on standardised features
of all rows that are not test rows; with one row per class, which it cannot divide, `LogisticRegression()`. Of several
labels it is one such head per label, with at most as many folds as the label has rows. icecore gets a task, an input
and no other setting. The third way is C = 1 on the training rows alone: icecore's defaults before it had folds.

Prints for each set and network the accuracy (of several labels the share of equal yes and no) and the log loss of each
way, means over the seeds of the split, and the 95 % interval of the difference between icecore and the recipe: a paired
bootstrap over seeds and test rows, in which a row that several seeds test counts as one. `worse` says where the
interval is on the wrong side of 0. The last column is icecore's time divided by the recipe's, on one thread each, where
the recipe takes a second or more. benchmarks/labelled.py says which sets there are.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import labelled
import numpy as np
import pyarrow as pa
from labelled import Labelled
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.metrics import row_log_losses
from pipeline.predictions import PredictionsFile
from pipeline.task import KIND, Kind, Task

NETWORKS = ("mobilenet_v2", "squeezenet1_1", "efficientnet_lite0")
RESAMPLES = 2000


@dataclass(frozen=True)
class Answer:
    """The predictions of a method for the test rows, with probabilities (rows, classes), and its seconds."""

    scores: np.ndarray
    predicted: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Case:
    """Rows with their features and targets, and the split of each for a seed: (seed) -> text (rows,).

    `given`: the split is the published one, whatever the seed.
    """

    name: str
    kind: Kind
    X: np.ndarray
    targets: np.ndarray
    classes: list[str]
    split: Callable[[int], np.ndarray]
    given: bool = False


def cases(name: str, network: str, root: Path, lite0: Path | None) -> Iterator[Case]:
    """Yield the tasks of a set."""
    if name == "domains":
        amazon, webcam = (labelled.load(one, network, root, lite0=lite0) for one in ("amazon", "webcam"))
        for first, second, title in ((amazon, webcam, "amazon→webcam"), (webcam, amazon, "webcam→amazon")):
            sizes = np.repeat([0, 1], [len(first.keys), len(second.keys)])
            X = np.concatenate([first.rows(), second.rows()])
            targets = np.array([*first.targets, *second.targets], dtype=object)
            yield Case(title, "classification", X, targets, sorted(set(targets)), _shifted(sizes))
        return
    one = labelled.load(name, network, root, lite0=lite0)
    if name == "coco":
        yield _coco(one)
        return
    targets = np.array(one.targets, dtype=object)
    shared: tuple[Any, ...] = ("classification", one.rows(), targets, sorted(set(targets)))
    if name == "pneumonia":
        given = np.array([{"val": "validation"}.get(split, split) for split in one.given])
        yield Case(name, *shared, lambda _: given, given=True)
    elif name == "digits":
        for labels in (1, 5, 10, 50):
            yield Case(f"digits, {labels} per class", *shared, _counted(targets, labels, 30))
    elif name == "cifar10":
        yield Case(name, *shared, _counted(targets, 200, 200))
    else:
        yield Case(name, *shared, _counted(targets, 60, 20))


def _coco(one: Labelled) -> Case:
    """Labels with rows in both published splits, so that each can be learned and measured."""
    given = np.array([{"val": "validation"}.get(split, split) for split in one.given])
    names = sorted({name for labels in one.targets for name in labels})
    member = np.array([[name in labels for name in names] for labels in one.targets])
    kept = member[given == "train"].any(axis=0) & member[given == "test"].any(axis=0)
    classes = [name for name, there in zip(names, kept, strict=True) if there]
    return Case("coco", "multilabel", one.rows(), member[:, kept], classes, lambda _: given, given=True)


def _shifted(domain: np.ndarray) -> Callable[[int], np.ndarray]:
    """Train on the first domain, a tenth of it validation rows, and test on the second."""

    def split(seed: int) -> np.ndarray:
        found = np.where(domain == 0, "train", "test").astype(object)
        own = np.flatnonzero(domain == 0)
        found[np.random.default_rng(seed).permutation(own)[: len(own) // 10]] = "validation"
        return found

    return split


def _counted(targets: np.ndarray, known: int, test: int) -> Callable[[int], np.ndarray]:
    """Return a split with a number of test rows, and of other rows per class; the remaining rows are left out."""

    def split(seed: int) -> np.ndarray:
        found, random = np.full(len(targets), "", dtype=object), np.random.default_rng(seed)
        for name in sorted(set(targets)):
            rows = random.permutation(np.flatnonzero(targets == name))
            found[rows[:known]], found[rows[known : known + test]] = "train", "test"
            found[rows[: known // 8]] = "validation"
        return found

    return split


def icecore(case: Case, split: np.ndarray, folder: Path, **settings: Any) -> Answer:
    """Fit a run, read what it predicts of the test rows, and return them in the order of the rows."""
    keys = np.array([f"{number:032x}" for number in range(len(split))])
    kept = split != ""
    column = pa.array(
        [[case.classes[i] for i in np.flatnonzero(row)] for row in case.targets]
        if case.kind == "multilabel"
        else list(case.targets)
    )
    table = pa.table({"key": keys, "target": column, "split": pa.array(list(split))})
    Task(table.filter(pa.array(kept)).replace_schema_metadata({KIND: case.kind})).write(folder / "task.parquet")
    features = folder / "features"
    if not features.is_dir():
        labelled.store(features / "penultimate", keys, case.X)
    start = time.perf_counter()
    config = FitConfig(task="task", backbone="net", inputs=("penultimate",), **settings)
    fit(
        config,
        task=folder / "task.parquet",
        features=features,
        models=folder / "models",
        predictions=folder / "p.parquet",
    )
    seconds = time.perf_counter() - start
    file = PredictionsFile.open(folder / "p.parquet")
    [one] = list(file)
    test = one.splits == "test"
    order = np.argsort(one.keys[test])
    columns = [file.classes.index(name) for name in case.classes]
    predicted = one.predicted[test][order]
    return Answer(
        one.scores[test][order][:, columns], predicted[:, columns] if predicted.ndim == 2 else predicted, seconds
    )


def recipe(case: Case, split: np.ndarray, *, plain: bool = False) -> Answer:
    """Fit scikit-learn's cross-validated logistic regression to all rows that are no test rows."""
    known = (split == "train") | ((split == "validation") & (not plain))
    X, y, test = case.X[known], case.targets[known], split == "test"
    head: Any = LogisticRegression(max_iter=1000)
    counts = y.sum(axis=0) if case.kind == "multilabel" else np.unique(y, return_counts=True)[1]
    folds = int(min(5, counts.min()))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        if case.kind == "multilabel":
            heads = [
                make_pipeline(StandardScaler(), _searched(int(min(5, n))) if n > 1 and not plain else head)
                for n in counts
            ]
            scores = np.stack(
                [one.fit(X, y[:, i]).predict_proba(case.X[test])[:, 1] for i, one in enumerate(heads)], axis=1
            )
            return Answer(scores, scores > 0.5, time.perf_counter() - start)
        pipeline = make_pipeline(StandardScaler(), _searched(folds) if folds > 1 and not plain else head)
        scores = pipeline.fit(X, y).predict_proba(case.X[test])
    columns = [list(pipeline[-1].classes_).index(name) for name in case.classes]
    return Answer(scores[:, columns], pipeline[-1].classes_[scores.argmax(axis=1)], time.perf_counter() - start)


def _searched(folds: int) -> LogisticRegressionCV:
    return LogisticRegressionCV(Cs=45, cv=folds, max_iter=1000, scoring="accuracy")


def rows_of(case: Case, split: np.ndarray, answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Return for each test row whether it is predicted correctly (the share of correct labels), and its log loss."""
    targets = case.targets[split == "test"]
    right = (answer.predicted == targets).astype(np.float64)
    right = right.mean(axis=1) if right.ndim == 2 else right
    return right, row_log_losses(case.kind, targets, answer.scores.astype(np.float32), case.classes)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean difference; `differences`: (seeds, rows), NaN for rows that a seed lacks.

    Seeds and rows are resampled independently, so that a row which several seeds test counts as one row: Owen,
    The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007.
    """
    random = np.random.default_rng(0)
    there = ~np.isnan(differences)
    values, (seeds, rows) = np.where(there, differences, 0.0), differences.shape
    means = []
    for _ in range(RESAMPLES):
        by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds))
        by_row = random.multinomial(rows, np.full(rows, 1 / rows))
        means.append((by_seed @ values @ by_row) / (by_seed @ there @ by_row))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def compared(case: Case, seeds: int) -> tuple[str, list[float]]:
    """Return a row of the table, and the mean differences: accuracy, log loss."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"icecore": [], "recipe": [], "plain": []}
    tested = []
    seconds = {"icecore": 0.0, "recipe": 0.0, "plain": 0.0}
    ranked: dict[str, list[float]] = {name: [] for name in found}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            split = case.split(seed)
            tested.append(split == "test")
            ways = {
                "icecore": icecore(case, split, Path(folder)),
                "recipe": recipe(case, split),
                "plain": recipe(case, split, plain=True),
            }
            for name, answer in ways.items():
                found[name].append(rows_of(case, split, answer))
                seconds[name] += answer.seconds
                if case.kind == "multilabel":
                    ranked[name].append(
                        average_precision_score(case.targets[split == "test"], answer.scores, average="macro")
                    )
    means = {
        name: [float(np.mean([pair[i].mean() for pair in pairs])) for i in (0, 1)] for name, pairs in found.items()
    }
    cells, worse, differences = [case.name], [], []
    for i, title in enumerate(("accuracy", "log loss")):
        apart = np.full((seeds, len(case.targets)), np.nan)
        for own, rows, one, other in zip(apart, tested, found["icecore"], found["recipe"], strict=True):
            own[rows] = one[i] - other[i]
        low, high = interval(apart[:, np.any(tested, axis=0)])
        cells += [" / ".join(f"{means[name][i]:.3f}" for name in found), f"{low:+.3f} to {high:+.3f}"]
        worse += [title] if (high < 0 if i == 0 else low > 0) else []
        differences.append(float(np.nanmean(apart)))
    if case.kind == "multilabel":
        cells[0] += f" (map {' / '.join(f'{np.mean(ranked[name]):.3f}' for name in ranked)})"
    ratio = f"{seconds['icecore'] / seconds['recipe']:.2f}" if seconds["recipe"] > seeds else "–"
    cells += [", ".join(worse) or "–", ratio]
    return f"| {' | '.join(cells)} |", differences


def main() -> None:
    """Print the table, and the mean differences over the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["caltech", "domains", "cifar10", "coco", "pneumonia", "digits"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--lite0", type=Path, help="weights file of EfficientNet-Lite0")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--root", type=Path, help="keep images and features there, for the next time")
    given = parser.parse_args()
    every = []
    with tempfile.TemporaryDirectory() as temporary, threadpool_limits(1):
        root = given.root or Path(temporary)
        os.environ.setdefault("ICECORE_CACHE", str(root / "cache"))
        print("| set | accuracy: icecore / recipe / C = 1 | difference | log loss | difference | worse | time |")
        print("|---|---|---|---|---|---|---|")
        for network in given.networks if given.lite0 else [one for one in given.networks if one != NETWORKS[2]]:
            for name in given.sets:
                for case in cases(name, network, root, given.lite0):
                    line, differences = compared(case, 1 if case.given else given.seeds)
                    print(line.replace("| ", f"| {network}: ", 1), flush=True)
                    every.append(differences)
    accuracy, loss = np.mean(every, axis=0)
    print(f"\nmean difference over {len(every)} tasks: accuracy {accuracy:+.4f}, log loss {loss:+.4f}")


if __name__ == "__main__":
    main()
