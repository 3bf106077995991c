"""The work of one unit: read and decode its samples, run the network, store one shard a tap."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.engines import Engine
from pipeline.errors import DataError, StoreError
from pipeline.extract.clock import Spent
from pipeline.files import content_key
from pipeline.readers import Reader, Sample
from pipeline.runtime import cores
from pipeline.store import keys as key_arrays
from pipeline.store.cache import Column


@dataclass(frozen=True)
class Reject:
    """A sample that gave no features. `lasting`: its content is the reason, so trying again is of no use."""

    key: str
    path: str
    reason: str
    lasting: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def make_unit(
    keys: np.ndarray,
    paths: Sequence[str],
    *,
    reader: Reader,
    engine: Engine,
    columns: Mapping[str, Column],
    batch_size: int,
    done: Callable[[int], None],
    spent: Spent,
) -> list[Reject]:
    """Compute and store the rows of `keys` (S16, sorted) for every column; return what was rejected.

    `done` is called with the number of samples that were dealt with since the last call. The time goes to `spent`.
    """
    stored: list[int] = []
    rejects: list[Reject] = []
    parts: dict[str, list[np.ndarray]] = {tap: [] for tap in columns}
    hexes = key_arrays.to_hex(keys)
    with _pool() as pool:
        # Two batches are decoded ahead while the network runs on a third.
        for rows in spent.waiting(_ahead(pool, reader, hexes, paths, batch_size)):
            good = [(row, item) for row, item in rows if isinstance(item, dict)]
            rejects += [item for _, item in rows if isinstance(item, Reject)]
            if good:
                stored += [row for row, _ in good]
                batch = {name: np.stack([item[name] for _, item in good]) for name in good[0][1]}
                with spent.on("forward"):
                    found = engine.run(batch)
                for tap in parts:
                    parts[tap].append(found[tap])
            spent.samples += len(rows)
            done(len(rows))
    lasting = {reject.key: reject.reason for reject in rejects if reject.lasting}
    with spent.on("write"):
        for tap, column in columns.items():
            if not stored:
                column.reject(lasting)
                continue
            try:
                column.add(keys[stored], np.concatenate(parts[tap]), provenance=engine.provenance, rejected=lasting)
            except StoreError as error:
                raise StoreError(f"tap {tap!r}: {error}") from None
    return rejects


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for all cores; where the work ends early, what they have not begun is dropped."""
    pool = ThreadPoolExecutor(cores())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def first_samples(keys: np.ndarray, paths: Sequence[str], *, reader: Reader, count: int, batch_size: int) -> np.ndarray:
    """The pixels of the first `count` samples that can be read, or of all if there are fewer."""
    good: list[np.ndarray] = []
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(keys), batch_size):
            part = slice(start, start + batch_size)
            read = pool.map(
                lambda key, path: read_sample(reader, key, path), key_arrays.to_hex(keys[part]), paths[part]
            )
            good += [sample["pixels"] for sample in read if isinstance(sample, dict)]
            if len(good) >= count:
                break
    return np.stack(good[:count]) if good else np.empty((0,), np.uint8)


def read_sample(reader: Reader, key: str, path: str) -> Sample | Reject:
    """Read one file, make sure it is still the content of its key, and decode it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return Reject(key, path, error.strerror or str(error), lasting=False)
    if content_key(data) != key:
        return Reject(key, path, "changed since its data set was prepared; run prepare again", lasting=False)
    try:
        return reader(data)
    except DataError as error:
        return Reject(key, path, str(error), lasting=True)


def _ahead(
    pool: ThreadPoolExecutor, reader: Reader, keys: Sequence[str], paths: Sequence[str], batch_size: int
) -> Iterator[list[tuple[int, Sample | Reject]]]:
    starts = range(0, len(keys), batch_size)
    pending = []
    for start in starts:
        rows = range(start, min(start + batch_size, len(keys)))
        pending.append((rows, [pool.submit(read_sample, reader, keys[row], paths[row]) for row in rows]))
        if len(pending) > 2:
            before, futures = pending.pop(0)
            yield [(row, future.result()) for row, future in zip(before, futures, strict=True)]
    for before, futures in pending:
        yield [(row, future.result()) for row, future in zip(before, futures, strict=True)]
