"""Split a task: `python -m stages.split digits`."""

from collections import Counter

from pipeline.errors import counted
from pipeline.runtime import Reporter
from pipeline.split.run import split
from stages import project


def main() -> None:
    """Write `data/tasks/<name>.parquet`."""
    name, config = project.entry("split")
    task = split(config, project.MANIFESTS, reporter=Reporter(message=lambda note: print(f"  note: {note}")))
    task.write(project.TASKS / f"{name}.parquet")
    rows = Counter(task.table["split"].to_pylist())
    targets = {"multilabel": counted(len(task.classes), "label"), "regression": "a number per row"}
    parts = ", ".join(f"{rows[s]:,} {s}" for s in sorted(rows, reverse=True))
    print(f"{name}: {targets.get(task.kind, counted(len(task.classes), 'class', 'classes'))}, {parts}")


if __name__ == "__main__":
    project.run(main)
