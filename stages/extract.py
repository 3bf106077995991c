"""Extract features with a backbone: `python -m stages.extract glyphs`."""

from pipeline.extract import summary
from pipeline.extract.run import extract
from pipeline.store import cache
from stages import project


def main() -> None:
    """Write `data/features/<backbone>/<tap>/`; what the feature cache has is linked, the rest computed."""
    name, config = project.entry("extract")
    with project.bar(f"extract {name}", "samples") as progress:
        found = extract(
            config,
            backbone=project.BACKBONES / name,
            manifests=project.MANIFESTS,
            out=project.FEATURES / name,
            cache_root=cache.default_root(),
            progress=progress,
            announce=print,
            say=print,
        )
    print(summary.text(name, found))


if __name__ == "__main__":
    project.run(main)
