"""Students beside their teachers on test rows: who taught whom, and how far they answer alike.

A run whose model.json names a `student` is one. It stands beside each of its `teachers` of the task that has
predictions too, beside their average where there are several, and beside the runs of the same student on labels alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.evaluate import bootstrap
from pipeline.evaluate.methods import Method, Methods, part
from pipeline.predictions import Predictions
from pipeline.task import Kind

Evaluated = Mapping[str, Any]
"""What evaluation wrote of a run."""

TINY = float(np.finfo(np.float32).tiny)  # scores are stored as float32: what is 0 there may be as large as this


@dataclass(frozen=True)
class Comparison:
    """A student, and what it is compared with. `run`: of the other; None of an average.

    `fits`: test rows of the other, sorted by key. `probability`: whether the scores of both are, of equal classes.
    """

    student: str
    kind: Literal["teacher", "average", "labels"]
    name: str
    run: str | None
    fits: list[Predictions]
    probability: bool


def comparisons(runs: Mapping[str, Evaluated], read: Callable[[str], Methods]) -> Iterator[Comparison]:
    """Every student of the runs of a task with each of the others. `read` gives the predictions of a run."""
    for student, evaluated in runs.items():
        made = evaluated["made_from"]
        own_task = made["settings"]["task"]
        entries = [one for one in made.get("teachers", ()) if one.get("task", own_task) == own_task]
        if not entries:
            continue
        own = read(student).file
        probable = own.scores.get(evaluated["selected"]["head"]) == "probability"
        teachers = []
        for entry in entries:
            methods = read(entry["run"]) if entry["run"] in runs else None
            found = None if methods is None else predictions_of_teacher(entry, methods, runs[entry["run"]])
            if methods is not None and found is not None:
                same = methods.file.classes == own.classes
                both = probable and same and methods.file.scores.get(found.head) == "probability"
                teachers.append(Comparison(student, "teacher", entry["name"], entry["run"], [found], both))
        yield from teachers
        if len(teachers) == len(entries) > 1 and all(one.probability for one in teachers):
            name = " + ".join(one.name for one in teachers)
            mean = averaged([one.fits[0] for one in teachers], own.classes)
            yield Comparison(student, "average", name, None, [mean], probability=True)
        for other, baseline in runs.items():
            if same_student(evaluated, baseline):
                best = baseline["selected"]
                fits = read(other).fits[Method(best["head"], best["input"], best["labels"])]
                yield Comparison(student, "labels", other, other, [_sorted(one) for one in fits], probability=False)


def same_student(taught: Evaluated, other: Evaluated) -> bool:
    """Whether another run is of the same student and as many labels, without a teacher."""
    one, two = taught["made_from"], other["made_from"]
    labels = taught["selected"]["labels"] == other["selected"]["labels"]
    return bool(labels and "student" in two and two["student"] == one["student"] and not two.get("teachers"))


def predictions_of_teacher(entry: Mapping[str, Any], methods: Methods, evaluated: Evaluated) -> Predictions | None:
    """The test rows of the fit that a teacher is, sorted by key; None where not one alone answers to its description.

    Of a run that trained networks that is the one that was kept: `backbone` of its model.json.
    """
    kept = evaluated["made_from"].get("backbone", {})
    told = {name: entry.get(name) for name in ("head", "input", "labels", "draw")}
    told |= {name: kept[name] for name in ("labels", "draw") if name in kept}
    if "backbone" in evaluated["made_from"]:
        told["head"] = None  # it has one
    fits = [one for found in methods.fits.values() for one in found]
    meant = [one for one in fits if all(value in (None, getattr(one, name)) for name, value in told.items())]
    if told["labels"] is None and len(meant) > 1:
        meant = [one for one in meant if one.labels is None] or meant
    return _sorted(meant[0]) if len(meant) == 1 else None


def averaged(fits: Sequence[Predictions], classes: Sequence[str]) -> Predictions:
    """Several teachers as one: the mean of their probabilities, and what it says of the same rows."""
    scores = np.mean([one.scores for one in fits], axis=0)
    names = np.array(classes, dtype=object)
    several = fits[0].targets.ndim == 2
    predicted = scores > 0.5 if several else names[scores.argmax(axis=1)]
    return replace(fits[0], head="average", predicted=predicted, scores=scores.astype(np.float32))


def describe_comparisons(
    besides: Sequence[Comparison],
    students: Sequence[Sequence[Predictions]],
    kind: Kind,
    *,
    level: float,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """What each student is compared with, and how far it answers as that does; means over the student's draws.

    `students`: the test rows of the student of each of `besides`, a fit a draw, sorted by key. `agreement`: the share
    of rows with the same class, with its bootstrap interval; of a multilabel task the share of equal yes and no,
    without one. `divergence`: see there. Both are None beside labels alone, which taught nothing.
    """
    found = []
    for one, fits in zip(besides, students, strict=True):
        other, teaches = one.fits[0], one.kind != "labels"
        diverges = [divergence(other.scores, fit.scores, kind) for fit in fits] if one.probability else [None]
        found.append(
            {
                **{"student": one.student, "kind": one.kind, "name": one.name, "run": one.run},
                **{name: getattr(other, name) for name in ("head", "input", "labels", "draw")},
                "agreement": _mean(
                    [float((other.predicted == fit.predicted).mean()) for fit in fits] if teaches else []
                ),
                **dict.fromkeys(("agreement_low", "agreement_high")),
                "divergence": _mean(diverges),
            }
        )
    if kind == "classification":
        _bound(found, besides, students, level=level, resamples=resamples, seed=seed)
    return found


def _bound(
    found: Sequence[dict[str, Any]],
    besides: Sequence[Comparison],
    students: Sequence[Sequence[Predictions]],
    *,
    level: float,
    resamples: int,
    seed: int,
) -> None:
    """The intervals of agreements: that of an accuracy, where what the teacher says is right."""
    answers = {
        place: [replace(fit, targets=one.fits[0].predicted) for fit in fits]
        for place, (one, fits) in enumerate(zip(besides, students, strict=True))
        if one.kind != "labels"
    }
    if answers:
        values = bootstrap.resampled("accuracy", list(answers.values()), [], resamples=resamples, seed=seed)
        for place, row in zip(answers, values, strict=True):
            ends = bootstrap.interval(row, level, rows=len(answers[place][0].keys))
            assert ends is not None, "an accuracy has a value in every resample"
            found[place]["agreement_low"], found[place]["agreement_high"] = ends


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def divergence(teacher: np.ndarray, student: np.ndarray, kind: Kind) -> float:
    """Mean over rows of the Kullback-Leibler divergence of a student from its teacher, in nats.

    KL(teacher || student) = sum over classes of t log(t / s) (Kullback and Leibler 1951, eq. 2.5): what is left of
    the soft loss at temperature 1. Both are probabilities (n, classes); of a multilabel task each class is a pair of
    yes and no, and their divergences are added.
    """
    t, s = (np.maximum(scores.astype(np.float64), TINY) for scores in (teacher, student))
    if kind == "multilabel":
        pairs = [(t, s), (np.maximum(1 - t, TINY), np.maximum(1 - s, TINY))]
    else:
        pairs = [(t / t.sum(axis=1, keepdims=True), s / s.sum(axis=1, keepdims=True))]
    return float(np.mean(sum((a * np.log(a / b)).sum(axis=1) for a, b in pairs)))


def _sorted(one: Predictions) -> Predictions:
    test = part(one, one.splits == "test")
    return part(test, np.argsort(test.keys))
