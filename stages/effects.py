"""Check in params.yaml that the settings of runs suit the kind of their task."""

from collections.abc import Mapping
from typing import Any

from pipeline.settings.check import all_entries
from stages.names import RUNS


def unsuited_settings(values: Mapping[str, Any]) -> list[str]:
    """Return a problem for each setting of a run that has no effect on its task, such as accuracy for regression."""
    problems = []
    for section in RUNS:
        for name, item in all_entries(values, section):
            task = values.get("split", {}).get(item.task)
            if task is not None:
                # The data may define validation rows, which is known only when the run starts.
                validation = task.by in ("auto", "column") or "validation" in task.needed
                lines = [*item.unsuited(task.kind, validation=validation), *_of_few_labels(item, task)]
                problems += [f"{section}.{name}.{line}" for line in lines]
    return problems


def _of_few_labels(run: Any, task: Any) -> list[str]:
    """Return the few-shot training sets that a run needs and its task lacks."""
    if not run.labels_per_class:
        return []
    if task.few_shot is None:
        return [
            f"labels_per_class: expected `few_shot` in `split.{run.task}`, got none. Give it "
            f"`few_shot: {{labels_per_class: {max(run.labels_per_class)}}}`, or leave this out."
        ]
    problems, most = [], task.few_shot
    if max(run.labels_per_class) > most.labels_per_class:
        problems.append(
            f"labels_per_class: expected at most {most.labels_per_class}, those of `split.{run.task}.few_shot`, got "
            f"{max(run.labels_per_class)}."
        )
    if getattr(run, "draws", 1) > most.draws:
        problems.append(f"draws: expected at most {most.draws}, those of `split.{run.task}.few_shot`, got {run.draws}.")
    return problems
