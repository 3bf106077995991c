"""Predict many images: list all inputs, extract features through the feature cache, predict from the stored rows."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.files import digest
from pipeline.predict.cached_rows import PART_ROWS, CachedRows
from pipeline.predict.inputs import Input
from pipeline.predict.inventory import DATASET, KNOWN, Inventory, list_inputs
from pipeline.predict.output_table import Block, Columns
from pipeline.predict.row_source import RowSource
from pipeline.runtime import Progress, Reporter
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.store.lock import exclusive_lock

BLOCK_BYTES, BLOCK_ROWS = 2**25, 16_384
OLD = 86_400.0  # seconds after which the lists of a killed prediction are removed


@contextmanager
def predict_many(
    columns: Columns,
    inputs: Iterable[Input],
    networks: Sequence[RowSource],
    *,
    cache_root: Path,
    name: str,
    settings: Mapping[str, Any],
    max_pixels: int,
    reporter: Reporter,
) -> Iterator[tuple[Iterator[Block], dict[str, int]]]:
    """Yield the predictions of all inputs, block by block and in order, and the number of skipped files by kind.

    networks: the model's own network, and a second network for `near` if that needs one.
    name: names the work folder; of two predictions with the same name, the second is refused while the first runs.
    settings: settings of the extraction.
    max_pixels: larger images are refused.

    Until the context ends, lists and links to the cache's shards lie in `<cache_root>/predict/`. After an error, the
    keys of the inputs stay there for a day.
    """
    root = cache_root / "predict"
    work = root / digest({"name": name})[:32]
    _remove_old(root, cache_root)
    with exclusive_lock(cache_root, work):
        work.mkdir(parents=True, exist_ok=True)
        _clear(work)
        try:
            with reporter.stage("list") as stage:
                inventory = list_inputs(inputs, work, max_pixels=max_pixels, progress=stage.progress)
            cached = [
                _extract(network, inventory, work / "check", cache_root, settings, reporter) for network in networks
            ]
            with reporter.stage("predict") as stage:
                yield _blocks(columns, inventory, networks, cached, work / "features", stage.progress), inventory.others
        except BaseException:  # an interrupt too: the same command goes on from here
            _clear(work)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _clear(work: Path) -> None:
    """Remove what a prediction leaves in its work folder but the keys of the inputs, which are not opened again."""
    for path in work.iterdir():
        if path.name == KNOWN:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _extract(
    network: RowSource,
    inventory: Inventory,
    out: Path,
    cache_root: Path,
    settings: Mapping[str, Any],
    reporter: Reporter,
) -> CachedRows | None:
    """Compute the missing rows of all usable inputs; return the rows, None if no input is usable."""
    if not inventory.usable:
        return None
    with reporter.stage("extract") as stage:
        return network.extract(
            DATASET,
            inventory.usable,
            manifests=inventory.manifests,
            out=out,
            cache_root=cache_root,
            settings=settings,
            reporter=stage,
        )


def _blocks(
    columns: Columns,
    inventory: Inventory,
    networks: Sequence[RowSource],
    cached: Sequence[CachedRows | None],
    folder: Path,
    progress: Progress,
) -> Iterator[Block]:
    """Yield the predictions of the inputs in blocks. folder: for the links to the rows of `PART_ROWS` inputs."""
    done = 0
    with pq.ParquetFile(inventory.path) as file:
        for part in file.iter_batches(batch_size=PART_ROWS):
            keys, _ = key_arrays.distinct(key_arrays.from_arrow(part["key"].drop_null()))
            taps = [
                own.open(keys, folder / str(number)) if own is not None and len(keys) else []
                for number, own in enumerate(cached)
            ]
            for block in _blocks_of_part(columns, part, networks, taps):
                yield block
                done += len(block.paths)
                progress(done, inventory.rows)
            shutil.rmtree(folder, ignore_errors=True)


def _blocks_of_part(
    columns: Columns, part: pa.RecordBatch, networks: Sequence[RowSource], taps: Sequence[Sequence[Features]]
) -> Iterator[Block]:
    """Yield the predictions of some inputs in blocks whose feature rows fit into `BLOCK_BYTES`."""
    all_taps = [tap for own in taps for tap in own]
    reasons = {item.key: item.reason for tap in all_taps for item in tap.index.rejected}
    width = sum(int(np.prod(tap.shape)) for tap in all_taps)
    size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, width))))
    for start in range(0, len(part), size):
        batch = part.slice(start, size)
        keys, errors = batch["key"].to_pylist(), batch["reason"].to_pylist()
        usable = np.array([key is not None for key in keys], dtype=bool)
        known = key_arrays.from_hex([key for key in keys if key is not None])
        stored = np.logical_and.reduce([tap.has(known) for tap in all_taps]) if all_taps else np.empty(0, bool)
        for position, key in zip(np.flatnonzero(usable)[~stored], key_arrays.to_hex(known[~stored]), strict=True):
            errors[position] = reasons.get(key, "it has no features")
        rows = [
            {tap: features.load(known[stored]) for tap, features in zip(network.taps, own, strict=True)}
            if own
            else {tap: np.empty((0, 1)) for tap in network.taps}
            for network, own in zip(networks, taps, strict=True)
        ]
        answers, near = columns.model.answer_rows(rows[0]), columns.nearest(rows[-1])
        yield Block(batch["path"].to_pylist(), errors, answers, near)


def _remove_old(root: Path, cache_root: Path) -> None:
    """Remove the work folders of predictions that were killed long ago. A running prediction holds its lock."""
    for folder in root.glob("*") if root.is_dir() else ():
        with suppress(OSError, StoreError):
            if time.time() - folder.stat().st_mtime > OLD:
                with exclusive_lock(cache_root, folder):
                    shutil.rmtree(folder)
