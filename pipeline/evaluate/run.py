"""Evaluate a run from its predictions: choose on held-out rows, report on test rows.

Each method (a head, an input and a number of labels) has the mean of each metric over its draws on the test rows, with
a bootstrap interval of the deciding metric. Among the methods with the most labels, `pipeline.evaluate.choice` selects
one on held-out rows. Only the selected method has tables of classes, groups and levels.

The numbers are stored with a digest of their inputs, and computed again when the digest changes.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import DataError, counted
from pipeline.evaluate import bootstrap, breakdown, choice, undecided
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.methods import Method, Methods, read, subset
from pipeline.files import AnyPath, as_path, digest, read_json, sha256_file, write_json, write_text
from pipeline.predictions import Predictions
from pipeline.runtime import versions
from pipeline.task import describe_rare

CODE = ("metrics.py", "predictions.py", "task.py", "files.py", "runtime.py")
"""Modules of `pipeline/` outside this package that the numbers depend on."""

MARKS = ("validation_log_loss", "validation_rows", "decided_by", "close")
"""Fields that `undecided.mark` adds to a row."""


def inputs_digest(config: EvaluateConfig, *, predictions: Path, task: Path, model: Path) -> str:
    """Return a digest of everything that the numbers depend on: settings, files, code and package versions."""
    files = [sha256_file(path) for path in (predictions, task, model / "model.json")]
    here = Path(__file__).parent
    code = [sha256_file(path) for path in (*sorted(here.glob("*.py")), *(here.parent / name for name in CODE))]
    made_by = versions("scikit-learn", "numpy", "scipy")
    return digest({"settings": config.model_dump(mode="json"), "files": files, "code": code, "versions": made_by})


def is_up_to_date(now: str, *, tables: Path, others: Sequence[Path]) -> bool:
    """Return whether all files of an evaluation exist and its tables have the inputs digest `now`."""
    return all(path.is_file() for path in (tables, *others)) and read_json(tables).get("evidence") == now


def evaluate(
    config: EvaluateConfig,
    *,
    predictions: AnyPath,
    task: AnyPath,
    model: AnyPath,
    numbers: AnyPath,
    tables: AnyPath,
    confusion: AnyPath,
    curve: AnyPath,
) -> dict[str, Any]:
    """Evaluate a run; write its numbers, the tables of the report and two plots, and return the numbers.

    config: the metric, and the settings of the intervals.
    predictions: the Parquet file of the run's predictions.
    task: the Parquet file of the task.
    model: the run's folder below data/models.
    numbers: the JSON file to write for `dvc metrics`.
    tables: the JSON file to write for the report.
    confusion: the CSV to write with target and prediction of each test row, in the first draw of the selected method.
    curve: the CSV to write with the metric of the selected head and input at each number of labels per class.

    A CSV that does not apply has only a header. If the metric can be measured for no method, `unavailable` with the
    reason replaces the numbers, and `compare` and the report leave the run out.
    """
    predictions = as_path(predictions, "evaluate: predictions")
    task = as_path(task, "evaluate: task")
    model = as_path(model, "evaluate: model")
    numbers = as_path(numbers, "evaluate: numbers")
    tables = as_path(tables, "evaluate: tables")
    confusion = as_path(confusion, "evaluate: confusion")
    curve = as_path(curve, "evaluate: curve")
    methods = read(predictions, task)
    metric: str = getattr(config.metric, methods.file.kind)
    rows = table(methods, metric, config)
    best = select(rows, metric=metric)
    if best[metric] is None:
        why = (
            f"{metric} cannot be measured for any method: {best['degraded'][metric]}. Choose another metric in "
            f"`evaluate.metric.{methods.file.kind}`, or another head."
        )
        known = {
            "run": predictions.stem,
            "kind": methods.file.kind,
            "metric": metric,
            "unavailable": why,
            "table": rows,
        }
        stamp = inputs_digest(config, predictions=predictions, task=task, model=model)
        write_json(tables, {**known, "evidence": stamp, "made_from": read_json(model / "model.json")})
        _write_csv(confusion, ("target", "predicted"), [])
        _write_csv(curve, ("labels", "value"), [])
        write_json(numbers, {"metric": metric, "unavailable": why})
        return {"metric": metric, "unavailable": why}
    fits = methods.test(Method(best["head"], best["input"], best["labels"]))
    resampling = breakdown.Resampling(metric, config.confidence_level, config.resamples, config.seed)
    write_json(
        tables,
        {
            "run": predictions.stem,
            "evidence": inputs_digest(config, predictions=predictions, task=task, model=model),
            "made_from": read_json(model / "model.json"),
            "kind": methods.file.kind,
            "metric": metric,
            "higher_is_better": metric not in metrics.LOWER_IS_BETTER,
            "classes": methods.file.classes,
            "rare": describe_rare(methods.task.rare, methods.file.kind),
            "given": methods.task.given,
            "interval": config.confidence_level,
            "table": rows,
            "selected": best,
            "undecided": choice.sentence(rows, best),
            **breakdown.tables(methods, fits, resampling),
        },
    )
    _write_confusion(confusion, methods, fits[0])
    _write_curve(curve, rows, best, metric)
    hidden = {"degraded", f"{metric}_spread", f"validation_{metric}", *MARKS}
    measured = {"metric": metric, **{name: value for name, value in best.items() if name not in hidden}}
    write_json(numbers, {name: value for name, value in measured.items() if value is not None})
    return measured


def table(methods: Methods, metric: str, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Return one row per method: means over its draws on test rows, and the interval of the deciding metric."""
    rows = [_row(methods, metric, method) for method in methods.fits]
    measured = [row for row in rows if row[metric] is not None]
    tested = [methods.test(Method(row["head"], row["input"], row["labels"])) for row in measured]
    if tested:
        values = bootstrap.resample_metric(
            metric, tested, methods.file.classes, resamples=config.resamples, seed=config.seed
        )
        for row, fits, resamples in zip(measured, tested, values, strict=True):
            behind = bootstrap.rows_behind(metric, fits[0], methods.file.classes)
            ends = bootstrap.interval(resamples, config.confidence_level, rows=behind)
            row[f"{metric}_low"], row[f"{metric}_high"] = ends if ends is not None else (None, None)
    for labels in dict.fromkeys(row["labels"] for row in measured):
        undecided.mark([row for row in measured if row["labels"] == labels], methods, metric, seed=config.seed)
    return rows


def select(rows: Sequence[dict[str, Any]], *, metric: str = "accuracy") -> dict[str, Any]:
    """Choose a row by held-out rows among the methods with the most labels, and return it; ties go to the first.

    A method without a value of the metric is ignored if another method has a value. Raises DataError for several
    methods without validation rows to choose by.
    """
    most = max((row["labels"] for row in rows if row["labels"] is not None), default=None)
    largest = [row for row in rows if row["labels"] == most]
    measured = [row for row in largest if metric not in row.get("degraded", {})]
    candidates = measured or largest[:1]
    if len(candidates) == 1:
        return candidates[0]
    known = [row for row in candidates if row[f"validation_{metric}"] is not None]
    if not known:
        raise DataError(
            f"{counted(len(candidates), 'method')} to choose from, but the task has no validation rows to measure "
            f"{metric} on, and the test rows must not choose. Give the task's `sizes` a validation share, or the "
            "run one input and head."
        )
    return choice.best_of(known, metric, higher=metric not in metrics.LOWER_IS_BETTER)


def _row(methods: Methods, metric: str, method: Method) -> dict[str, Any]:
    fits = methods.fits[method]
    tested = [_measure(methods, subset(fit, fit.splits == "test")) for fit in fits]
    held_out = [subset(fit, fit.splits == "validation") for fit in fits]
    validated = [bootstrap.metric_value(metric, fit, methods.file.classes) for fit in held_out]
    known = [value for value in (draw.values[metric] for draw in tested) if value is not None]
    degraded = {name: why for draw in tested for name, why in draw.degraded.items()}
    return {
        **method._asdict(),
        "draws": len(fits),
        "test_rows": len(methods.tested),
        **{name: _mean([draw.values[name] for draw in tested]) for name in tested[0].values},
        f"{metric}_low": None,
        f"{metric}_high": None,
        f"{metric}_spread": float(np.std(known, ddof=1)) if len(known) == len(fits) > 1 else None,
        f"validation_{metric}": _mean(validated),
        **({"degraded": degraded} if degraded else {}),
    }


def _measure(methods: Methods, fit: Predictions) -> metrics.Measured:
    return metrics.measure(
        methods.file.kind,
        fit.targets,
        fit.predicted,
        fit.scores,
        methods.file.classes,
        given=methods.file.scores.get(fit.head, "none"),
        head=fit.head,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _write_confusion(path: Path, methods: Methods, fit: Predictions) -> None:
    """Write target and prediction of each test row, for DVC's template `confusion`."""
    pairs = zip(fit.targets, fit.predicted, strict=True) if methods.file.kind == "classification" else ()
    _write_csv(path, ("target", "predicted"), list(pairs))


def _write_curve(path: Path, rows: Sequence[dict[str, Any]], best: dict[str, Any], metric: str) -> None:
    """Write the metric of the selected head and input by labels per class, for DVC's template `linear`."""
    same = [row for row in rows if (row["head"], row["input"]) == (best["head"], best["input"]) and row["labels"]]
    points = sorted((row["labels"], row[metric]) for row in same if row[metric] is not None)
    _write_csv(path, ("labels", "value"), points)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
