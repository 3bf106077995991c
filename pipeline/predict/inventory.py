"""List the inputs of a large prediction with their keys, opening every input once to check that it is an image.

`<work>/inputs.parquet` has a row per input, in order: `path`, `key` (null for an unusable input) and `reason`.
`<work>/manifests/` is the manifest of the usable inputs, for the extraction.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.predict.inputs import Input
from pipeline.prepare.check_images import check_samples
from pipeline.prepare.config import FoundSample
from pipeline.prepare.known_files import Answer, KnownFiles
from pipeline.runtime import Progress
from pipeline.sources import SampleLocation

DATASET = "inputs"
SCHEMA = pa.schema([("path", pa.string()), ("key", pa.string()), ("reason", pa.string())])
BLOCK = 8192
CHECK = "header"  # damaged images are found when they are decoded
KNOWN = "known.sqlite"
"""The file below a work folder with the keys of the inputs that were opened; all else there is made anew."""


@dataclass(frozen=True)
class Inventory:
    """The lists of inputs in a work folder.

    path: the list of all inputs. manifests: the folder of the manifest of usable inputs.
    rows: the number of inputs. usable: the number of inputs with a key.
    others: the number of skipped files by kind, such as texts in a folder of images.
    """

    path: Path
    manifests: Path
    rows: int
    usable: int
    others: dict[str, int]


def list_inputs(inputs: Iterable[Input], work: Path, *, max_pixels: int, progress: Progress) -> Inventory:
    """Open all inputs, write the lists below `work`, and return their counts. Memory does not grow with the inputs.

    Inputs that a killed prediction opened are not opened again, if their files did not change.
    """
    manifests = ManifestPaths(work / "manifests", DATASET)
    manifests.files.parent.mkdir(parents=True, exist_ok=True)
    others: Counter[str] = Counter()
    rows = usable = 0
    with (
        pq.ParquetWriter(work / "inputs.parquet", SCHEMA) as listed,
        pq.ParquetWriter(manifests.files, FILES_SCHEMA) as files,
        KnownFiles(work / KNOWN, check=CHECK, max_pixels=max_pixels) as known,
    ):
        for block in _blocks(_check(inputs, max_pixels, known), BLOCK):
            items = []
            for sample, (key, size, kind, reason) in block:
                if kind not in (None, "unreadable"):
                    others[kind] += 1
                    continue
                items.append((sample, key if kind is None else None, size, reason))
            paths, keys = [sample.path for sample, *_ in items], [key for _, key, *_ in items]
            listed.write_table(pa.table([paths, keys, [reason for *_, reason in items]], schema=SCHEMA))
            good = [(key, sample, size) for sample, key, size, _ in items if key is not None]
            columns: list[list[Any]] = [
                [key for key, *_ in good],
                [sample.path for _, sample, _ in good],
                [size if sample.size is None else sample.size for _, sample, size in good],
                [sample.container for _, sample, _ in good],
                [sample.offset for _, sample, _ in good],
            ]
            files.write_table(pa.table(columns, schema=FILES_SCHEMA))
            rows, usable = rows + len(items), usable + len(good)
            progress(rows, rows)
    return Inventory(work / "inputs.parquet", manifests.folder, rows, usable, dict(others))


def _check(inputs: Iterable[Input], max_pixels: int, known: KnownFiles) -> Iterator[tuple[FoundSample, Answer]]:
    """Yield each sample in order, with its key and size, or the kind and reason why it is refused."""
    for named, group in groupby(inputs, key=lambda item: item.named):
        pending: deque[tuple[int, FoundSample]] = deque()

        def to_open(group: Iterator[Input] = group, pending: Any = pending) -> Iterator[tuple[int, SampleLocation]]:
            for number, item in enumerate(group):
                pending.append((number, item.sample))
                if item.sample.refused[0] is None:
                    yield number, item.sample.location

        for number, answer in check_samples(
            to_open(), CHECK, where="inputs", max_pixels=max_pixels, all_are_samples=named, known=known
        ):
            while pending[0][0] < number:
                yield _refused(pending.popleft()[1])
            yield pending.popleft()[1], answer
        while pending:
            yield _refused(pending.popleft()[1])


def _refused(sample: FoundSample) -> tuple[FoundSample, Answer]:
    return sample, (None, sample.size, *sample.refused)


def _blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    block: list[Any] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
