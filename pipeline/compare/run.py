"""Paired tests between methods on the same test rows: which differences are significant.

Three families of pairs, each corrected by Holm (1979): 1) across the runs of a task, the selected methods of every two
runs; 2) within a run, the selected method and every other method with as many labels; 3) every student and its
teachers, and the same student with only labels.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from pipeline import metrics
from pipeline.compare import teachers
from pipeline.compare.config import CompareConfig
from pipeline.compare.significance import judge_pairs
from pipeline.compare.tested import Tested, build_tested, build_tested_other, check_same_rows, method_of, resample
from pipeline.evaluate.methods import read
from pipeline.files import AnyPath, as_path, write_json
from pipeline.task import Kind

COMPARED: Mapping[Kind, str] = {"regression": "mae"}
"""Metrics that are compared instead of the deciding metric: R² is not a mean over rows, the absolute error is."""


def compare(
    config: CompareConfig, *, task: AnyPath, predictions: AnyPath, runs: Mapping[str, Mapping[str, Any]], out: AnyPath
) -> dict[str, Any]:
    """Compare the methods of the runs of one task; write and return the comparison.

    config: significance, resamples and seed.
    task: the Parquet file of the task.
    predictions: the folder of the runs' predictions.
    runs: the tables that `evaluate` wrote (`data/plots/<run>.json`), by run.
    out: the JSON file to write.

    Raises DataError where two runs were tested on different rows.
    """
    task = as_path(task, "compare: task")
    predictions = as_path(predictions, "compare: predictions")
    out = as_path(out, "compare: out")
    selected: list[Tested] = []
    within: dict[str, list[dict[str, Any]]] = {}
    metric = ""
    # 2) Within each run.
    for run, evaluated in runs.items():
        methods = read(predictions / f"{run}.parquet", task)
        metric = COMPARED.get(methods.file.kind, evaluated["metric"])
        candidates = [
            build_tested(methods, run, row, metric)
            for row in evaluated["table"]
            if row["labels"] == evaluated["selected"]["labels"] and row[evaluated["metric"]] is not None
        ]
        best = next(tested for tested in candidates if tested.method == method_of(evaluated["selected"]))
        others = [tested for tested in candidates if tested is not best]
        values = resample(metric, [best, *others], methods.file.classes, config)
        pairs = [(best, other, values[0] - values[1 + number]) for number, other in enumerate(others)]
        within[run] = judge_pairs(pairs, config, metric)
        selected.append(best)
        check_same_rows(selected[0], best, task)
    # 1) Across the runs. The better method of a pair comes first, as on the leaderboard.
    selected.sort(key=lambda tested: tested.value if metric in metrics.LOWER_IS_BETTER else -tested.value)
    # 3) Students. Resamples are those of the runs.
    comparisons = list(teachers.comparisons(runs, lambda run: read(predictions / f"{run}.parquet", task)))
    others = [build_tested_other(comparison, metric, methods.file.classes) for comparison in comparisons]
    values = resample(metric, [*selected, *others], methods.file.classes, config)
    across = [(selected[a], selected[b], values[a] - values[b]) for a, b in combinations(range(len(selected)), 2)]
    positions = {tested.run: position for position, tested in enumerate(selected)}
    student_pairs = [
        (selected[positions[comparison.student]], other, values[positions[comparison.student]] - row)
        for comparison, other, row in zip(comparisons, others, values[len(selected) :], strict=True)
    ]
    descriptions = teachers.describe_comparisons(
        comparisons,
        [student.fits for student, *_ in student_pairs],
        methods.file.kind,
        level=1 - config.significance,
        resamples=config.resamples,
        seed=config.seed,
    )
    comparison_of_task = {
        "task": task.stem,
        "kind": methods.file.kind,
        "metric": metric,
        "test_rows": len(methods.tested),
        "significance": config.significance,
        "resamples": values.shape[1],
        "across": judge_pairs(across, config, metric),
        "within": within,
        "taught": [
            description | verdict
            for description, verdict in zip(descriptions, judge_pairs(student_pairs, config, metric), strict=True)
        ],
    }
    write_json(out, comparison_of_task)
    return comparison_of_task
