"""Prepare a data set: `python -m stages.prepare digits`."""

from pipeline.errors import counted
from pipeline.manifest import ManifestPaths
from pipeline.prepare.run import prepare
from stages import project, terminal

DESCRIPTIONS = {"other": "no images, passed over"}


def main() -> None:
    """Write the manifest of a data set, and the list of excluded files."""
    name, config = project.entry("prepare")
    paths = ManifestPaths(project.MANIFESTS, name)
    with terminal.reporter(f"prepare {name}", "files") as reporter:
        summary = prepare(config, paths, reporter=reporter)
    print(f"{name}: {counted(summary.files, 'file')}, {counted(summary.rows, 'sample')}")
    for kind, count in summary.excluded.items():
        print(f"  {count:,} {DESCRIPTIONS.get(kind, kind)}: see {paths.excluded}")
    for note in summary.notes:
        print(f"  note: {note}")


if __name__ == "__main__":
    project.run(main)
