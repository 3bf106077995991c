"""Extract features with a backbone: `python -m stages.extract glyphs`."""

from pipeline.extract import summary
from pipeline.extract.run import extract
from pipeline.files import write_json
from pipeline.runtime import process_seconds
from pipeline.store import index, location
from stages import project, terminal


def main() -> None:
    """Write `data/features/<backbone>/<tap>/`: link the rows that the feature cache has, and compute the others.

    `data/metrics/extract/<backbone>.json` has the numbers of the summary. `data/digests/<backbone>/features.json` has a
    digest of the rows of each folder, independent of their shards. Stages that read features depend on it.
    """
    name, config = project.entry("extract")
    with terminal.reporter(f"extract {name}", "samples") as reporter:
        result = extract(
            config,
            backbone=project.BACKBONES / name,
            manifests=project.MANIFESTS,
            out=project.FEATURES / name,
            cache_root=location.default_root(),
            reporter=reporter,
        )
    folders = sorted(path.parent for path in (project.FEATURES / name).glob("*/index.json"))
    digests = {folder.name: index.contents(folder) for folder in folders}
    write_json(project.DIGESTS / name / "features.json", digests)
    print(summary.describe_cache(location.default_root(), result))
    print(summary.text(name, result, process=process_seconds()))
    write_json(project.METRICS / "extract" / f"{name}.json", summary.to_json(result))


if __name__ == "__main__":
    project.run(main)
