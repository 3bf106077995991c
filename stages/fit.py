"""Fit the heads of a run: `python -m stages.fit digits_logistic`."""

from pipeline.errors import counted
from pipeline.fit.run import fit
from pipeline.model_record import write_digest
from stages import project, terminal


def main() -> None:
    """Write `data/models/<run>/`, its digest, and `data/predictions/<run>.parquet`."""
    name, config = project.entry("fit")
    with terminal.reporter(f"fit {name}", "heads") as reporter:
        result = fit(
            config,
            task=project.TASKS / f"{config.task}.parquet",
            features=project.FEATURES / config.backbone,
            models=project.MODELS / name,
            predictions=project.PREDICTIONS / f"{name}.parquet",
            reporter=reporter,
        )
    write_digest(project.MODELS / name, project.MODEL_DIGESTS / name)
    for line in [*result.lines, *result.notes]:
        print(line)
    print(f"{name}: {counted(result.fits, 'head')}")


if __name__ == "__main__":
    project.run(main)
