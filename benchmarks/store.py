"""The feature store against plain files and other formats: `python benchmarks/store.py`.

Every line is a ratio of times measured in turn in this run, the median of several: 2.0 means twice as fast as the
yardstick. Lines that say seconds, MB or GB/s are no ratios. Reads are from the page cache, so they compare the work of
the processor, not disks.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from shards import write

from pipeline.extract.commit import commit
from pipeline.runtime import cores, parallel_map
from pipeline.store import cache, index, key_arrays
from pipeline.store.features import Features
from pipeline.store.links import link_or_copy
from pipeline.store.shard_format import ZSTD_LEVEL, Layout, ShardRecord

OPEN = """
import sys, time, pathlib
import numpy as np
from pipeline.store.features import Features

root = pathlib.Path(sys.argv[1])
wanted = np.load(root / "wanted.npy")
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
start = time.perf_counter()
features = Features.open(root / "large")
opened = time.perf_counter()
features.find(wanted)
found = time.perf_counter()
print(opened - start, found - opened, (peak() - before) / 1024)
"""

Timed = Callable[[], object]


def paired(ours: Timed, theirs: Timed, *, runs: int = 5) -> float:
    """Return the median ratio of the yardstick's time to ours, timed in turn after a warm-up of each."""
    ours(), theirs()
    return float(np.median([seconds(theirs) / seconds(ours) for _ in range(runs)]))


def seconds(run: Timed) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rate(rows: np.ndarray, run: Timed, *, runs: int = 3) -> float:
    """Return the gigabytes of rows per second of a call, the median of some runs after a warm-up."""
    run()
    return rows.nbytes / 1e9 / float(np.median([seconds(run) for _ in range(runs)]))


def compress(blocks: Sequence[memoryview]) -> None:
    """Compress blocks as in a shard of maps, without storing them."""
    for _ in parallel_map(lambda block: len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(block)), blocks):
        pass


def save(path: Path, rows: np.ndarray) -> None:
    """Write rows with `np.save` and fsync."""
    with path.open("wb") as file:
        np.save(file, rows)
        file.flush()
        os.fsync(file.fileno())


def build(folder: Path, rows: np.ndarray, keys: np.ndarray, *, shard_rows: int) -> Layout:
    """Write a store of some rows."""
    shutil.rmtree(folder, ignore_errors=True)
    layout = Layout("0" * 64, "float16", rows.shape[1:])
    parts = [slice(start, start + shard_rows) for start in range(0, len(rows), shard_rows)]
    records = [write(folder, keys[part], rows[part], layout) for part in parts]
    held = [keys[part] for part in parts]
    index.commit(folder, identity={}, layout=layout, shards=records, keys=held, wanted=keys, rejected={})
    return layout


def passes(features: Features) -> None:
    """Read all rows in a sequential pass, shard by shard."""
    for number, record in enumerate(features.index.shards):
        features._shard(number).read(0, record.rows)


def dense(root: Path, rows: int) -> Iterator[tuple[str, str, float]]:
    """Measure vectors of 2,048 values."""
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, 2048), dtype=np.float32).astype(np.float16)
    keys = np.sort(np.frombuffer(random.bytes(16 * rows), key_arrays.DTYPE))
    npy, store = root / "x.npy", root / "store"
    yield (
        "write, vectors",
        "np.save + fsync",
        paired(lambda: build(store, x, keys, shard_rows=32_768), lambda: save(npy, x), runs=3),
    )
    yield "SHA-256 of the vectors alone, one thread", "GB/s", rate(x, lambda: hashlib.sha256(x.data.cast("B")).digest())
    yield "np.save + fsync of the vectors", "GB/s", rate(x, lambda: save(npy, x))
    checked, unchecked = Features.open(store), Features.open(store, check=False)
    for name, features in [("checked", checked), ("unchecked", unchecked)]:
        yield f"pass over all rows, {name}", "np.load", paired(lambda f=features: passes(f), lambda: np.load(npy))
    mapped = np.load(npy, mmap_mode="r")
    places = [random.integers(0, rows, 256) for _ in range(40)]
    wanted = [keys[place] for place in places]
    with h5py.File(root / "big.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(1, 2048))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x[: rows // 10].reshape(-1)), 2048)})
    pq.write_table(table, root / "x.parquet")
    for name, features in [("checked", checked), ("unchecked", unchecked)]:
        yield (
            f"256 random rows, {name}",
            "np.memmap",
            paired(
                lambda f=features: [f.load(some) for some in wanted], lambda: [np.asarray(mapped[p]) for p in places]
            ),
        )
    single = root / "single"
    single.mkdir()
    for place in np.unique(places[:4]).tolist():
        np.save(single / f"{place}.npy", x[place])
    yield (
        "256 random rows, checked",
        "a .npy a sample",
        paired(
            lambda: [checked.load(some) for some in wanted[:4]],
            lambda: [np.stack([np.load(single / f"{p}.npy") for p in place.tolist()]) for place in places[:4]],
        ),
    )
    with h5py.File(root / "big.h5") as file:
        sorted_places = [np.unique(place) for place in places[:4]]
        yield (
            "256 random rows, checked",
            "one h5py file, chunks (1, D)",
            paired(lambda: [checked.load(some) for some in wanted[:4]], lambda: [file["x"][p] for p in sorted_places]),
        )
    yield (
        "a tenth of the rows, checked",
        "Parquet",
        paired(lambda: checked.load(keys[: rows // 10]), lambda: pq.read_table(root / "x.parquet")),
    )


def linking(root: Path, shards: int, rows: int) -> Iterator[tuple[str, str, float]]:
    """Time linking a cache entry into a folder of features, as an extraction with nothing to compute does."""
    random = np.random.default_rng(0)
    column = cache.column(root / "cache", {"node": "x", "dtype": "float16"})
    keys = np.sort(np.frombuffer(random.bytes(16 * shards * rows), key_arrays.DTYPE))
    for part in np.split(keys, shards):
        with column.writer((2048,)) as writer:
            writer.append(part, random.standard_normal((rows, 2048), dtype=np.float32))
            writer.finish(provenance={})
    how = link_or_copy(column.path_of(column.records()[0]), root / "how.h5")
    took = seconds(lambda: commit(root / "features", column, keys, (2048,), {}))
    yield f"link {shards} cached shards and commit ({how})", "seconds", took
    copy = seconds(lambda: [shutil.copyfile(path, root / "copy") for path in column.folder.glob("*.h5")])
    yield f"link {shards} cached shards and commit", "copy them", copy / took


def maps(root: Path, rows: int) -> Iterator[tuple[str, str, float]]:
    """Measure maps of 64x56x56 with 60 % zeros."""
    random = np.random.default_rng(0)
    x = np.maximum(random.standard_normal((rows, 64, 56, 56), dtype=np.float32) - 0.2533, 0).astype(np.float16)
    keys = np.sort(np.frombuffer(random.bytes(16 * rows), key_arrays.DTYPE))
    npy, store = root / "maps.npy", root / "maps"
    yield (
        f"write, maps, {np.mean(x == 0):.0%} zeros",
        "np.save + fsync",
        paired(lambda: build(store, x, keys, shard_rows=320), lambda: save(npy, x), runs=3),
    )
    frames = [x[start : start + 2].data.cast("B") for start in range(0, len(x), 2)]  # about 1 MiB, as in a shard
    yield (
        f"Zstandard level {ZSTD_LEVEL} of the maps alone, {cores()} threads",
        "GB/s",
        rate(x, lambda: compress(frames)),
    )
    yield "np.save + fsync of the maps", "GB/s", rate(x, lambda: save(npy, x))
    size = sum(path.stat().st_size for path in store.glob("*.h5"))
    yield "bytes of the maps, stored", "np.save (ratio of sizes)", npy.stat().st_size / size
    features = Features.open(store)
    yield "pass over all maps, checked", "np.load", paired(lambda: passes(features), lambda: np.load(npy), runs=3)


def large(root: Path, keys: int) -> Iterator[tuple[str, str, float]]:
    """Measure a store of 1,000 shards and many keys, in seconds and megabytes."""
    random = np.random.default_rng(0)
    every = np.sort(np.frombuffer(random.bytes(16 * keys), key_arrays.DTYPE))
    layout = Layout("0" * 64, "float16", (1,))
    parts = np.array_split(every, 1000)
    records = [ShardRecord(f"{n:064x}", len(part), 1, "0" * 32, "f" * 32) for n, part in enumerate(parts)]
    index.commit(root / "large", identity={}, layout=layout, shards=records, keys=parts, wanted=every, rejected={})
    np.save(root / "wanted.npy", every[random.integers(0, keys, 100_000)])
    del every, parts
    # A fresh process, so that its peak memory is that of opening and looking up alone.
    said = subprocess.run([sys.executable, "-c", OPEN, root], check=True, capture_output=True, text=True).stdout
    opened, found, megabytes = map(float, said.split())
    yield f"open 1,000 shards, {keys:,} keys", "seconds", opened
    yield "look up 100,000 keys", "seconds", found
    yield "peak memory of both", "MB above an idle process", megabytes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--maps", type=int, default=1_280)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        print("| what | against | ratio |\n|---|---|---|")
        tables = [
            large(root, given.keys),
            dense(root, given.rows),
            linking(root, 100, max(1, given.rows // 400)),
            maps(root, given.maps),
        ]
        for table in tables:
            for what, against, ratio in table:
                print(f"| {what} | {against} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
