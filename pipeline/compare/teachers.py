"""Compare students with their teachers on test rows: which teacher a student has, and how far the two agree.

A run whose model.json names a `student` is a student. It is compared with each of its `teachers` of the same task that
has predictions, with the average of several teachers, and with the runs of the same student that had only labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pipeline.evaluate import bootstrap
from pipeline.evaluate.methods import Method, Methods, subset
from pipeline.model_record import ModelRecord, NetworkRecord, TeacherRecord, is_student, record_of
from pipeline.predictions import Predictions
from pipeline.task import Kind

Evaluated = Mapping[str, Any]
"""The tables that `evaluate` wrote for a run."""

TINY = float(np.finfo(np.float32).tiny)  # scores are stored as float32: a stored 0 may stand for up to this value


@dataclass(frozen=True)
class Comparison:
    """A student and the predictions that it is compared with.

    student: the student's run.
    kind: whether the other is a teacher, the average of several, or the same student with only labels.
    name: the other's name in tables.
    run: the other's run; None for an average.
    fits: test rows of the other, sorted by key.
    probability: whether both have probabilities, of equal classes.
    """

    student: str
    kind: Literal["teacher", "average", "labels"]
    name: str
    run: str | None
    fits: list[Predictions]
    probability: bool


def comparisons(runs: Mapping[str, Evaluated], read: Callable[[str], Methods]) -> Iterator[Comparison]:
    """Yield every student of the runs of a task with each run that it is compared with.

    runs: the runs of the task by name. read: returns the predictions of a run.
    """
    records = {name: record_of(evaluated) for name, evaluated in runs.items()}
    for student, evaluated in runs.items():
        record = records[student]
        if not is_student(record) or not record.own_teachers:
            continue
        own = read(student).file
        probable = own.scores.get(evaluated["selected"]["head"]) == "probability"
        teachers = []
        for teacher in record.own_teachers:
            methods = read(teacher.run) if teacher.run in runs else None
            fit = None if methods is None else predictions_of_teacher(teacher, methods, records[teacher.run])
            if methods is not None and fit is not None:
                same = methods.file.classes == own.classes
                both = probable and same and methods.file.scores.get(fit.head) == "probability"
                teachers.append(Comparison(student, "teacher", teacher.name, teacher.run, [fit], both))
        yield from teachers
        if len(teachers) == len(record.own_teachers) > 1 and all(pair.probability for pair in teachers):
            name = " + ".join(pair.name for pair in teachers)
            mean = average_predictions([pair.fits[0] for pair in teachers], own.classes)
            yield Comparison(student, "average", name, None, [mean], probability=True)
        for other, baseline in runs.items():
            best = baseline["selected"]
            if best["labels"] == evaluated["selected"]["labels"] and is_baseline(record, records[other]):
                fits = read(other).fits[Method(best["head"], best["input"], best["labels"])]
                yield Comparison(student, "labels", other, other, [_sort_test(fit) for fit in fits], probability=False)


def is_baseline(student: NetworkRecord, other: ModelRecord) -> bool:
    """Return whether another run trained the network of a student without a teacher."""
    return is_student(other) and other.student == student.student and not other.teachers


def predictions_of_teacher(teacher: TeacherRecord, methods: Methods, record: ModelRecord) -> Predictions | None:
    """Return the test rows of a teacher's fit, sorted by key; None unless exactly one fit matches.

    record: of the teacher's run. If that run trained networks, the teacher is the network that the run kept.
    """
    wanted = {name: getattr(teacher, name) for name in ("head", "input", "labels", "draw")}
    if isinstance(record, NetworkRecord):
        wanted |= {"head": None, "labels": record.network.labels, "draw": record.network.draw}  # the run has one head
    fits = [fit for method_fits in methods.fits.values() for fit in method_fits]
    matches = [fit for fit in fits if all(value in (None, getattr(fit, name)) for name, value in wanted.items())]
    if wanted["labels"] is None and len(matches) > 1:
        matches = [fit for fit in matches if fit.labels is None] or matches
    return _sort_test(matches[0]) if len(matches) == 1 else None


def average_predictions(fits: Sequence[Predictions], classes: Sequence[str]) -> Predictions:
    """Return the predictions of an ensemble of teachers: the mean of their probabilities on the same rows."""
    scores = np.mean([fit.scores for fit in fits], axis=0)
    names = np.array(classes, dtype=object)
    multilabel = fits[0].targets.ndim == 2
    predicted = scores > 0.5 if multilabel else names[scores.argmax(axis=1)]
    return replace(fits[0], head="average", predicted=predicted, scores=scores.astype(np.float32))


def describe_comparisons(
    pairs: Sequence[Comparison],
    students: Sequence[Sequence[Predictions]],
    kind: Kind,
    *,
    level: float,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return one row per pair: the student, its counterpart and their agreement, as means over the student's draws.

    pairs: the comparisons of a task.
    students: the test rows of the student of each pair, one fit per draw, sorted by key.
    kind: the kind of the task.
    level: the confidence level of intervals, 0 to 1.
    resamples, seed: settings of the bootstrap.

    `agreement` is the share of rows with equal predictions, with a bootstrap interval; in a multilabel task the share
    of equal label decisions, without an interval. `divergence` is the value of the function `divergence`. Both are None
    if the counterpart is the same student trained on labels only, which is no teacher.
    """
    rows = []
    for pair, fits in zip(pairs, students, strict=True):
        other, teaches = pair.fits[0], pair.kind != "labels"
        diverges = [divergence(other.scores, fit.scores, kind) for fit in fits] if pair.probability else [None]
        rows.append(
            {
                **{"student": pair.student, "kind": pair.kind, "name": pair.name, "run": pair.run},
                **{name: getattr(other, name) for name in ("head", "input", "labels", "draw")},
                "agreement": _mean(
                    [float((other.predicted == fit.predicted).mean()) for fit in fits] if teaches else []
                ),
                **dict.fromkeys(("agreement_low", "agreement_high")),
                "divergence": _mean(diverges),
            }
        )
    if kind == "classification":
        _add_intervals(rows, pairs, students, level=level, resamples=resamples, seed=seed)
    return rows


def _add_intervals(
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[Comparison],
    students: Sequence[Sequence[Predictions]],
    *,
    level: float,
    resamples: int,
    seed: int,
) -> None:
    """Add the intervals of agreements: an agreement is an accuracy with the teacher's predictions as targets."""
    agreements = {
        number: [replace(fit, targets=pair.fits[0].predicted) for fit in fits]
        for number, (pair, fits) in enumerate(zip(pairs, students, strict=True))
        if pair.kind != "labels"
    }
    if agreements:
        values = bootstrap.resample_metric("accuracy", list(agreements.values()), [], resamples=resamples, seed=seed)
        for number, resampled in zip(agreements, values, strict=True):
            ends = bootstrap.interval(resampled, level, rows=len(agreements[number][0].keys))
            assert ends is not None, "an accuracy has a value in every resample"
            rows[number]["agreement_low"], rows[number]["agreement_high"] = ends


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def divergence(teacher: np.ndarray, student: np.ndarray, kind: Kind) -> float:
    """Return the mean over rows of the Kullback-Leibler divergence of a student from its teacher, in nats.

    KL(teacher || student) = sum over classes of t log(t / s) (Kullback and Leibler 1951, eq. 2.5), which is the soft
    loss at temperature 1 minus the teacher's entropy.

    teacher, student: probabilities (n, classes). In a multilabel task each class is a pair of yes and no, and the
    divergences of the classes are added.
    """
    t, s = (np.maximum(scores.astype(np.float64), TINY) for scores in (teacher, student))
    if kind == "multilabel":
        pairs = [(t, s), (np.maximum(1 - t, TINY), np.maximum(1 - s, TINY))]
    else:
        pairs = [(t / t.sum(axis=1, keepdims=True), s / s.sum(axis=1, keepdims=True))]
    return float(np.mean(sum((a * np.log(a / b)).sum(axis=1) for a, b in pairs)))


def _sort_test(fit: Predictions) -> Predictions:
    """Return the test rows of a fit, sorted by key."""
    test = subset(fit, fit.splits == "test")
    return subset(test, np.argsort(test.keys))
