"""Runs of `fit` with combined settings, each compared with what scikit-learn makes of the same stored features.

A cell is a combination of settings. What is wanted of it is built here from scikit-learn's classes: each tap scaled by
itself, principal components, the head with the parameter that the run chose, one head per label where the class learns
one label at a time, and a temperature from validation rows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from allpairspy import AllPairs
from pydantic import ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC, LinearSVR

from pipeline import heads
from pipeline.errors import ConfigError, HeadError, PipelineError
from pipeline.fit.config import FitConfig
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.store.features import Features
from pipeline.task import Task
from support.features import Place, retarget, write_features, write_task

SPLITS = {"train": 24, "validation": 10, "test": 8}
CLASSES = ("ape", "bee", "cat")
TAPS = {"map": (2, 3, 1), "vector": (5,)}

FASTER: Mapping[str, dict[str, Any]] = {
    "boosting": {"max_iter": 8, "min_samples_leaf": 4},
    "forest": {"n_estimators": 5},
    "mlp": {"hidden_layer_sizes": [6], "solver": "lbfgs", "max_iter": 2000},
}
"""Parameters of heads that would take long; the wanted head has the same."""

EXACT = {"tol": 1e-9, "max_iter": 10_000}

CLASSIFIERS: Mapping[str, Any] = {
    "boosting": HistGradientBoostingClassifier(random_state=0),
    "forest": RandomForestClassifier(random_state=0),
    "knn": KNeighborsClassifier(algorithm="brute"),
    "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "logistic": LogisticRegression(**EXACT),
    "mlp": MLPClassifier(random_state=0),
    "naive_bayes": GaussianNB(),
    "ridge": RidgeClassifier(),
    "svm": LinearSVC(random_state=0),
}
REGRESSORS: Mapping[str, Any] = {
    "boosting": HistGradientBoostingRegressor(random_state=0),
    "forest": RandomForestRegressor(random_state=0),
    "knn": KNeighborsRegressor(algorithm="brute"),
    "mlp": MLPRegressor(random_state=0),
    "ridge": Ridge(),
    "svm": LinearSVR(random_state=0),
}
SEVERAL_LABELS = ("forest", "knn", "mlp", "ridge")
"""Heads whose class learns several labels per row."""

AXES: Mapping[str, Sequence[Any]] = {
    "head": tuple(heads.HEADS),
    "kind": ("classification", "multilabel", "regression"),
    "scale": ("standard", "l2", "none"),
    "pca": (None, 4, 0.9, {"components": 3, "whiten": True}),
    "search": (None, "sweep"),
    "refit": (False, True),
    "calibrate": (None, "temperature"),
    "inputs": ("map", ("map", "vector")),
}

REFUSALS: Mapping[str, str] = {
    "it cannot learn numbers": "no regression of this head",
    "streaming_.* cannot take the lengths of joined taps": "streaming, lengths of joined taps",
    "has no grid of its own": "no grid of its own",
    "calibrate: expected a classification": "temperature of another kind",
    "calibrate: expected a head with probabilities": "no scores to calibrate",
}
"""What an error says where `fit` refuses a cell on purpose, and the reason in the table."""

TOLERANCE = {"logistic": 5e-3, "streaming_logistic": 5e-3, "mlp": 1e-2}
"""How far scores and numbers may be off, in units of the largest wanted; of heads with an iterative search more."""


class Cell(NamedTuple):
    """A combination of settings."""

    head: str
    kind: str
    scale: str
    pca: Any
    search: str | None
    refit: bool
    calibrate: str | None
    inputs: Any


class Outcome(NamedTuple):
    """What became of a cell: `ok`, `refused` or `FAILED`; how far its values are off; why it was refused or failed."""

    state: str
    off: float | None
    why: str


def cells(order: int) -> list[Cell]:
    """Return the combinations that allpairspy makes with `n` of this order; of 2, every two values meet."""
    return [Cell(*row) for row in AllPairs(list(AXES.values()), n=order)]


def make_places(root: Path) -> dict[str, Place]:
    """Return a task of each kind over the same two taps, which tell classes apart with errors."""
    random = np.random.default_rng(3)
    places = {kind: Place(root / kind) for kind in AXES["kind"]}
    for kind, place in places.items():
        task = write_task(place.task, CLASSES, splits=SPLITS)
        numbers = np.array([CLASSES.index(name) for name in task.targets])
        for tap, shape in TAPS.items():
            width = int(np.prod(shape))
            centres = 1.2 * np.random.default_rng(width).normal(size=(len(CLASSES), width))
            values = centres[numbers] + random.normal(size=(len(task), width)) * np.linspace(0.7, 1.6, width)
            write_features(place.features / tap, list(task.keys), (values + 0.5).reshape(-1, *shape))
        X = np.concatenate([tap_of(place, task, tap) for tap in TAPS], axis=1)
        noise = random.normal(size=(len(task), 3))
        if kind == "regression":
            target = X @ np.linspace(-1, 1, X.shape[1]) + noise[:, 0]
            retarget(place, pa.array(target.astype(np.float64)), "regression")
        elif kind == "multilabel":
            there = X[:, 2:5] - X[:, :3] + noise > 0.3
            labels = [[name for name, one in zip("abc", row, strict=True) if one] for row in there]
            retarget(place, pa.array(labels), "multilabel")
    return places


def tap_of(place: Place, task: Task, tap: str) -> np.ndarray:
    """The stored rows of a tap in the order of the task: float32 (rows, width)."""
    stored = Features.open(place.features / tap).load(list(task.keys))
    return stored.reshape(len(task), -1).astype(np.float32)


def run(cell: Cell, place: Place) -> Outcome:
    """Run a cell and compare what it predicted."""
    try:
        settings = {name: value for name, value in cell._asdict().items() if name not in ("kind", "inputs")}
        params = FASTER.get(cell.head, {})
        given: dict[str, Any] = {**settings, "task": "pets", "backbone": "tiny", "inputs": [cell.inputs]}
        config = FitConfig(**given, params=params, validation="split")
        place.run(config)
    except (ValidationError, ConfigError, HeadError) as error:
        reasons = [reason for words, reason in REFUSALS.items() if re.search(words, str(error))]
        return Outcome("refused", None, reasons[0]) if reasons else Outcome("FAILED", None, _one_line(error))
    except (PipelineError, ValueError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
        return Outcome("FAILED", None, f"{type(error).__name__}: {_one_line(error)}")
    [record] = place.model()["fits"]
    [got] = PredictionsFile.open(place.predictions)
    return _compared(cell, got, wanted(cell, place, record))


class Wanted(NamedTuple):
    """What scikit-learn predicts of a run's rows: `predicted` as a task has targets; scores where the run has any."""

    keys: list[str]
    predicted: np.ndarray
    scores: np.ndarray | None
    temperature: float | None
    got_temperature: float | None


def wanted(cell: Cell, place: Place, record: Mapping[str, Any]) -> Wanted:
    """Fit scikit-learn's classes to the rows of a run, with the parameter that its record says was chosen."""
    task = Task.read(place.task)
    taps = [cell.inputs] if isinstance(cell.inputs, str) else list(cell.inputs)
    columns = [tap_of(place, task, tap) for tap in taps]
    train, validation, test = (task.rows(split) for split in ("train", "validation", "test"))
    # Bools would not do: LabelBinarizer writes its -1 into an array of the targets' type.
    targets = task.targets.astype(int) if cell.kind == "multilabel" else task.targets
    chosen = {record["search"]["parameter"]: record["search"]["chosen"]} if record["search"] else {}

    def fitted(rows: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        prepared = _prepared(cell, columns, rows)
        answer = _fitted(cell, chosen, prepared[rows], targets[rows])
        return lambda asked: answer(prepared[asked])

    first = fitted(train)
    last = fitted(np.sort(np.concatenate([train, validation]))) if cell.refit else first
    parts = [first(validation), last(test)]
    temperature = None
    predicted, scores = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if record["search"] and record["search"]["temperatures"]:
        temperature = _of_a_search(parts[0][1], targets[validation], task.classes)
        several = cell.kind == "multilabel"
        scores = expit(logit(scores) / temperature) if several else softmax(_logits(scores) / temperature, axis=1)
    if cell.calibrate is not None:
        temperature = _temperature(parts[0][1], targets[validation], task.classes)
        scores = softmax(_logits(scores) / temperature, axis=1)
    keys = [task.keys[row] for row in (*validation, *test)]
    return Wanted(keys, predicted, scores, temperature, record["temperature"])


def _prepared(cell: Cell, columns: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """All rows, scaled a tap at a time as the training rows say, and their principal components."""
    scaler = {"standard": StandardScaler(), "l2": Normalizer(), "none": FunctionTransformer()}[cell.scale]
    X = np.concatenate([clone(scaler).fit(one[rows]).transform(one) for one in columns], axis=1)
    if cell.pca is None:
        return X
    pca = cell.pca if isinstance(cell.pca, dict) else {"components": cell.pca}
    return PCA(pca["components"], whiten=pca.get("whiten", False), random_state=0).fit(X[rows]).transform(X)  # type: ignore[no-any-return]


def _fitted(cell: Cell, chosen: Mapping[str, Any], X: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], Any]:
    """A function of prepared rows that gives predictions and scores."""
    plain = cell.head.removeprefix("streaming_")
    if cell.kind == "multilabel" and plain not in SEVERAL_LABELS:
        each = [_one_head(cell, plain, chosen, X, column) for column in y.T]

        def answers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            both = [one(rows) for one in each]
            return tuple(np.stack([part[i] for part in both], axis=1) for i in (0, 1))  # type: ignore[return-value]

        return answers
    return _one_head(cell, plain, chosen, X, y)


def _one_head(cell: Cell, plain: str, chosen: Mapping[str, Any], X: np.ndarray, y: np.ndarray) -> Callable[..., Any]:
    if plain in ("prototypes", "centroid"):
        return _nearest_mean(X, y, cosine=plain == "prototypes")
    if cell.head == "streaming_lda" and not chosen:
        return _pooled_discriminant(X, y)
    head = clone((REGRESSORS if cell.kind == "regression" else CLASSIFIERS)[plain])
    head.set_params(**{**FASTER.get(plain, {}), **chosen}).fit(X, y)

    def answers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = head.predict(rows)
        if cell.kind == "regression":
            return predicted, np.empty((len(rows), 0))
        scores = head.predict_proba(rows) if hasattr(head, "predict_proba") else head.decision_function(rows)
        if isinstance(scores, list):
            scores = np.stack([one[:, 1] for one in scores], axis=1)
        elif cell.kind == "multilabel" and y.ndim == 1 and scores.ndim == 2:
            scores = scores[:, 1]
        return predicted, scores

    return answers


def _nearest_mean(X: np.ndarray, y: np.ndarray, *, cosine: bool) -> Callable[..., Any]:
    """The class of the nearest mean; scores are cosines, or -|x - m|²/2; of a label present less absent."""
    classes = np.unique(y)
    means = np.stack([X[y == name].mean(axis=0, dtype=np.float64) for name in classes])
    directions = Normalizer().fit_transform(means)

    def answers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if cosine:
            scores = Normalizer().fit_transform(rows.astype(np.float64)) @ directions.T
        else:
            scores = -((rows[:, None].astype(np.float64) - means) ** 2).sum(axis=2) / 2
        predicted = classes[scores.argmax(axis=1)]
        return predicted, scores[:, 1] - scores[:, 0] if y.dtype.kind == "i" else scores

    return answers


def _pooled_discriminant(X: np.ndarray, y: np.ndarray) -> Callable[..., Any]:
    """Linear discriminants by the Ledoit-Wolf estimate for all rows about their class means, each feature scaled."""
    classes, numbers = np.unique(y, return_inverse=True)
    means = np.stack([X[y == name].mean(axis=0, dtype=np.float64) for name in classes])
    rest = X - means[numbers]
    deviations = rest.std(axis=0)
    covariance = ledoit_wolf(rest / deviations, assume_centered=True)[0] * np.outer(deviations, deviations)
    coefficients = np.linalg.solve(covariance, means.T)
    level = np.log(np.bincount(numbers) / len(y)) - (means.T * coefficients).sum(axis=0) / 2

    def answers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = softmax(rows @ coefficients + level, axis=1)
        return classes[scores.argmax(axis=1)], scores[:, 1] if y.dtype.kind == "i" else scores

    return answers


def _logits(scores: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities; decision values as they are."""
    probabilities = scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1)
    return np.log(scores + 1e-12) if probabilities else scores


def _of_a_search(scores: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> float:
    """Find the temperature that divides coefficients: the best one, or that of rows that count by (n + 1) / (n + 2)."""
    right = y.astype(bool) if y.ndim == 2 else y[:, None] == np.array(classes)
    if y.ndim == 2:  # a pair of classes per label
        scores = np.stack([1 - scores.ravel(), scores.ravel()], axis=1)
        right = np.stack([~right.ravel(), right.ravel()], axis=1)
    n, others = len(scores), scores.shape[1] - 1

    def best(weights: np.ndarray) -> float:
        def loss(log: float) -> float:
            return float(-(weights * log_softmax(_logits(scores) / np.exp(log), axis=1)).sum(axis=1).mean())

        return float(np.exp(minimize_scalar(loss, bounds=(-np.log(4), np.log(4)), method="bounded").x))

    return sorted([1.0, best(right.astype(float)), best(np.where(right, (n + 1) / (n + 2), 1 / (n + 2) / others))])[1]


def _temperature(scores: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> float:
    """The number that gives the scores of validation rows their least log loss."""
    columns = np.array([list(classes).index(name) for name in y])
    logits = _logits(scores)

    def loss(log: float) -> float:
        return float(-log_softmax(logits * np.exp(log), axis=1)[np.arange(len(y)), columns].mean())

    return float(np.exp(-minimize_scalar(loss, bounds=(-10, 10), options={"xatol": 1e-8}).x))


def _compared(cell: Cell, got: Predictions, want: Wanted) -> Outcome:
    """Compare predictions, scores and temperature of the same rows."""
    at = {key: row for row, key in enumerate(got.keys)}
    if sorted(at) != sorted(want.keys):
        return Outcome("FAILED", None, "other rows")
    rows = np.array([at[key] for key in want.keys])
    tolerance = TOLERANCE.get(cell.head, 1e-3)
    if cell.kind == "regression":
        off = _off(got.predicted[rows], want.predicted)
        return Outcome("ok" if off <= tolerance else "FAILED", off, "" if off <= tolerance else "other numbers")
    off, why = 0.0, ""
    scores = got.scores[rows]
    if not np.isnan(scores).all():
        off = _off(scores, want.scores)
        why = "" if off <= tolerance else "other scores"
    differ = float((got.predicted[rows] != want.predicted).mean())
    if differ > 0:
        why = f"{why} {differ:.1%} of the predictions differ".strip()
    if (
        want.temperature is not None
        and want.got_temperature is not None
        and abs(want.got_temperature / want.temperature - 1) > 0.02
    ):
        why = f"{why} temperature {want.got_temperature:.4g}, not {want.temperature:.4g}".strip()
    return Outcome("FAILED" if why else "ok", off, why)


def _off(got: np.ndarray, want: Any) -> float:
    """The largest difference, in units of the largest wanted number or of 1."""
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
