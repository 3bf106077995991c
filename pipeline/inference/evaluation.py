"""The protocol of `fit` and `evaluate` on vectors in memory: held-out rows choose, test rows report with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.errors import DataError, counted
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate as evaluate_run
from pipeline.files import read_json
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.fit.single_fit import Data, FittedHead
from pipeline.inference.array_task import DATASET, Inputs, kind_of, write_task
from pipeline.model_record import HeadFit
from pipeline.report import selection
from pipeline.report.leaderboard import (
    EXACT,
    NAMES,
    TERMINAL_METRICS,
    Run,
    interval,
    is_exact,
    number,
    others,
    training,
)
from pipeline.settings.check import Section, check, refuse
from pipeline.task import Kind
from pipeline.text import table

DEFAULT_HEADS: Mapping[Kind, str] = {"classification": "logistic", "multilabel": "logistic", "regression": "ridge"}


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What heads on vectors are worth; prints as a table, with the chosen head first and how it was chosen.

    run: all that `evaluate` works out: metrics and intervals of every method, tables by class, calibration.
    head: the chosen head, a fitted scikit-learn pipeline for rows of the chosen input.
    test: the numbers of the test rows among those that were given, ascending.
    predicted: what the chosen head predicts of each test row: classes as text, numbers, or a column per label.
    notes: what was not as expected, sentences.

    >>> rows = np.random.default_rng(0).normal(size=(60, 4))
    >>> found = evaluate(rows, rows[:, 0] > 0, head=["centroid", "naive_bayes"])
    >>> found.value > 0.5, len(found.table), found.predicted.shape
    (True, 2, (12,))
    """

    run: Run
    head: Any
    test: np.ndarray
    predicted: np.ndarray
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The metric that reports: accuracy, map or r2, unless another was asked for."""
        return str(self.run["metric"])

    @property
    def value(self) -> float:
        """The metric of the chosen head on the test rows."""
        return float(self.run["selected"][self.metric])

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `value`; None where it cannot be measured."""
        ends = tuple(self.run["selected"][f"{self.metric}_{end}"] for end in ("low", "high"))
        return None if None in ends else (float(ends[0]), float(ends[1]))

    @property
    def table(self) -> list[dict[str, Any]]:
        """A dictionary for each head on each input, the chosen one first, then by what held-out rows say."""
        score = f"validation_{self.metric}"
        sign = -1 if self.run["higher_is_better"] else 1
        rest = [row for row in self.run["table"] if row != self.run["selected"]]
        known = sorted((row for row in rest if row[score] is not None), key=lambda row: sign * row[score])
        return [self.run["selected"], *known, *(row for row in rest if row[score] is None)]

    def __repr__(self) -> str:
        more = others(self.run, TERMINAL_METRICS)
        labels = any(row["labels"] is not None for row in self.run["table"])
        percent = f"{100 * self.run['interval']:g} % interval"
        head = ["head", "input", *(["labels per class"] if labels else []), NAMES[self.metric], percent]
        lines = []
        for row in self.table:
            measured = [number(row[self.metric]), interval(row, self.metric), *(number(row.get(name)) for name in more)]
            lines.append([row["head"], row["input"], *([training(row["labels"])] if labels else []), *measured])
        sentences = [
            f"* {EXACT}." if any(is_exact(row, self.metric) for row in self.run["table"]) else "",
            f"The first row was chosen: {why}." if (why := selection.reason(self.run)) else "",
            f"All numbers are of {counted(len(self.test), 'test row')}, which chose nothing.",
            self.run["undecided"] or "",
            *selection.warnings(self.run),
            *self.notes,
        ]
        return "\n".join([table([*head, *(NAMES[name] for name in more)], lines), "", *filter(None, sentences)])


def evaluate(
    features: Any,
    labels: Any = None,
    *,
    head: Any = None,
    test_size: float = 0.2,
    split: Sequence[str] | str | None = None,
    groups: Sequence[Any] | str | None = None,
    kind: Kind | None = None,
    metric: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Evaluation:
    """Fit heads on some of the rows, choose on held-out ones, and report on test rows with an interval.

    features: `Features`, an array (rows, ...), or a dictionary of names to either, which are compared.
    labels: a class, a number, or a list of classes per row, or a column of the `Features`; by default `label`.
    head: a name of `icecore settings fit`, a list of names, or a dictionary of names to parameters; by default
    logistic, and ridge for numbers.
    test_size: the share of the rows that report, cut within each class. `Features` are cut by the hash of each image's
    content, so that an image stays a test row in every order; arrays by the hash of the row's number. The arrays of
    some `Features` therefore have other test rows than these: give both in one dictionary, or `split`, to compare.
    split: `train`, `validation` or `test` of each row, or a column of the `Features`, in the place of `test_size`.
    groups: a value per row, or a column; rows of one group stay together.
    kind: classification, multilabel or regression; by default what the labels look like: floats are numbers, lists
    and matrices of 0 and 1 are several labels.
    metric: what reports; by default accuracy, map or r2.
    seed: of the split.
    settings: of `fit`, such as scale, pca, search, validation, calibrate, seeds.

    Rows, labels, split and groups have one order; of `Features` that of their keys. Raises DataError for rows that do
    not go together, and as the stages `split`, `fit` and `evaluate` do; ConfigError for settings that there are not.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(60, 4))
    >>> found = evaluate(rows, ["yes" if row[0] > 0 else "no" for row in rows], head="centroid")
    >>> len(found.test), found.metric
    (12, 'accuracy')
    """
    inputs = Inputs(features)
    if labels is None and inputs.stored is None:
        raise DataError("evaluate: labels: expected a value per row, got none, and arrays have no table of files.")
    given = {"labels": "label" if labels is None else labels, "split": split, "groups": groups}
    names = {"labels": "label", "split": "split", "groups": "group"}
    columns = {names[what]: inputs.column(values, what) for what, values in given.items() if values is not None}
    kind = kind or kind_of(columns["label"])
    raw = {
        "task": DATASET,
        "backbone": DATASET,
        "inputs": list(inputs.rows),
        "head": head or DEFAULT_HEADS.get(kind, "logistic"),
    }
    measures = {} if metric is None else {"metric": {kind: metric}}
    sections = {"fit": Section(FitConfig), "evaluate": Section(EvaluateConfig)}
    values, problems = check({"fit": raw | settings, "evaluate": measures}, sections)
    refuse(problems, where="evaluate")
    with TemporaryDirectory(prefix="icecore-") as folder:
        work = Path(folder)
        task, notes = write_task(work, inputs.keys, columns, kind=kind, test_size=test_size, seed=seed)
        inputs.write(work / "features")
        return _evaluate(work, task, inputs.keys, values["fit"], values["evaluate"], notes)


def _evaluate(
    work: Path, task: Path, keys: np.ndarray, config: FitConfig, measures: EvaluateConfig, notes: list[str]
) -> Evaluation:
    """Fit and measure below a folder, and return what is worth keeping of it."""
    fits: list[FittedHead] = []

    def keep(one: FittedHead, _data: Data, _models: Path) -> HeadFit:
        fits.append(one)
        return one.record

    predictions, models, tables = work / f"{DATASET}.parquet", work / "models", work / "tables.json"
    summary = fit(config, task=task, features=work / "features", models=models, predictions=predictions, save=keep)
    evaluate_run(
        measures,
        predictions=predictions,
        task=task,
        model=models,
        numbers=work / "numbers.json",
        tables=tables,
        confusion=work / "confusion.csv",
        curve=work / "curve.csv",
    )
    run: Run = read_json(tables)
    if "unavailable" in run:
        raise DataError(f"evaluate: {run['unavailable']}")
    best = run["selected"]
    one = next(
        one for one in fits if all(getattr(one.record, name) == best[name] for name in ("head", "input", "labels"))
    )
    tested = one.predictions.splits == "test"
    place = {key: row for row, key in enumerate(keys)}
    numbers = np.array([place[key] for key in one.predictions.keys[tested]], dtype=np.int64)
    order = np.argsort(numbers)
    return Evaluation(run, one.head, numbers[order], one.predictions.predicted[tested][order], (*notes, *summary.notes))
