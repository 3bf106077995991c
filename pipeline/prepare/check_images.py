"""Open samples, see that they are images and work out their keys: in processes, a few of them in memory at a time.

What is done within the first half second is done without: processes take longer to start than a small folder does.
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
from pipeline.files import content_key
from pipeline.prepare.known_files import Answer, KnownFiles
from pipeline.readers import image, image_files
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.runtime import can_start_processes, cores
from pipeline.sources import SampleLocation, filesystem

Item = str | bytes | OSError | Answer
"""What a process gets of a sample: the path of a local file, which it reads itself, or its bytes, or why not; or the
answer, where that is known."""

UNRECOGNISED = "unrecognised"
"""The kind of trouble with bytes that are of no known format."""

OTHER_IMAGES = (
    *(
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jxl",
        ".dcm",
        ".dicom",
        ".svg",
        ".eps",
        ".ps",
        ".ai",
        ".psb",
        ".wmf",
        ".emf",
    ),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".raw", ".rwl", ".3fr", ".fff", ".iiq", ".mrw", ".x3f", ".kdc", ".dcr", ".erf", ".mef", ".mos", ".exr", ".hdr"),
    *(
        ".czi",
        ".lif",
        ".nd2",
        ".oib",
        ".oif",
        ".lsm",
        ".vsi",
        ".svs",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".fits",
        ".fit",
        ".xcf",
    ),
)
"""Extensions of images that are not read: one of these is a sample that would be missed."""

ARCHIVES = (".tar", ".parquet", ".zip", ".rar", ".7z", ".tgz", ".gz", ".bz2", ".xz", ".zst")
"""Extensions of files in which samples may lie that would be missed."""

BLOCK = 16_384
CHUNK_ROWS = 64
CHUNK_BYTES = 4 * 2**20
IN_FLIGHT_BYTES = 256 * 2**20
CONNECTIONS = 16
ALONE = 0.5  # seconds before processes are started


def examine(
    rows: Iterable[tuple[int, SampleLocation]],
    check: str,
    *,
    where: str,
    max_pixels: int = MAX_PIXELS,
    all_are_samples: bool = False,
    known: KnownFiles | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Yield number and answer of each sample, in the order given; containers' samples stand together, by their offsets.

    A file of no known format without an image's extension is of the kind "other", and no reject, unless
    `all_are_samples`, as of a list. Local files are read
    where they are checked. Containers are read here, from front to back, and remote files over several connections.
    Samples that `known` has an answer for are not opened; it is given the answers of the others. Raises DataError where
    a process is killed.
    """
    end = time.monotonic() + ALONE
    inspect_items = functools.partial(inspect_many, check=check, max_pixels=max_pixels)

    def settle_one(place: SampleLocation, answer: Answer) -> Answer:
        settled = settle(place, answer, all_are_samples=all_are_samples)
        if known is not None:
            known.keep(place, settled)
        return settled

    with closing(_chunks(rows, known)) as chunks:  # at an error too, since it holds a container open
        for chunk, items in chunks:
            for number, ((row, place), item) in enumerate(zip(chunk, items, strict=True)):
                if time.monotonic() > end:
                    rest = itertools.chain([(chunk[number:], items[number:])], chunks)
                    yield from _on_all_cores(rest, inspect_items, settle_one, where=where)
                    return
                yield row, settle_one(place, inspect_items([item])[0])


def settle(place: SampleLocation, answer: Answer, *, all_are_samples: bool) -> Answer:
    """Return an answer with the kind of a file of no known format: `other`, or `unreadable` for a lost sample."""
    key, size, kind, reason = answer
    if kind != UNRECOGNISED:
        return answer
    suffix = PurePosixPath(place.path).suffix.lower()
    is_image = suffix in image_files.extensions() or suffix in OTHER_IMAGES
    is_lost = all_are_samples or place.container is not None or is_image or suffix in ARCHIVES
    return key, size, "unreadable" if is_lost else "other", reason


def _on_all_cores(
    chunks: Iterable[tuple[list[tuple[int, SampleLocation]], list[Item]]],
    inspect_items: Callable[[Sequence[Item]], list[Answer]],
    settle_one: Callable[[SampleLocation, Answer], Answer],
    *,
    where: str,
) -> Iterator[tuple[int, Answer]]:
    with _workers() as (pool, started):
        flying: deque[tuple[list[tuple[int, SampleLocation]], int, Future[list[Answer]]]] = deque()

        def drain() -> Iterator[tuple[int, Answer]]:
            chunk, _, future = flying.popleft()
            try:
                answers = future.result()
            except BrokenProcessPool:
                raise DataError(_killed(where, [place for _, place in chunk], has_started=started.is_set())) from None
            yield from ((row, settle_one(place, answer)) for (row, place), answer in zip(chunk, answers, strict=True))

        for chunk, items in chunks:
            weight = sum(len(item) for item in items if isinstance(item, bytes))
            while flying and (len(flying) > 2 * cores() or sum(w for _, w, _ in flying) + weight > IN_FLIGHT_BYTES):
                yield from drain()
            if all(isinstance(item, tuple) for item in items):  # no process is started where all is known
                flying.append((chunk, 0, _answered(items)))
                continue
            try:
                future = pool.submit(inspect_items, items)
            except BrokenProcessPool:
                places = [place for _, place in (flying[0][0] if flying else chunk)]
                raise DataError(_killed(where, places, has_started=started.is_set())) from None
            flying.append((chunk, weight, future))
        while flying:
            yield from drain()


def _answered(items: list[Item]) -> Future[list[Answer]]:
    done: Future[list[Answer]] = Future()
    done.set_result([item for item in items if isinstance(item, tuple)])
    return done


def inspect_many(items: Sequence[Item], check: str, max_pixels: int = MAX_PIXELS) -> list[Answer]:
    """Inspect local files by their paths, check samples by their bytes, and pass on what is known."""
    return [
        item
        if isinstance(item, tuple)
        else inspect(item, check, max_pixels)
        if isinstance(item, str)
        else check_bytes(item, check, max_pixels)
        for item in items
    ]


def inspect(path: str, check: str, max_pixels: int = MAX_PIXELS) -> Answer:
    """Open one file: its key, size, and, if it cannot be used, what kind of trouble and the reason."""
    try:
        data = sources.read(path)
    except OSError as error:
        return check_bytes(error, check, max_pixels)
    return check_bytes(data, check, max_pixels)


def check_bytes(data: bytes | OSError, check: str, max_pixels: int = MAX_PIXELS) -> Answer:
    """Return what `inspect` does, for a sample that was read, or could not be read."""
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
    """Yield a process per core, or a thread where the script has no guard; and an event that is set once one has
    started.

    What has not begun is dropped at an early end.
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


def _killed(where: str, places: Sequence[SampleLocation], *, has_started: bool) -> str:
    if not has_started:
        return (
            f"{where}: the processes that check images could not start; their traceback is above. A script that "
            "prepares images is a file, and makes its calls under `if __name__ == '__main__'`."
        )
    return (
        f"{where}: a process that was checking images was killed, at {places[0].path} or one of the "
        f"{len(places):,} after it. The usual reason is a lack of memory: look for a very large image there, or set "
        "`check: header`; then run it again."
    )


def _chunks(
    rows: Iterable[tuple[int, SampleLocation]], known: KnownFiles | None
) -> Generator[tuple[list[tuple[int, SampleLocation]], list[Item]]]:
    """Yield samples in small groups, each with what a process gets of it."""
    waiting = iter(rows)
    while block := list(itertools.islice(waiting, BLOCK)):
        most = max(1, min(CHUNK_ROWS, len(block) // (4 * cores())))
        chunk: list[tuple[int, SampleLocation]] = []
        items: list[Item] = []
        weight = 0
        for row, item in zip(block, _read([place for _, place in block], known), strict=True):
            chunk.append(row)
            items.append(item)
            weight += len(item) if isinstance(item, bytes) else 0
            if len(chunk) == most or weight >= CHUNK_BYTES:
                yield chunk, items
                chunk, items, weight = [], [], 0
        if chunk:
            yield chunk, items


def _read(places: Sequence[SampleLocation], known: KnownFiles | None) -> Iterator[Item]:
    """Yield what a process gets of each sample; only samples without a known answer are read."""
    answers = [None if known is None else known.answer(place) for place in places]
    unknown = [place for place, answer in zip(places, answers, strict=True) if answer is None]
    with closing(_read_all(unknown)) as items:
        for answer in answers:
            yield next(items) if answer is None else answer


def _read_all(places: Sequence[SampleLocation]) -> Generator[Item]:
    for container, group in itertools.groupby(places, key=lambda place: place.container):
        if container is not None:
            yield from sources.read_many(container, list(group))
            continue
        for is_remote, inner in itertools.groupby(group, key=lambda place: filesystem.local(place.path) is None):
            paths = [place.path for place in inner]
            yield from _remote(paths) if is_remote else paths


def _remote(urls: Sequence[str]) -> Iterator[Item]:
    """Yield the bytes of remote files; about two for each connection are on their way, or here and not yet asked
    for.
    """
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        coming: deque[Future[Item]] = deque()
        for url in urls:
            coming.append(threads.submit(_fetched, url))
            if len(coming) == 2 * CONNECTIONS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _fetched(url: str) -> Item:
    try:
        return sources.read(url)
    except OSError as error:
        return error
