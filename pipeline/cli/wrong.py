"""List the test samples that a run answers wrongly, each with the training sample that is most similar to it.

The similarity is the cosine of two feature rows less the mean of the training rows, as in an audit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.audit.neighbours import Centred, centre
from pipeline.errors import DataError, counted
from pipeline.evaluate.methods import Method, Methods, read
from pipeline.predictions import Predictions
from pipeline.store import keys as key_arrays
from pipeline.store.features import Features
from pipeline.streaming.exact_search import nearest
from pipeline.streaming.rows import Rows
from pipeline.task import Kind, Task
from pipeline.text import table


@dataclass(frozen=True)
class Similar:
    """A training sample, its target, and the cosine with the sample that it is listed for."""

    path: str
    target: str
    similarity: float


@dataclass(frozen=True)
class Mistake:
    """A test sample that was answered wrongly; `confidence` is the score of the answer, None without scores."""

    path: str
    key: str
    target: str
    predicted: str
    confidence: float | None
    nearest: Similar | None


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of one fit of a run, the most confident first; of numbers the largest errors."""

    method: Method
    draw: int | None
    kind: Kind
    tested: int
    count: int
    listed: list[Mistake]
    probable: bool
    """Whether `confidence` is a probability, and no decision value."""

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return {
            **self.method._asdict(),
            "draw": self.draw,
            "test_rows": self.tested,
            "wrong": self.count,
            "mistakes": [asdict(one) for one in self.listed],
        }

    def __str__(self) -> str:
        drawn = "" if self.draw is None else f", draw {self.draw}"
        trained = "all" if self.method.labels is None else f"{counted(self.method.labels, 'label')} a class"
        what = "are not met exactly" if self.kind == "regression" else "are wrong"
        share = self.count / self.tested
        title = (
            f"{self.method.head} on {self.method.input}, {trained}{drawn}: {self.count:,} of {self.tested:,} test "
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
                one.path,
                one.target,
                one.predicted,
                "–" if one.confidence is None else f"{one.confidence:.3f}",
                *_cells(one.nearest),
            ]
            for one in self.listed
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
    """Return the mistakes of the method that `evaluate` selected, in one of its draws, by default the first.

    `evaluation` is what `evaluate` wrote of the run. `taps` returns the features of an input by its name; none where
    there are no such features, and then no training sample is named. Raises DataError for a run that was not measured,
    for a draw that there is not, and for predictions that do not fit the task.
    """
    if "unavailable" in evaluation:
        raise DataError(f"{predictions.stem}: no method was selected: {evaluation['unavailable']}")
    methods = read(predictions, task)
    best = evaluation["selected"]
    method = Method(best["head"], best["input"], best["labels"])
    one = _fit_of(methods, method, draw, where=predictions)
    wrong, sure = _ranked(methods, one)
    listed = wrong[:most]
    near = _most_similar(methods, one, one.keys[listed], taps(method.input))
    paths = methods.task.paths_of(one.keys[listed]).to_pylist()
    scores = methods.file.scores.get(one.head, "none")
    mistakes = [
        Mistake(
            path or one.keys[row],
            one.keys[row],
            _text(one.targets[row], methods),
            _text(one.predicted[row], methods),
            None if sure is None else float(sure[row]),
            similar,
        )
        for row, path, similar in zip(listed, paths, near, strict=True)
    ]
    return Mistakes(method, one.draw, methods.file.kind, len(one.keys), len(wrong), mistakes, scores == "probability")


def _fit_of(methods: Methods, method: Method, draw: int | None, *, where: Path) -> Predictions:
    """The test rows of a fit of the method."""
    fits = methods.test(method)
    known = [one.draw for one in fits]
    if draw is None:
        return fits[0]
    if draw not in known:
        drawn = ", ".join(str(number) for number in known if number is not None) or "one fit without draws"
        raise DataError(f"{where}: expected a draw of {method.head} on {method.input}, got {draw}. There is: {drawn}.")
    return fits[known.index(draw)]


def _ranked(methods: Methods, one: Predictions) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers of wrong rows, the worst first, and how sure the fit is of the answer to each row."""
    if methods.file.kind == "regression":
        error = np.abs(one.predicted - one.targets)
        return _order(np.flatnonzero(error > 0), error, one.keys), None
    differs = one.predicted != one.targets
    wrong = np.flatnonzero(differs.any(axis=1) if differs.ndim == 2 else differs)
    if methods.file.scores.get(one.head, "none") == "none":
        labels = differs.sum(axis=1) if differs.ndim == 2 else np.ones(len(differs))
        return _order(wrong, labels, one.keys), None
    if differs.ndim == 2:  # the label that is the most plainly wrong: there without a cause, or missing
        middle = 0.5 if methods.file.scores[one.head] == "probability" else 0.0
        sure = np.where(differs, np.abs(one.scores - middle), -np.inf).max(axis=1)
        scores = np.where(differs.any(axis=1), sure + middle, np.nan)
        return _order(wrong, scores, one.keys), scores
    place = {name: number for number, name in enumerate(methods.file.classes)}
    sure = one.scores[np.arange(len(one.keys)), [place[name] for name in one.predicted]]
    return _order(wrong, sure, one.keys), sure


def _order(rows: np.ndarray, worst: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return rows[np.lexsort((keys[rows].astype(str), -worst[rows]))]


def _most_similar(
    methods: Methods, one: Predictions, keys: np.ndarray, taps: Sequence[Features]
) -> list[Similar | None]:
    """The most similar of the rows that the fit could learn from, of each sample; None without features."""
    task = methods.task
    rows = task.rows("train") if one.labels is None or one.draw is None else task.few(one.draw, one.labels)
    there = [np.isin(key_arrays.from_hex(task.keys[rows]), tap.key_array) for tap in taps]
    rows = rows[np.logical_and.reduce(there)] if taps else rows[:0]
    if not len(rows) or not len(keys):
        return [None] * len(keys)
    known = Rows(taps, task.keys[rows].tolist())
    mean = centre(known).mean
    distances, numbers = nearest(Centred(Rows(taps, keys.tolist()), mean), Centred(known, mean), 1)
    chosen = rows[numbers[:, 0]]
    names = zip(task.paths_of(task.keys[chosen]).to_pylist(), task.keys[chosen], strict=True)
    return [
        Similar(path or key, _text(task.targets[row], methods), round(1 - float(distance), 4))
        for (path, key), row, distance in zip(names, chosen, distances[:, 0], strict=True)
    ]


def _cells(similar: Similar | None) -> tuple[str, str, str]:
    return ("–",) * 3 if similar is None else (similar.path, similar.target, f"{similar.similarity:.3f}")


def _text(target: Any, methods: Methods) -> str:
    """A target as a person reads it."""
    if methods.file.kind == "regression":
        return f"{target:.4g}"
    if methods.file.kind == "multilabel":
        return "; ".join(name for name, given in zip(methods.file.classes, target, strict=False) if given) or "none"
    return str(target)


def taps_of(evaluation: Mapping[str, Any], features: Path, task: Task) -> Callable[[str], Sequence[Features]]:
    """Return what gives the features that a run's input stands for: its taps, or the narrowest tap of its backbone.

    A network that was trained has no stored features of its own: its backbone's are taken where they have the task.
    """
    made = evaluation["made_from"]

    def find(name: str) -> Sequence[Features]:
        folder = features / made["settings"].get("backbone", made.get("student", ""))
        own = [folder / tap for tap in name.split("+")]
        if all((path / "index.json").is_file() for path in own):
            return [Features.open(path) for path in own]
        opened = [Features.open(path.parent) for path in sorted(folder.glob("*/index.json"))]
        wanted = key_arrays.from_hex(task.keys)
        whole = [tap for tap in opened if np.isin(wanted, tap.key_array).all()]
        return sorted(whole, key=lambda tap: int(np.prod(tap.shape)))[:1]

    return find
