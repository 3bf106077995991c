"""Evaluate a run: `python -m stages.evaluate digits_logistic`."""

from pipeline.evaluate import evaluate
from stages import project


def main() -> None:
    """Write `data/metrics/<run>.json` (numbers), `data/plots/<run>.json` (what the report draws), and two DVC plots."""
    name, run = project.evaluated()
    found = evaluate(
        project.settings()["evaluate"],
        predictions=project.PREDICTIONS / f"{name}.parquet",
        task=project.TASKS / f"{run.task}.parquet",
        model=project.MODELS / name,
        numbers=project.METRICS / f"{name}.json",
        tables=project.TABLES / f"{name}.json",
        confusion=project.TABLES / "confusion" / f"{name}.csv",
        curve=project.TABLES / "curves" / f"{name}.csv",
    )
    metric = found["metric"]
    ends = [found[f"{metric}_{end}"] for end in ("low", "high")]
    interval = "" if None in ends else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
    print(f"{name}: {metric} {found[metric]:.3f}{interval}")


if __name__ == "__main__":
    project.run(main)
