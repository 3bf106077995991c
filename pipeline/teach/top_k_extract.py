"""Extract the logits of networks with many classes, pack them, and delete the full logits; only packed rows stay.

Extraction writes to a temporary cache below the feature cache, for the samples without packed rows only, in parts whose
full logits take at most `DENSE_BYTES`. If a run is killed, the next run continues with the temporary cache.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones.spec import BackboneSpec
from pipeline.extract.commit import commit
from pipeline.extract.config import ExtractConfig, folder_of
from pipeline.extract.run import extract
from pipeline.files import digest
from pipeline.loading.samples import Samples
from pipeline.readers.augment import View
from pipeline.runtime import Reporter
from pipeline.store import cache, key_arrays
from pipeline.store.features import Features
from pipeline.store.identity import identity
from pipeline.store.links import link_or_copy
from pipeline.teach.config import LOGITS
from pipeline.teach.top_k import TopK, TruncationError

DENSE_BYTES = 2**31
PRIVATE = "teach"  # the folder of the temporary caches
KEPT_DAYS = 7  # before the temporary cache of a killed run is removed


@dataclass(frozen=True)
class PackPaths:
    """The folders of the backbone, the manifests, the teacher and the feature cache."""

    backbone: Path
    manifests: Path
    out: Path
    cache_root: Path


@dataclass
class _View:
    """The cache entry of a view. `known`: which samples it has rows or rejections of, bool (n,)."""

    number: int | None
    column: cache.CacheEntry
    known: np.ndarray


def pack_logits(
    config: ExtractConfig,
    packing: TopK,
    *,
    spec: BackboneSpec,
    samples: Samples,
    place: PackPaths,
    reporter: Reporter,
) -> tuple[dict[str, str], int]:
    """Commit packed logits of the samples, and of their views, to `place.out`.

    `config` has the logits as its only tap. Returns the samples without logits, key to reason, and the number of
    samples that the network ran on. Raises what `extract` raises.
    """
    views: list[View | None] = [None]
    if config.views is not None:
        views += [config.views.view(number) for number in range(config.views.count)]
    columns = [_open_view(view, spec, config, packing, samples, place.cache_root) for view in views]
    missing = np.flatnonzero(~np.logical_and.reduce([view.known for view in columns]))
    private = place.cache_root / PRIVATE / digest([view.column.address for view in columns])[:32]
    classes = spec.taps[LOGITS].shape[0]
    step = max(1, DENSE_BYTES // (4 * classes * len(columns)))
    refused: dict[str, str] = {}
    before = 0

    def count(done: int, _total: int) -> None:
        reporter.progress(before + done // len(columns), len(missing))

    for before in range(0, len(missing), step):
        part = missing[before : before + step]
        extract(
            config.model_copy(update={"max_rejected": 1.0}),
            backbone=place.backbone,
            manifests=place.manifests,
            out=private / "features",
            cache_root=private,
            samples=samples.take(part),
            reporter=replace(reporter, progress=count),
        )
        for view in columns:
            refused |= _pack_view(view, private, samples.keys[part], ~view.known[part], packing)
    if private.is_dir():
        shutil.rmtree(private)
    _remove_stale(place.cache_root / PRIVATE)
    for view in columns:
        folder = place.out / folder_of(LOGITS, view.number)
        rejected = {**refused, **view.column.rejected()}
        refused |= commit(folder, view.column, samples.keys, (packing.width,), rejected)
    return refused, len(missing)


def truncation_error(column: cache.CacheEntry, keys: np.ndarray) -> dict[str, Any]:
    """Return the error of packing, over all rows of the shards that have these keys."""
    error = TruncationError()
    for record in cache.shards_for_keys(column, keys)[0]:
        error.merge(cache.read_note(column.folder / f"{record.name}.json")["provenance"]["top_k"])
    return error.note


def _open_view(
    view: View | None, spec: BackboneSpec, config: ExtractConfig, packing: TopK, samples: Samples, cache_root: Path
) -> _View:
    dense = identity(spec.viewed(view), config.taps[LOGITS], precision=config.precision)
    column = cache.column(cache_root, {**dense, "top_k": asdict(packing)})
    known = cache.shards_for_keys(column, samples.keys)[2].copy()
    places = key_arrays.find(samples.keys, key_arrays.from_hex(sorted(column.rejected())))
    known[places[places >= 0]] = True
    return _View(None if view is None else view.number, column, known)


def _pack_view(view: _View, private: Path, keys: np.ndarray, missing: np.ndarray, packing: TopK) -> Mapping[str, str]:
    """Pack the logits of a view of some samples, delete the full logits, and return key to reason of rejections."""
    folder = private / "features" / folder_of(LOGITS, view.number)
    dense = Features.open(folder)
    column = cache.column(private, dense.identity)
    wanted, deviation = keys[missing & dense.has(keys)], TruncationError()
    lasting = column.rejected()
    with view.column.writer((packing.width,)) as writer:
        size = max(1, 2**25 // (4 * dense.shape[0]))
        for own, rows in dense.batches(size, keys=wanted):
            stored = packing.pack(rows)
            deviation.add(rows, stored)
            writer.append(own, stored)
        engines = [cache.read_note(column.folder / f"{record.name}.json")["provenance"] for record in column.records()]
        engine = dict(engines[0]) if engines else {}
        writer.finish(provenance={**engine, "top_k": deviation.note}, rejected=lasting)
    for card in sorted((column.folder / "parity").glob("*.json")):
        if not (view.column.folder / "parity" / card.name).is_file():
            link_or_copy(card, view.column.folder / "parity" / card.name)
    for record in column.records():
        column.drop(record)
    shutil.rmtree(folder)
    return {item.key: item.reason for item in dense.index.rejected}


def _remove_stale(folder: Path) -> None:
    """Remove temporary caches of killed runs after `KEPT_DAYS`."""
    for leftover in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run is using the folder and removed a file
            last = max(path.stat().st_mtime for path in (leftover, *leftover.rglob("*")))
            if time.time() - last > KEPT_DAYS * 86_400:
                shutil.rmtree(leftover)
