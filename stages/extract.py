"""Extract features with a backbone: `python -m stages.extract glyphs`."""

from pipeline.extract import summary
from pipeline.extract.forecast import Forecast
from pipeline.extract.run import extract
from pipeline.store import cache
from stages import project


def main() -> None:
    """Write `data/features/<backbone>/<tap>/`; what the feature cache has is linked, the rest computed."""
    name, config = project.entry("extract")
    hits = 0.0

    def announce(forecast: Forecast) -> None:
        nonlocal hits
        hits = forecast.hits
        print(forecast)

    with project.bar(f"extract {name}", "samples") as progress:
        found = extract(
            config,
            backbone=project.BACKBONES / name,
            manifests=project.MANIFESTS,
            out=project.FEATURES / name,
            cache_root=cache.default_root(),
            progress=progress,
            announce=announce,
            say=print,
            watch=lambda spent: progress.note(f"{spent.shares}; {hits:.0%} from the cache"),
        )
    print(summary.text(name, found))


if __name__ == "__main__":
    project.run(main)
