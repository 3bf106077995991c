"""Store a teacher's scores of every sample: `python -m stages.teach tuned`."""

from pipeline.store import location
from pipeline.teach.config import BACKBONE
from pipeline.teach.outputs import Paths
from pipeline.teach.run import teach
from stages import project, terminal


def main() -> None:
    """Write `data/teachers/<name>/`: link the scores that the feature cache has, and compute the others."""
    name, config = project.entry("teach")
    paths = Paths(
        run=None if config.run == BACKBONE else project.MODELS / config.run,
        backbone=project.BACKBONES / config.backbone,
        features=project.FEATURES / config.backbone,
        manifests=project.MANIFESTS,
        out=project.TEACHERS / name,
        cache=location.default_root(),
    )
    with terminal.reporter(f"teach {name}", "samples") as reporter:
        summary = teach(config, paths, reporter=reporter)
    print(f"{name}: {summary}")


if __name__ == "__main__":
    project.run(main)
