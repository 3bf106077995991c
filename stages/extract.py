"""Extract features with a backbone: `python -m stages.extract glyphs`."""

from pipeline.extract import summary
from pipeline.extract.run import extract
from pipeline.files import write_json
from pipeline.runtime import process_seconds
from pipeline.store import index, location
from stages import project


def main() -> None:
    """Write `data/features/<backbone>/<tap>/`; what the feature cache has is linked, the rest computed.

    `data/metrics/extract/<backbone>.json` has what the summary says, and `data/digests/<backbone>/features.json` a
    digest of what each folder has, whatever shards the rows lie in: stages that read features depend on it.
    """
    name, config = project.entry("extract")
    with project.reporter(f"extract {name}", "samples") as reporter:
        found = extract(
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
    print(summary.describe_cache(location.default_root(), found))
    print(summary.text(name, found, process=process_seconds()))
    write_json(project.METRICS / "extract" / f"{name}.json", summary.to_json(found))


if __name__ == "__main__":
    project.run(main)
