"""Cache rows by the content of their images: in the memory of the process, and for files in the feature cache.

Folds and candidates of a search need the same images repeatedly; each image goes through the network once.
"""

import contextlib
import fcntl
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.backbones.spec import TapSpec
from pipeline.errors import DataError, bullets
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import digest
from pipeline.inference.backbone import Backbone
from pipeline.inference.cached_embedding import EMBEDDINGS
from pipeline.inference.reporting import REPORTER
from pipeline.loading.images import pixel_batches
from pipeline.loading.samples import WHERE, Samples
from pipeline.readers.image import check
from pipeline.readers.sample_key import content_key
from pipeline.runtime import parallel_map
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.store.location import default_root

MAX_BYTES = 2**28
"""Most bytes of rows that a process caches; the least recently used rows are dropped first."""

Rows = dict[str, np.ndarray]
"""Rows (images, ...) of each tap."""


class RowMemory:
    """A thread-safe cache of rows by tap and content, with at most `max_bytes` bytes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._rows: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tap: str, key: str) -> np.ndarray | None:
        """Return a row; None if it is not cached."""
        with self._lock:
            row = self._rows.get((tap, key))
            if row is not None:
                self._rows.move_to_end((tap, key))
            return row

    def put(self, tap: str, key: str, row: np.ndarray) -> None:
        """Cache a copy of a row, and drop the least recently used rows above the limit."""
        with self._lock:
            if (tap, key) in self._rows:
                return
            self._rows[tap, key] = row.copy()
            self._bytes += row.nbytes
            while self._bytes > self.max_bytes:
                _, dropped = self._rows.popitem(last=False)
                self._bytes -= dropped.nbytes


MEMORY = RowMemory()
COMPUTING = threading.RLock()
"""Held while this process computes rows: a second thread that needs the same rows waits, then reads them."""


def rows_of(backbone: Backbone, specs: Mapping[str, TapSpec], images: Any, *, stored: bool) -> Rows:
    """Return the rows of each tap in the order of the images, and compute only rows that are not cached.

    stored: for files, use the feature cache too.
    Raises DataError for an unusable image.
    """
    taps = {tap: digest({"backbone": backbone.identity, **spec.model_dump(mode="json")}) for tap, spec in specs.items()}
    with COMPUTING:
        if stored and backbone.folder is not None and _are_paths(images):
            return _of_files(backbone, specs, taps, [Path(image).absolute() for image in images])
        return _of_images(backbone, specs, taps, images)


def _are_paths(images: Any) -> bool:
    return isinstance(images, list | tuple) and all(isinstance(image, str | os.PathLike) for image in images)


def _of_images(backbone: Backbone, specs: Mapping[str, TapSpec], taps: Mapping[str, str], images: Any) -> Rows:
    """Return rows of images in memory; the cache key is the network's input, which is cheap to compute."""
    extractor = backbone.extractor(specs)
    parts: dict[str, list[np.ndarray]] = {tap: [] for tap in specs}
    for pixels in pixel_batches(images, extractor.reader, batch_size=extractor.batch_size):
        keys = [content_key(f"{image.dtype}{image.shape}".encode() + image.tobytes()) for image in pixels]
        cached = {tap: [MEMORY.get(name, key) for key in keys] for tap, name in taps.items()}
        missing = [row for row in range(len(keys)) if any(rows[row] is None for rows in cached.values())]
        computed = extractor.run(pixels[missing]) if missing else {}
        for tap, fresh in computed.items():
            for row, values in zip(missing, fresh, strict=True):
                cached[tap][row] = values
                MEMORY.put(taps[tap], keys[row], values)
        for tap, rows in cached.items():
            parts[tap] += [values for values in rows if values is not None]
    return {tap: np.stack(rows) if rows else extractor.empty(tap) for tap, rows in parts.items()}


def _of_files(backbone: Backbone, specs: Mapping[str, TapSpec], taps: Mapping[str, str], paths: Sequence[Path]) -> Rows:
    """Return rows of files; the cache key is the content of the file, as in an extraction."""
    keys = list(parallel_map(_key_of_file, paths))
    cached = {tap: [MEMORY.get(name, key) for key in keys] for tap, name in taps.items()}
    files = {
        key: path
        for number, (key, path) in enumerate(zip(keys, paths, strict=True))
        if any(rows[number] is None for rows in cached.values())
    }
    files = dict(sorted(files.items()))
    for tap, stored in (_extract(backbone, specs, files) if files else {}).items():
        fresh = dict(zip(files, stored, strict=True))
        cached[tap] = [fresh[key] if row is None else row for key, row in zip(keys, cached[tap], strict=True)]
        for key, row in fresh.items():
            MEMORY.put(taps[tap], key, row)
    extractor = backbone.extractor(specs) if not keys else None
    return {
        tap: np.stack([row for row in rows if row is not None]) if extractor is None else extractor.empty(tap)
        for tap, rows in cached.items()
    }


def _key_of_file(path: Path) -> str:
    try:
        status = path.stat()
        return _key(str(path), status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


@functools.lru_cache(maxsize=2**17)
def _key(path: str, _changed: int, _size: int) -> str:
    return content_key(Path(path).read_bytes())


def _extract(backbone: Backbone, specs: Mapping[str, TapSpec], files: Mapping[str, Path]) -> Rows:
    """Return the rows of some files, sorted by key, from the feature cache.

    Missing rows are computed by torch, so that they equal the rows of images in memory bit for bit. Raises DataError
    with the paths of unusable files.
    """
    assert backbone.folder is not None, "checked by the caller"
    backbone.check_unchanged()
    root = default_root()
    named = {f"tap{number}": spec for number, spec in enumerate(specs.values())}
    made_from = {"backbone": backbone.identity, "taps": {n: spec.model_dump(mode="json") for n, spec in named.items()}}
    out = root / EMBEDDINGS / digest(made_from)[:32]
    _refuse_unusable(files, {key: reason for key, path in files.items() if (reason := _reason_to_refuse(path))})
    sizes = [path.stat().st_size for path in files.values()]
    columns = ([str(path.absolute()) for path in files.values()], [None] * len(files), [None] * len(files), sizes)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, WHERE, strict=True)]
    samples = Samples(key_arrays.from_hex(files), pa.record_batch(arrays, names=WHERE.names))
    with _waiting_for(root / "locks" / f"{out.name}.frozen.lock"), REPORTER.stage("embed") as reporter:
        extract(
            ExtractConfig(datasets=("files",), taps=named, max_rejected=1.0, engine="torch"),
            backbone=backbone.folder,
            manifests=out,
            out=out,
            cache_root=root,
            samples=samples,
            reporter=reporter,
        )
        stored = {tap: Features.open(out / name) for tap, name in zip(specs, named, strict=True)}
        _refuse_unusable(
            files, {reject.key: reject.reason for rows in stored.values() for reject in rows.index.rejected}
        )
        return {tap: rows.load(list(files)) for tap, rows in stored.items()}


def _reason_to_refuse(path: Path) -> str | None:
    """Return why an image is unusable by its header, such as too many pixels; None if it is usable."""
    try:
        check(path.read_bytes(), decode_pixels=False)
    except DataError as error:
        return str(error)
    return None


def _refuse_unusable(files: Mapping[str, Path], reasons: Mapping[str, str]) -> None:
    """Raise DataError with the paths of the first files without a row."""
    unusable = {str(path): reasons[key] for key, path in files.items() if key in reasons}
    lines = [f"{path}: {reason.removeprefix(f'{path}: ')}" for path, reason in sorted(unusable.items())]
    if len(lines) == 1:
        raise DataError(lines[0])
    if lines:
        raise DataError(bullets(f"{len(lines):,} of {len(files):,} files cannot be used. The first of them", lines[:5]))


@contextlib.contextmanager
def _waiting_for(path: Path) -> Iterator[None]:
    """Hold a lock between processes; without locks in the file system, do nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
