"""Train a student on the scores of teachers: `python -m stages.distill student_tuned`."""

from pipeline.distill import run
from pipeline.distill.costs import footprints
from pipeline.distill.sources import Paths
from pipeline.errors import counted
from pipeline.files import write_json
from pipeline.model_record import write_digest
from pipeline.store import location
from pipeline.training.early_stopping import line
from stages import project, terminal


def main() -> None:
    """Write `data/models/<run>/`, its digest, `data/predictions/<run>.parquet` and `data/curves/<run>/`.

    `data/metrics/distill/<run>.json` has the costs of the student and its teachers.
    """
    name, config = project.entry("distill")
    split = project.settings()["split"]
    paths = Paths(
        tasks=project.TASKS,
        student=project.BACKBONES / config.student,
        manifests=project.MANIFESTS,
        teachers=project.TEACHERS,
        models=project.MODELS,
        backbones=project.BACKBONES,
        features=project.FEATURES,
        model=project.MODELS / name,
        predictions=project.PREDICTIONS / f"{name}.parquet",
        curves=project.CURVES / name,
        cache=location.default_root(),
    )
    datasets = [dataset for task in config.teachers for dataset in split[task].datasets]
    with terminal.reporter(f"distill {name}", "steps", log_above_bar=True) as reporter:
        result = run.distill(config, paths, datasets=datasets, reporter=reporter)
    write_digest(project.MODELS / name, project.MODEL_DIGESTS / name)
    write_json(project.METRICS / "distill" / f"{name}.json", footprints(config, paths))
    labels = f"{counted(result.labels, 'label')} per class" if result.labels else "all labels"
    print(f"{name}: {labels}, {counted(result.samples or 0, 'sample')}; {line(result.kept, config)}")


if __name__ == "__main__":
    project.run(main)
