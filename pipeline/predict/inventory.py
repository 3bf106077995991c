"""Open every input once, see that it is an image, and list it with its key: the manifest of a large prediction.

`<work>/inputs.parquet` has a row per input in the order of the inputs: `path`, `key` (null where it cannot be used) and
`reason`. `<work>/manifests/` is a data set of the usable ones, which an extraction reads.
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
from pipeline.prepare.check_images import examine
from pipeline.prepare.config import FoundSample
from pipeline.prepare.known_files import Answer, KnownFiles
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.runtime import Progress
from pipeline.sources import UNKNOWN, SampleLocation

DATASET = "inputs"
SCHEMA = pa.schema([("path", pa.string()), ("key", pa.string()), ("reason", pa.string())])
BLOCK = 8192
CHECK = "header"  # damaged images are found when they are decoded
KNOWN = "known.sqlite"
"""The file below a work folder with the keys of the inputs that were opened; all else there is made anew."""


@dataclass(frozen=True)
class Inventory:
    """The lists of the inputs in a work folder. `usable` of `rows` have a key; `others` counts files that are no rows,
    such as texts in a folder of images, by kind.
    """

    path: Path
    manifests: Path
    rows: int
    usable: int
    others: dict[str, int]


def location(sample: FoundSample) -> SampleLocation:
    """Return where the bytes of a sample are."""
    size = UNKNOWN if sample.size is None else sample.size
    return SampleLocation(sample.path, sample.container, sample.offset, size)


def list_inputs(inputs: Iterable[Input], work: Path, *, progress: Progress) -> Inventory:
    """Open all inputs, write the lists below `work`, and return what they hold; memory is flat in the inputs.

    Inputs that a prediction opened which was killed are not opened again, if their files are as they were.
    """
    manifests = ManifestPaths(work / "manifests", DATASET)
    manifests.files.parent.mkdir(parents=True, exist_ok=True)
    others: Counter[str] = Counter()
    rows = usable = 0
    with (
        pq.ParquetWriter(work / "inputs.parquet", SCHEMA) as listed,
        pq.ParquetWriter(manifests.files, FILES_SCHEMA) as files,
        KnownFiles(work / KNOWN, check=CHECK, max_pixels=MAX_PIXELS) as known,
    ):
        for block in _blocks(_examined(inputs, known), BLOCK):
            kept = []
            for sample, (key, size, kind, reason) in block:
                if kind not in (None, "unreadable"):
                    others[kind] += 1
                    continue
                kept.append((sample, key if kind is None else None, size, reason))
            listed.write_table(
                pa.table(
                    [[one.path for one, *_ in kept], [key for _, key, *_ in kept], [reason for *_, reason in kept]],
                    schema=SCHEMA,
                )
            )
            good = [(key, one, size) for one, key, size, _ in kept if key is not None]
            columns: list[list[Any]] = [
                [key for key, *_ in good],
                [one.path for _, one, _ in good],
                [size if one.size is None else one.size for _, one, size in good],
                [one.container for _, one, _ in good],
                [one.offset for _, one, _ in good],
            ]
            files.write_table(pa.table(columns, schema=FILES_SCHEMA))
            rows, usable = rows + len(kept), usable + len(good)
            progress(rows, rows)
    return Inventory(work / "inputs.parquet", manifests.folder, rows, usable, dict(others))


def _examined(inputs: Iterable[Input], known: KnownFiles) -> Iterator[tuple[FoundSample, Answer]]:
    """Yield each sample with its key and size, or the kind and reason of its refusal, in the order of the inputs."""
    for named, group in groupby(inputs, key=lambda one: one.named):
        waiting: deque[tuple[int, FoundSample]] = deque()

        def to_open(group: Iterator[Input] = group, waiting: Any = waiting) -> Iterator[tuple[int, SampleLocation]]:
            for number, one in enumerate(group):
                waiting.append((number, one.sample))
                if one.sample.refused[0] is None:
                    yield number, location(one.sample)

        for number, answer in examine(to_open(), CHECK, where="inputs", all_are_samples=named, known=known):
            while waiting[0][0] < number:
                yield _refused(waiting.popleft()[1])
            yield waiting.popleft()[1], answer
        while waiting:
            yield _refused(waiting.popleft()[1])


def _refused(sample: FoundSample) -> tuple[FoundSample, Answer]:
    return sample, (None, sample.size, *sample.refused)


def _blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    block: list[Any] = []
    for one in items:
        block.append(one)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
