"""Split a task: `python -m stages.split digits`."""

from collections import Counter

from pipeline.split.run import split
from stages import project


def main() -> None:
    """Write `data/tasks/<name>.parquet`."""
    name, config = project.entry("split")
    task = split(config, project.MANIFESTS, say=lambda note: print(f"  note: {note}"))
    task.write(project.TASKS / f"{name}.parquet")
    rows = Counter(task.table["split"].to_pylist())
    what = {"multilabel": f"{len(task.classes)} labels", "regression": "a number a row"}
    counted = ", ".join(f"{rows[s]:,} {s}" for s in sorted(rows, reverse=True))
    print(f"{name}: {what.get(task.kind, f'{len(task.classes)} classes')}, {counted}")


if __name__ == "__main__":
    project.run(main)
