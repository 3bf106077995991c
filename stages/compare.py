"""Compare the runs of every task: `python -m stages.compare`."""

from pipeline.compare.run import compare
from pipeline.files import fresh_folder, read_json
from stages import project


def main() -> None:
    """Write `data/comparisons/<task>.json` for each task that params.yaml names a run of."""
    values = project.settings()
    known = project.runs(values)
    with fresh_folder(project.COMPARISONS) as folder:
        for task in dict.fromkeys(run.task for run in known.values()):
            tables = {
                name: read_json(project.TABLES / f"{name}.json") for name, run in known.items() if run.task == task
            }
            measured = {name: table for name, table in tables.items() if "unavailable" not in table}
            for name in tables.keys() - measured.keys():
                print(f"{task}: {name} is left out: {tables[name]['unavailable']}")
            if not measured:
                continue
            result = compare(
                values["compare"],
                task=project.TASKS / f"{task}.parquet",
                predictions=project.PREDICTIONS,
                runs=measured,
                out=folder / f"{task}.json",
            )
            significant = sum(pair["better"] is not None for pair in result["across"])
            print(f"{task}: {significant} of {len(result['across'])} differences between runs are significant")


if __name__ == "__main__":
    project.run(main)
