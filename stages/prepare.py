"""Prepare a data set: `python -m stages.prepare digits`."""

from pipeline.errors import counted
from pipeline.manifest import ManifestPaths
from pipeline.prepare.run import prepare
from stages import project

DESCRIPTIONS = {"other": "no images, passed over"}


def main() -> None:
    """Write the manifest of a data set, and beside it what was left out."""
    name, config = project.entry("prepare")
    paths = ManifestPaths(project.MANIFESTS, name)
    with project.reporter(f"prepare {name}", "files") as reporter:
        found = prepare(config, paths, reporter=reporter)
    print(f"{name}: {counted(found.found, 'file')}, {counted(found.rows, 'sample')}")
    for kind, count in found.excluded.items():
        print(f"  {count:,} {DESCRIPTIONS.get(kind, kind)}: see {paths.excluded}")
    for note in found.notes:
        print(f"  note: {note}")


if __name__ == "__main__":
    project.run(main)
