"""Open every sample of a data set and write its manifest.

Every file, and every sample of a container, ends up in the manifest or, with a reason, in the list of excluded files.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.manifest import ManifestPaths, label_column
from pipeline.prepare import label_types as values
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.find import label_types
from pipeline.prepare.known_files import KnownFiles
from pipeline.prepare.notes import describe_labels
from pipeline.prepare.roots import inspect_roots
from pipeline.prepare.samples_table import check_files, list_files, mark_duplicates, open_table, refuse_too_many
from pipeline.prepare.write_manifest import write_manifest
from pipeline.runtime import SILENT, Reporter


@dataclass(frozen=True)
class PrepareSummary:
    """The counts of a data set: files = rows of the manifest + excluded files, counted by kind."""

    files: int
    rows: int
    excluded: dict[str, int]
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Sentences about labels that may be mistakes."""


def prepare(
    config: PrepareConfig, paths: ManifestPaths, *, known: Path | None = None, reporter: Reporter = SILENT
) -> PrepareSummary:
    """Write the manifest of a data set; raises DataError if there are no samples or too many cannot be used.

    known: the file of `KnownFiles`; files that did not change since the last call with it are not opened.
    """
    # 1) List the samples, with their labels.
    roots = inspect_roots(config)
    notes: list[str] = []
    types = label_types(config, roots, notes.append)
    with open_table() as database:
        files = list_files(database, config, roots, types)
        if types is None:
            values.check_columns(database, config)
        # 2) Open the samples, and exclude the unusable ones and copies.
        cache = None if known is None else KnownFiles(known, check=config.check, max_pixels=config.max_pixels)
        with cache or nullcontext():
            check_files(database, config, reporter, is_list=roots[0].kind == "list", known=cache)
        excluded = mark_duplicates(database)
        refuse_too_many(database, config, files, excluded)
        # 3) Write the manifest.
        if types is None:
            types = values.types(database, config)
            notes += values.describe_mixed_types(database, config)
        notes += describe_labels(database, config, roots, types)
        write_manifest(database, paths, {label_column(name): kind for name, kind in types.items()})
    return PrepareSummary(files=files, rows=files - sum(excluded.values()), excluded=excluded, notes=tuple(notes))
