"""Open samples, check that they are images and compute their keys, with few samples in memory at a time.

The first half second runs in this process, since starting others takes longer than checking a small folder. After that,
worker processes check the rest.
"""

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import PurePosixPath

from pipeline import sources
from pipeline.errors import DataError
from pipeline.prepare.known_files import Answer, KnownFiles
from pipeline.readers import image, image_files
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.readers.sample_key import content_key
from pipeline.runtime import can_start_processes, cores
from pipeline.sources import SampleLocation

Item = str | bytes | OSError | Answer
"""A sample as a worker gets it: the path of a local file to read, the bytes, the error of reading them, or its known
answer."""

UNRECOGNISED = "unrecognised"
"""The kind of problem with bytes in no known image format."""

ARCHIVES = (".tar", ".parquet", ".zip", ".rar", ".7z", ".tgz", ".gz", ".bz2", ".xz", ".zst")
"""Extensions of files that may contain samples. Such a file is reported as unreadable, not skipped."""

BLOCK = 16_384
CHUNK_ROWS = 64
CHUNK_BYTES = 4 * 2**20
IN_FLIGHT_BYTES = 256 * 2**20
START_WORKERS_AFTER = 0.5  # seconds before processes are started


def check_samples(
    rows: Iterable[tuple[int, SampleLocation]],
    check: str,
    *,
    where: str,
    max_pixels: int = MAX_PIXELS,
    all_are_samples: bool = False,
    known: KnownFiles | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield the row number and answer of each sample, in the order of `rows`.

    rows: row numbers with locations; the samples of a container follow one another, sorted by offset.
    all_are_samples: whether a file of no known format is an unreadable sample, as in a list. Otherwise such a file
    is of the kind "other" unless its extension is that of an image.
    known: answers of earlier calls. Samples with a known answer are not opened, and new answers are added.

    Workers read local files themselves. This process reads containers from front to back, and remote files over
    several connections. Raises DataError where a worker process is killed.
    """
    end = time.monotonic() + START_WORKERS_AFTER
    inspect_items = functools.partial(inspect_many, check=check, max_pixels=max_pixels)

    def resolve(location: SampleLocation, answer: Answer) -> Answer:
        resolved = resolve_kind(location, answer, all_are_samples=all_are_samples)
        if known is not None:
            known.keep(location, resolved)
        return resolved

    with closing(_chunks(rows, known)) as chunks:  # closed after an error too: the generator holds a container open
        for chunk, items in chunks:
            for number, ((row, location), item) in enumerate(zip(chunk, items, strict=True)):
                if time.monotonic() > end:
                    rest = itertools.chain([(chunk[number:], items[number:])], chunks)
                    yield from _check_on_all_cores(rest, inspect_items, resolve, where=where)
                    return
                yield row, resolve(location, inspect_items([item])[0])


def resolve_kind(location: SampleLocation, answer: Answer, *, all_are_samples: bool) -> Answer:
    """Return an answer with `unrecognised` resolved to `unreadable` for a sample, `other` for any other file."""
    key, size, kind, reason = answer
    if kind != UNRECOGNISED:
        return answer
    suffix = PurePosixPath(location.path).suffix.lower()
    is_image = suffix in image_files.extensions() or suffix in image_files.UNREADABLE
    is_sample = all_are_samples or location.container is not None or is_image or suffix in ARCHIVES
    return key, size, "unreadable" if is_sample else "other", reason


def _check_on_all_cores(
    chunks: Iterable[tuple[list[tuple[int, SampleLocation]], list[Item]]],
    inspect_items: Callable[[Sequence[Item]], list[Answer]],
    resolve: Callable[[SampleLocation, Answer], Answer],
    *,
    where: str,
) -> Iterator[tuple[int, Answer]]:
    with _workers() as (pool, started):
        in_flight: deque[tuple[list[tuple[int, SampleLocation]], int, Future[list[Answer]]]] = deque()

        def drain() -> Iterator[tuple[int, Answer]]:
            chunk, _, future = in_flight.popleft()
            try:
                answers = future.result()
            except BrokenProcessPool:
                locations = [location for _, location in chunk]
                raise DataError(_describe_crash(where, locations, has_started=started.is_set())) from None
            for (row, location), answer in zip(chunk, answers, strict=True):
                yield row, resolve(location, answer)

        for chunk, items in chunks:
            size = sum(len(item) for item in items if isinstance(item, bytes))
            while in_flight and (
                len(in_flight) > 2 * cores() or sum(other for _, other, _ in in_flight) + size > IN_FLIGHT_BYTES
            ):
                yield from drain()
            if all(isinstance(item, tuple) for item in items):  # no process starts if all answers are known
                in_flight.append((chunk, 0, _known_answers(items)))
                continue
            try:
                future = pool.submit(inspect_items, items)
            except BrokenProcessPool:
                locations = [location for _, location in (in_flight[0][0] if in_flight else chunk)]
                raise DataError(_describe_crash(where, locations, has_started=started.is_set())) from None
            in_flight.append((chunk, size, future))
        while in_flight:
            yield from drain()


def _known_answers(items: list[Item]) -> Future[list[Answer]]:
    done: Future[list[Answer]] = Future()
    done.set_result([item for item in items if isinstance(item, tuple)])
    return done


def inspect_many(items: Sequence[Item], check: str, max_pixels: int = MAX_PIXELS) -> list[Answer]:
    """Check several samples: local files by their paths, other samples by their bytes; known answers are passed on."""
    return [
        item
        if isinstance(item, tuple)
        else inspect(item, check, max_pixels)
        if isinstance(item, str)
        else check_bytes(item, check, max_pixels)
        for item in items
    ]


def inspect(path: str, check: str, max_pixels: int = MAX_PIXELS) -> Answer:
    """Read and check a file; return key and size and, if it cannot be used, the kind of problem and the reason."""
    try:
        data = sources.read(path)
    except OSError as error:
        return check_bytes(error, check, max_pixels)
    return check_bytes(data, check, max_pixels)


def check_bytes(data: bytes | OSError, check: str, max_pixels: int = MAX_PIXELS) -> Answer:
    """Return the answer of `inspect` for the bytes of a sample, or for the error of reading them."""
    if isinstance(data, OSError):
        return None, None, "unreadable", data.strerror or str(data)
    try:
        image.check(data, decode_pixels=check == "decode", max_pixels=max_pixels)
    except image.NotAnImageError as error:
        return content_key(data), len(data), UNRECOGNISED, str(error)
    except DataError as error:
        return content_key(data), len(data), "unreadable", str(error)
    return content_key(data), len(data), None, None


@contextmanager
def _workers() -> Iterator[tuple[Executor, Event]]:
    """Yield a pool with one worker per core, and an event that is set when a worker process has started.

    The workers are threads where processes cannot start: in a script without `if __name__ == "__main__"`. When the
    caller stops early, pending work is cancelled.
    """
    pool: Executor
    context = get_context("spawn")
    started = context.Event()
    if can_start_processes():
        pool = ProcessPoolExecutor(cores(), mp_context=context, initializer=_announce, initargs=(started,))
    else:
        pool = ThreadPoolExecutor(max_workers=cores())
    try:
        yield pool, started
    finally:
        pool.shutdown(cancel_futures=True)


def _announce(started: Event) -> None:
    started.set()


def _describe_crash(where: str, locations: Sequence[SampleLocation], *, has_started: bool) -> str:
    if not has_started:
        return (
            f"{where}: the processes that check images could not start; their traceback is above. A script that "
            "prepares images is a file, and makes its calls under `if __name__ == '__main__'`."
        )
    return (
        f"{where}: a process that was checking images was killed, at {locations[0].path} or one of the "
        f"{len(locations):,} after it. The usual reason is a lack of memory: look for a very large image there, or set "
        "`check: header`; then run it again."
    )


def _chunks(
    rows: Iterable[tuple[int, SampleLocation]], known: KnownFiles | None
) -> Generator[tuple[list[tuple[int, SampleLocation]], list[Item]]]:
    """Yield samples in chunks, each with the items that a worker gets."""
    remaining = iter(rows)
    while block := list(itertools.islice(remaining, BLOCK)):
        max_rows = max(1, min(CHUNK_ROWS, len(block) // (4 * cores())))
        chunk: list[tuple[int, SampleLocation]] = []
        items: list[Item] = []
        size = 0
        for row, item in zip(block, _read_items([location for _, location in block], known), strict=True):
            chunk.append(row)
            items.append(item)
            size += len(item) if isinstance(item, bytes) else 0
            if len(chunk) == max_rows or size >= CHUNK_BYTES:
                yield chunk, items
                chunk, items, size = [], [], 0
        if chunk:
            yield chunk, items


def _read_items(locations: Sequence[SampleLocation], known: KnownFiles | None) -> Iterator[Item]:
    """Yield the item of each sample; only samples without a known answer are read."""
    answers = [None if known is None else known.answer(location) for location in locations]
    unknown = [location for location, answer in zip(locations, answers, strict=True) if answer is None]
    with closing(sources.read_all_but_local(unknown)) as contents:
        unread = iter(unknown)
        for answer in answers:
            if answer is not None:
                yield answer
            else:
                path, data = next(unread).path, next(contents)
                yield path if data is None else data
