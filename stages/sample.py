"""Write sample data: `python -m stages.sample digits`."""

from pipeline.sample.run import sample
from stages import project


def main() -> None:
    """Write `data/raw/<name>/`, a folder a class."""
    name, config = project.entry("sample")
    with project.bar(f"sample {name}", "images") as progress:
        sample(config, project.RAW / name, progress=progress)


if __name__ == "__main__":
    project.run(main)
