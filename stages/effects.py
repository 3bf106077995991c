"""Settings that do not suit the kind of their task, as far as params.yaml tells it."""

from collections.abc import Mapping
from typing import Any

from stages.names import RUNS


def unsuited_settings(values: Mapping[str, Any]) -> list[str]:
    """Return a problem for each setting of a run that its task gives no effect, such as accuracy of a regression."""
    problems = []
    for section in RUNS:
        for name, item in values.get(section, {}).items():
            task = values.get("split", {}).get(item.task)
            if task is not None:
                # The data may say validation rows: that is known when the run starts.
                validation = task.by in ("auto", "column") or "validation" in task.needed
                problems += [f"{section}.{name}.{line}" for line in item.unsuited(task.kind, validation=validation)]
    return problems
