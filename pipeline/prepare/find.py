"""List the samples of a data set without opening them; in a folder of images, folder names are the labels."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.prepare import file_list, parquet_images, webdataset
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.image_folder import (
    describe_joined_splits,
    is_by_split,
    is_other_file,
    labels_from_path,
    skip_reason,
)
from pipeline.prepare.labels import Note
from pipeline.prepare.roots import Root, inspect_roots, is_table_of_labels
from pipeline.sources import filesystem


def find(
    config: PrepareConfig,
    roots: Sequence[Root] | None = None,
    types: dict[str, pa.DataType] | None = None,
    *,
    labelled: bool = True,
) -> Iterator[FoundSample]:
    """Yield the samples of a data set without opening them: sorted by path, or in the order of the list or container.

    types: the result of `label_types`, if the caller has it.
    labelled: whether folders and archive members give labels and splits. Columns always do, as far as the setting
    `columns` names them.
    """
    for root in inspect_roots(config) if roots is None else roots:
        if root.kind == "files":
            yield from _in_folder(root, labelled=labelled)
        elif root.kind == "list":
            yield from file_list.find(config, types)
        elif root.kind == "tar":
            yield from webdataset.find(config, root, labelled=labelled)
        else:
            yield from parquet_images.find(config, root, labelled=labelled)


def label_types(
    config: PrepareConfig, roots: Sequence[Root], note: Note = lambda _: None
) -> dict[str, pa.DataType] | None:
    """Return the label columns of the data with their types; None for archives, whose values have to be read first.

    Raises DataError where a column that the settings name is missing, or has a type that no label can have.
    """
    kind = roots[0].kind
    if kind == "files":
        if config.types:
            raise DataError(f"{config.root}: the label of a folder is its name, a text. Leave `types` out.")
        for root in roots:
            tops = filesystem.folders(root.path)
            for line in describe_joined_splits(tops) if is_by_split(tops, where=root.path) else ():
                note(line)
        return {"label": pa.string()}
    if kind == "tar":
        return None
    return file_list.label_types(config, note) if kind == "list" else parquet_images.label_types(config, roots, note)


def _in_folder(root: Root, *, labelled: bool) -> Iterator[FoundSample]:
    by_split = labelled and is_by_split(filesystem.folders(root.path), where=root.path)
    for entry in filesystem.walk(root.path):
        label, place = labels_from_path(entry.names[:-1] if labelled else (), by_split=by_split)
        if root.domain is not None:
            place["domain"] = root.domain
        refused = skip_reason(entry.names)
        if refused[0] is None and is_table_of_labels(entry.names[-1]):
            refused = ("other", "a table of labels, which is not read with its folder")
        elif refused[0] is None and is_other_file(entry.names[-1]):
            refused = ("other", "no image, by its extension")
        yield FoundSample(entry.path, {"label": label}, place, refused)
