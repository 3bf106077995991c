"""Compare the runs of every task: `python -m stages.compare`."""

from pipeline.compare import compare
from pipeline.files import fresh_folder, read_json
from stages import project


def main() -> None:
    """Write `data/comparisons/<task>.json` for each task that params.yaml names a run of."""
    values = project.settings()
    known = project.runs(values)
    with fresh_folder(project.COMPARISONS) as folder:
        for task in dict.fromkeys(run.task for run in known.values()):
            runs = [name for name, run in known.items() if run.task == task]
            found = compare(
                values["compare"],
                task=project.TASKS / f"{task}.parquet",
                predictions=project.PREDICTIONS,
                runs={name: read_json(project.TABLES / f"{name}.json") for name in runs},
                out=folder / f"{task}.json",
            )
            real = sum(pair["better"] is not None for pair in found["across"])
            print(f"{task}: {real} of {len(found['across'])} differences between runs are real")


if __name__ == "__main__":
    project.run(main)
