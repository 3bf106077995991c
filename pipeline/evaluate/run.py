"""Evaluate a run from its predictions: choose on held-out rows, report on test rows.

Each method (a head, an input and a number of labels) has the mean of each metric over its draws on the test rows, with
a bootstrap interval of the deciding metric. Among the methods with the most labels, `pipeline.evaluate.choice` selects
one on held-out rows. Only the selected method has tables of classes, groups and levels.

The numbers are stored with a digest of their inputs, and computed again when the digest changes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import metrics
from pipeline.evaluate import breakdown, choice
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.methods import Method, read
from pipeline.evaluate.plots import write_confusion, write_curve
from pipeline.evaluate.table import MARKS, select, table
from pipeline.evaluate.up_to_date import inputs_digest
from pipeline.files import AnyPath, as_path, write_json
from pipeline.model_record import read_record, to_json
from pipeline.task import describe_rare


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
    reason replaces the numbers, and `compare` and the report leave the run out. Raises HeadError where the run's
    model.json is missing or is of another version.
    """
    predictions = as_path(predictions, "evaluate: predictions")
    task = as_path(task, "evaluate: task")
    model = as_path(model, "evaluate: model")
    numbers = as_path(numbers, "evaluate: numbers")
    tables = as_path(tables, "evaluate: tables")
    confusion = as_path(confusion, "evaluate: confusion")
    curve = as_path(curve, "evaluate: curve")
    # 1) Measure every method on the test rows, and choose one of them on held-out rows.
    methods, record = read(predictions, task), read_record(model)
    metric: str = getattr(config.metric, methods.file.kind)
    rows = table(methods, metric, config)
    best = select(rows, metric=metric)
    # 2) Write the tables of the report, with the inputs that they follow from.
    inputs = {
        "run": predictions.stem,
        "evidence": inputs_digest(config, predictions=predictions, task=task, model=model),
        "made_from": to_json(record),
        "kind": methods.file.kind,
        "metric": metric,
    }
    if best[metric] is None:
        return _write_unavailable(inputs, rows, best, numbers=numbers, tables=tables, confusion=confusion, curve=curve)
    fits = methods.test(Method(best["head"], best["input"], best["labels"]))
    resampling = breakdown.Resampling(metric, config.confidence_level, config.resamples, config.seed)
    write_json(
        tables,
        {
            **inputs,
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
    # 3) Write the plots and the numbers.
    has_classes = methods.file.kind == "classification"
    write_confusion(confusion, zip(fits[0].targets, fits[0].predicted, strict=True) if has_classes else ())
    write_curve(curve, rows, best, metric)
    hidden = {"degraded", f"{metric}_spread", f"validation_{metric}", *MARKS}
    measured = {"metric": metric, **{name: value for name, value in best.items() if name not in hidden}}
    write_json(numbers, {name: value for name, value in measured.items() if value is not None})
    return measured


def _write_unavailable(
    inputs: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    best: Mapping[str, Any],
    *,
    numbers: Path,
    tables: Path,
    confusion: Path,
    curve: Path,
) -> dict[str, Any]:
    """Write the reason why no method of a run can be measured, in place of the numbers, and plots without a row."""
    metric, kind = inputs["metric"], inputs["kind"]
    why = (
        f"{metric} cannot be measured for any method: {best['degraded'][metric]}. Choose another metric in "
        f"`evaluate.metric.{kind}`, or another head."
    )
    write_json(tables, {**inputs, "unavailable": why, "table": rows})
    write_confusion(confusion, ())
    write_curve(curve, (), best, metric)
    unavailable = {"metric": metric, "unavailable": why}
    write_json(numbers, unavailable)
    return unavailable
