"""`evaluate`: fit heads on arrays, choose one on held-out rows, and measure it on test rows with an interval."""

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
    """The results of heads; prints as a table with the chosen head first, and the reason for the choice.

    run: all results: metrics and intervals of every method, tables by class, calibration.
    head: the chosen head, a fitted scikit-learn pipeline for rows of the chosen input.
    test: the indices of the test rows, ascending.
    predicted: the chosen head's prediction for each test row: classes as text, numbers, or a column per label.
    notes: sentences about anything unexpected.

    >>> rows = np.random.default_rng(0).normal(size=(60, 4))
    >>> result = evaluate(rows, rows[:, 0] > 0, head=["centroid", "naive_bayes"])
    >>> result.value > 0.5, len(result.table), result.predicted.shape
    (True, 2, (12,))
    """

    run: Run
    head: Any
    test: np.ndarray
    predicted: np.ndarray
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The name of the reported metric: accuracy, map or r2 by default."""
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
        """A dictionary for each head on each input: the chosen one first, the others by their held-out metric."""
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
    """Fit heads on training rows, choose one on held-out rows, and measure it on test rows with an interval.

    features: `Features`, an array (rows, ...), or a dictionary of several of these, which are compared.
    labels: for each row a class, a number, or a list of classes; or a column of the `Features`, by default `label`.
    head: a name listed by `icecore settings fit`, a list of names, or a dictionary from names to parameters; by default
    logistic, and ridge for regression.
    test_size: the share of test rows, stratified by class. `Features` are split by the hash of each image's content, so
    that the order does not matter; arrays by the hash of the row number. `Features` and an array of the same rows thus
    have different test rows: to compare them, give both in one dictionary, or give `split`.
    split: `train`, `validation` or `test` for each row, or a column of the `Features`; replaces `test_size`.
    groups: a value for each row, or a column; rows of the same group get the same split.
    kind: classification, multilabel or regression. By default it follows from the labels: floats are a regression,
    lists and matrices of 0 and 1 are multilabel.
    metric: the reported metric; by default accuracy, map or r2.
    seed: the seed of the split.
    settings: settings of `fit`, such as scale, pca, search, validation, calibrate, seeds.

    Rows, labels, split and groups must be in the same order; for `Features`, the order of their keys. Raises DataError
    for arguments of different lengths, and as the stages `split`, `fit` and `evaluate` do; ConfigError for invalid
    settings.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(60, 4))
    >>> result = evaluate(rows, ["yes" if row[0] > 0 else "no" for row in rows], head="centroid")
    >>> len(result.test), result.metric
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
    """Run `fit` and `evaluate` in a temporary folder, and return the results."""
    fits: list[FittedHead] = []

    def keep(fitted: FittedHead, _data: Data, _models: Path) -> HeadFit:
        fits.append(fitted)
        return fitted.record

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
    chosen = next(
        fitted
        for fitted in fits
        if all(getattr(fitted.record, name) == best[name] for name in ("head", "input", "labels"))
    )
    predictions_of_best = chosen.predictions
    is_test = predictions_of_best.splits == "test"
    row_of = {key: row for row, key in enumerate(keys)}
    rows = np.array([row_of[key] for key in predictions_of_best.keys[is_test]], dtype=np.int64)
    order = np.argsort(rows)
    predicted = predictions_of_best.predicted[is_test][order]
    return Evaluation(run, chosen.head, rows[order], predicted, (*notes, *summary.notes))
