"""List the wrong predictions of a run, each with the most similar training sample.

The similarity is the cosine of two feature rows minus the mean of the training rows, as in an audit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, counted
from pipeline.evaluate.methods import Method, Methods, read
from pipeline.model_record import record_of
from pipeline.predict.training_rows import TrainingRows, describe_target, fitted_rows, open_taps
from pipeline.predictions import Predictions
from pipeline.store.features import Features
from pipeline.streaming.rows import Rows
from pipeline.task import Kind, Task
from pipeline.text import table


@dataclass(frozen=True)
class Similar:
    """A training sample, its target, and its cosine with a wrongly predicted sample."""

    path: str
    target: str
    similarity: float


@dataclass(frozen=True)
class Mistake:
    """A wrongly predicted test sample; `confidence` is the score of the prediction, None without scores.

    `differs`: the predicted class and the target. For multilabel tasks, the labels that only one of the two has, the
    most confident first. Empty for regressions.
    """

    path: str
    key: str
    target: str
    predicted: str
    confidence: float | None
    nearest: Similar | None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of one fit of a run, the most confident first; in a regression the largest errors first."""

    method: Method
    draw: int | None
    kind: Kind
    tested: int
    count: int
    listed: list[Mistake]
    probable: bool
    """Whether `confidence` is a probability, not a decision value."""

    def to_json(self) -> dict[str, Any]:
        """Return the mistakes as JSON values."""
        return {
            **self.method._asdict(),
            "draw": self.draw,
            "test_rows": self.tested,
            "wrong": self.count,
            "mistakes": [asdict(mistake) for mistake in self.listed],
        }

    def __str__(self) -> str:
        draw = "" if self.draw is None else f", draw {self.draw}"
        labels = "all labels" if self.method.labels is None else f"{counted(self.method.labels, 'label')} per class"
        what = "are not predicted exactly" if self.kind == "regression" else "are wrong"
        share = self.count / self.tested
        title = (
            f"{self.method.head} on {self.method.input}, {labels}{draw}: {self.count:,} of {self.tested:,} test "
            f"samples {what} ({share:.1%})"
        )
        if not self.listed:
            return title
        header = [
            "path",
            "target",
            "predicted",
            "confidence" if self.probable else "score",
            "most similar training sample",
            "its target",
            "cosine",
        ]
        lines = [
            [
                mistake.path,
                mistake.target,
                mistake.predicted,
                "–" if mistake.confidence is None else f"{mistake.confidence:.3f}",
                *_cells(mistake.nearest),
            ]
            for mistake in self.listed
        ]
        rest = self.count - len(self.listed)
        more = f"\n… and {rest:,} more: --most {self.count}" if rest else ""
        return f"{title}\n\n{table(header, lines)}{more}"


def find_mistakes(
    evaluation: Mapping[str, Any],
    *,
    predictions: Path,
    task: Path,
    taps: Callable[[str], Sequence[Features]],
    most: int,
    draw: int | None = None,
) -> Mistakes:
    """Return the mistakes of the method that `evaluate` selected, in one of its draws.

    evaluation: what `evaluate` wrote of the run.
    predictions, task: the Parquet files of the run and of its task.
    taps: returns the features of an input by its name. Without features, no training sample is listed.
    most: the largest number of mistakes to list.
    draw: the draw of the method; the first if None.

    Raises DataError for a run that was not measured, for an unknown draw, and for predictions of another task.
    """
    if "unavailable" in evaluation:
        raise DataError(f"{predictions.stem}: no method was selected: {evaluation['unavailable']}")
    methods = read(predictions, task)
    best = evaluation["selected"]
    method = Method(best["head"], best["input"], best["labels"])
    fit = _fit_of(methods, method, draw, where=predictions)
    wrong, confidence = _rank_mistakes(methods, fit)
    listed = wrong[:most]
    neighbours = _most_similar(methods, fit, fit.keys[listed], taps(method.input))
    paths = methods.task.paths_of(fit.keys[listed]).to_pylist()
    scores = methods.file.scores.get(fit.head, "none")
    mistakes = [
        Mistake(
            path or fit.keys[row],
            fit.keys[row],
            _text(fit.targets[row], methods),
            _text(fit.predicted[row], methods),
            None if confidence is None else float(confidence[row]),
            similar,
            _differing(methods, fit, row),
        )
        for row, path, similar in zip(listed, paths, neighbours, strict=True)
    ]
    return Mistakes(method, fit.draw, methods.file.kind, len(fit.keys), len(wrong), mistakes, scores == "probability")


def _fit_of(methods: Methods, method: Method, draw: int | None, *, where: Path) -> Predictions:
    """Return the test rows of the method's fit with a draw, by default the first."""
    fits = methods.test(method)
    draws = [fit.draw for fit in fits]
    if draw is None:
        return fits[0]
    if draw not in draws:
        existing = ", ".join(str(number) for number in draws if number is not None) or "one fit without draws"
        raise DataError(
            f"{where}: expected a draw of {method.head} on {method.input}, got {draw}. There is: {existing}."
        )
    return fits[draws.index(draw)]


def _rank_mistakes(methods: Methods, fit: Predictions) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the indices of the wrong rows, the worst first, and the confidence in each row; None without scores."""
    if methods.file.kind == "regression":
        error = np.abs(fit.predicted - fit.targets)
        return _order(np.flatnonzero(error > 0), error, fit.keys), None
    differs = fit.predicted != fit.targets
    wrong = np.flatnonzero(differs.any(axis=1) if differs.ndim == 2 else differs)
    if methods.file.scores.get(fit.head, "none") == "none":
        labels = differs.sum(axis=1) if differs.ndim == 2 else np.ones(len(differs))
        return _order(wrong, labels, fit.keys), None
    if differs.ndim == 2:  # the most confident of the wrong labels, predicted or missing
        middle = 0.5 if methods.file.scores[fit.head] == "probability" else 0.0
        margin = np.where(differs, np.abs(fit.scores - middle), -np.inf).max(axis=1)
        scores = np.where(differs.any(axis=1), margin + middle, np.nan)
        return _order(wrong, scores, fit.keys), scores
    columns = {name: number for number, name in enumerate(methods.file.classes)}
    confidence = fit.scores[np.arange(len(fit.keys)), [columns[name] for name in fit.predicted]]
    return _order(wrong, confidence, fit.keys), confidence


def _differing(methods: Methods, fit: Predictions, row: int) -> tuple[str, ...]:
    """Return the classes that the prediction and the target of a row do not share."""
    if methods.file.kind == "regression":
        return ()
    if methods.file.kind == "classification":
        return str(fit.predicted[row]), str(fit.targets[row])
    labels = np.flatnonzero(fit.predicted[row] != fit.targets[row])
    middle = 0.5 if methods.file.scores.get(fit.head) == "probability" else 0.0
    distances = np.nan_to_num(np.abs(fit.scores[row][labels] - middle))
    return tuple(methods.file.classes[label] for label in labels[np.argsort(-distances, kind="stable")])


def _order(rows: np.ndarray, badness: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return rows by decreasing badness; ties by key."""
    return rows[np.lexsort((keys[rows].astype(str), -badness[rows]))]


def _most_similar(
    methods: Methods, fit: Predictions, keys: np.ndarray, taps: Sequence[Features]
) -> list[Similar | None]:
    """Return the most similar training row of the fit for each sample; None without features."""
    task = methods.task
    known = TrainingRows.read(task, fitted_rows(task, fit.labels, fit.draw), taps) if len(keys) else None
    if known is None:
        return [None] * len(keys)
    numbers, cosines = known.nearest(Rows(taps, keys.tolist()), 1)
    return [
        Similar(path, _text(task.targets[row], methods), round(float(cosine), 4))
        for path, row, cosine in zip(known.paths(numbers[:, 0]), numbers[:, 0], cosines[:, 0], strict=True)
    ]


def _cells(similar: Similar | None) -> tuple[str, str, str]:
    return ("–",) * 3 if similar is None else (similar.path, similar.target, f"{similar.similarity:.3f}")


def _text(target: Any, methods: Methods) -> str:
    """Return a target as text."""
    return describe_target(target, methods.file.kind, methods.file.classes)


def find_taps(evaluation: Mapping[str, Any], features: Path, task: Task) -> Callable[[str], Sequence[Features]]:
    """Return a function from the name of a run's input to the features of its taps, as `open_taps` opens them."""
    folder = features / record_of(evaluation).backbone
    return lambda name: open_taps(folder, name, task)
