"""Sources: where the bytes of samples lie and how they are read, apart from what the bytes mean.

filesystem  whole files, local and behind URLs (fsspec)
tar         members of tar archives, which are read in place and never unpacked
parquet     rows of Parquet files with a column of bytes

A file that holds many samples is a container. Each kind of container is read by a function like `read_many`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.sources import filesystem

LIMIT = 2 * 2**30
"""Bytes of a sample above which it is not read from a container."""

UNKNOWN = -1
"""The size of a Parquet row before it was read for the first time."""

TAR, PARQUET = ".tar", ".parquet"
CONTAINERS: Mapping[str, str] = {
    TAR: "pipeline.sources.tar:read_many",
    PARQUET: "pipeline.sources.parquet:read_many",
}


@dataclass(frozen=True)
class SampleLocation:
    """Where the bytes of one sample are.

    `path`: what is shown, unique: `/d/1.jpg`, `/d/000.tar/cat/1.jpg`, `/d/a.parquet/17`, `s3://bucket/x.jpg`.
    `container`: what holds the sample among others, a path or URL, or None where `path` is a file of its own. That of a
    Parquet file names the column of bytes behind a `#`: `/d/a.parquet#image`.
    `offset`: where in the container: the byte at which a tar member's data begin, or the number of a Parquet row.
    `size`: bytes of the sample, or UNKNOWN.
    """

    path: str
    container: str | None
    offset: int | None
    size: int


def read(path: str) -> bytes:
    """Return all bytes of a file, local or behind a URL.

    Raises OSError, also for what is no regular file, and DataError where a package is missing that reads the URL.
    """
    return filesystem.read(path)


def read_many(container: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    """Return the bytes of some samples of one container, in the order given, which is that of their offsets.

    It is read once from front to back, in large pieces. For each place comes its bytes, `size` of them, or the OSError
    that says why there are none: the container is missing, cut off or not the file it was. That they are still the same
    bytes is for the caller to check, by their key. Raises DataError as `read` does.
    """
    suffix = TAR if container[-len(TAR) :].lower() == TAR else PARQUET
    module, name = CONTAINERS[suffix].split(":")
    found: Callable[[str, Sequence[SampleLocation]], Iterator[bytes | OSError]] = getattr(
        importlib.import_module(module), name
    )
    return found(container, places)
