"""Evaluate a run: `python -m stages.evaluate digits_logistic`."""

import sys

from pipeline.evaluate import evaluate
from stages import project


def main() -> None:
    """Write `data/metrics/<run>.json` (numbers) and `data/plots/<run>.json` (what the report draws)."""
    name = project.entry("fit", sys.argv[1:])[0]
    found = evaluate(
        project.settings()["evaluate"],
        predictions=project.PREDICTIONS / f"{name}.parquet",
        model=project.MODELS / name,
        numbers=project.METRICS / f"{name}.json",
        tables=project.TABLES / f"{name}.json",
    )
    print(f"{name}: accuracy {found['accuracy']:.3f} [{found['accuracy_low']:.3f}, {found['accuracy_high']:.3f}]")


if __name__ == "__main__":
    project.run(main)
