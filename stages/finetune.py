"""Fine-tune a network: `python -m stages.finetune digits_tuned`; `--lr-range` only tries learning rates."""

import sys

from pipeline.errors import counted
from pipeline.finetune import run
from pipeline.finetune.setup import Paths
from pipeline.model_record import write_digest
from pipeline.store import location
from pipeline.training.config import FROM_BACKBONE
from pipeline.training.early_stopping import line
from stages import project, terminal

LR_RANGE = "--lr-range"


def main() -> None:
    """Write `data/models/<run>/`, its digest, `data/predictions/<run>.parquet` and `data/curves/<run>/`."""
    name, config = project.entry("finetune", [argument for argument in sys.argv[1:] if argument != LR_RANGE])
    datasets = project.settings()["split"][config.task].datasets
    paths = Paths(
        task=project.TASKS / f"{config.task}.parquet",
        backbone=project.BACKBONES / config.backbone,
        manifests=project.MANIFESTS,
        features=project.FEATURES / config.backbone,
        start=None if config.start in FROM_BACKBONE else project.MODELS / config.start,
        model=project.MODELS / name,
        predictions=project.PREDICTIONS / f"{name}.parquet",
        curves=project.CURVES / name,
        cache=location.default_root(),
    )
    if LR_RANGE in sys.argv:
        print(run.lr_range(config, paths, datasets=datasets))
        return
    with terminal.reporter(f"finetune {name}", "steps", log_above_bar=True) as reporter:
        result = run.finetune(config, paths, datasets=datasets, reporter=reporter)
    write_digest(project.MODELS / name, project.MODEL_DIGESTS / name)
    labels = f"{counted(result.labels, 'label')} per class" if result.labels else "all labels"
    print(f"{name}: {labels}, {counted(result.rows, 'row')}; {line(result.kept, config)}")


if __name__ == "__main__":
    project.run(main)
