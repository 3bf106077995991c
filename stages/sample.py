"""Write sample data: `python -m stages.sample digits`."""

from pipeline.sample.run import sample
from stages import project, terminal


def main() -> None:
    """Write `data/raw/<name>/`, a folder per class."""
    name, config = project.entry("sample")
    with terminal.reporter(f"sample {name}", "images") as reporter:
        sample(config, project.RAW / name, reporter=reporter)


if __name__ == "__main__":
    project.run(main)
