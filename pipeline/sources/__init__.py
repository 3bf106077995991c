"""Sources: where the bytes of samples are stored, and how they are read. Decoding them is the work of `readers`.

filesystem  whole files, local and behind URLs (fsspec)
tar         members of tar archives, read in place, never unpacked
parquet     rows of Parquet files with a column of bytes

A file that holds many samples is a container. Each kind of container has a function like `read_many`. Samples of
several files and containers are read by `read_in_order`.
"""

import importlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from pipeline.runtime import parallel_map
from pipeline.sources import filesystem

LIMIT = 2 * 2**30
"""Largest sample, in bytes, that is read from a container."""

CONNECTIONS = 32
"""Parallel requests for files behind URLs, which hide the latency."""

UNKNOWN = -1
"""The size of a Parquet row that was not read yet."""

TAR, PARQUET = ".tar", ".parquet"
CONTAINERS: Mapping[str, str] = {
    TAR: "pipeline.sources.tar:read_many",
    PARQUET: "pipeline.sources.parquet:read_many",
}


@dataclass(frozen=True)
class SampleLocation:
    """Where the bytes of one sample are stored.

    `path`: the unique name shown to people: `/d/1.jpg`, `/d/000.tar/cat/1.jpg`, `/d/a.parquet/17`, `s3://bucket/x.jpg`.
    `container`: path or URL of the file that holds this sample and others; None where `path` is a file of its own. For
    Parquet, the column of bytes follows a `#`: `/d/a.parquet#image`.
    `offset`: position in the container: the first byte of a tar member's data, or the number of a Parquet row.
    `size`: size of the sample in bytes, or UNKNOWN.
    """

    path: str
    container: str | None
    offset: int | None
    size: int


def read(path: str) -> bytes:
    """Return all bytes of a file, local or behind a URL.

    Raises OSError, also if the path is not a regular file, and DataError if the package that reads the URL is missing.
    """
    return filesystem.read(path)


def read_many(container: str, places: Sequence[SampleLocation]) -> Iterator[bytes | OSError]:
    """Return the bytes of samples of one container, in the given order, which must be the order of their offsets.

    The container is read once from front to back, in large blocks. Each sample gives its bytes, `size` of them, or an
    OSError with the reason: the container is missing, truncated or was changed. The caller checks the content of the
    bytes, by their key. Raises DataError as `read` does.
    """
    suffix = TAR if container[-len(TAR) :].lower() == TAR else PARQUET
    module, name = CONTAINERS[suffix].split(":")
    read_container: Callable[[str, Sequence[SampleLocation]], Iterator[bytes | OSError]] = getattr(
        importlib.import_module(module), name
    )
    return read_container(container, places)


def read_in_order(places: Sequence[SampleLocation]) -> Generator[bytes | OSError]:
    """Yield the bytes of each sample, or the error of reading it, in the given order.

    Samples of a container follow one another by ascending offset. Raises DataError as `read` does.
    """
    with closing(read_all_but_local(places)) as contents:
        for place, data in zip(places, contents, strict=True):
            yield _read_or_error(place.path) if data is None else data


def read_all_but_local(places: Sequence[SampleLocation]) -> Generator[bytes | OSError | None]:
    """Yield what `read_in_order` does, but None for each local file, which the caller's processes can read themselves.

    Containers are read from front to back, and files behind URLs over several connections.
    """
    for (container, is_local), group in itertools.groupby(places, key=_source_of):
        members = list(group)
        if container is not None:
            yield from read_many(container, members)
        elif is_local:
            yield from itertools.repeat(None, len(members))
        else:
            yield from parallel_map(_read_or_error, [place.path for place in members], threads=CONNECTIONS)


def _source_of(place: SampleLocation) -> tuple[str | None, bool]:
    """Return the container of a sample, and whether the sample is a local file of its own."""
    return place.container, place.container is None and filesystem.local(place.path) is not None


def _read_or_error(path: str) -> bytes | OSError:
    try:
        return read(path)
    except OSError as error:
        return error
