"""Rows by the content of their images: in a bounded memory of the process, and, of files, in the feature cache.

Folds and candidates of a search ask for the same images again and again; each goes through the network once.
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
from pipeline.files import content_key, digest
from pipeline.inference.backbone import Backbone
from pipeline.inference.cached_embedding import EMBEDDINGS
from pipeline.inference.reporting import REPORTER
from pipeline.loading.images import pixel_batches
from pipeline.loading.samples import WHERE, Samples
from pipeline.readers.image import check
from pipeline.runtime import parallel_map
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.store.location import default_root

MAX_BYTES = 2**28
"""Rows that a process keeps, in bytes; the longest unused go first."""

Rows = dict[str, np.ndarray]
"""Rows (images, ...) of each tap."""


class RowMemory:
    """Rows of the process by tap and content, at most `max_bytes` of them; safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes, self._bytes = max_bytes, 0
        self._rows: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tap: str, key: str) -> np.ndarray | None:
        """Return a row; None where it is not kept."""
        with self._lock:
            row = self._rows.get((tap, key))
            if row is not None:
                self._rows.move_to_end((tap, key))
            return row

    def put(self, tap: str, key: str, row: np.ndarray) -> None:
        """Keep a copy of a row, and drop the longest unused ones that it leaves no room for."""
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
"""Held while this process computes rows: a second thread that wants the same waits, and finds them kept."""


def rows_of(backbone: Backbone, specs: Mapping[str, TapSpec], images: Any, *, stored: bool) -> Rows:
    """Return the rows of each tap in the order of the images, computing those alone that nothing has.

    stored: look for rows of files in the feature cache, and put those there that are computed.
    Raises DataError for an image that cannot be used.
    """
    taps = {tap: digest({"backbone": backbone.identity, **spec.model_dump(mode="json")}) for tap, spec in specs.items()}
    with COMPUTING:
        if stored and backbone.folder is not None and _are_paths(images):
            return _of_files(backbone, specs, taps, [Path(image).absolute() for image in images])
        return _of_images(backbone, specs, taps, images)


def _are_paths(images: Any) -> bool:
    return isinstance(images, list | tuple) and all(isinstance(image, str | os.PathLike) for image in images)


def _of_images(backbone: Backbone, specs: Mapping[str, TapSpec], taps: Mapping[str, str], images: Any) -> Rows:
    """Return rows by the pixels that the network would get: these cost little, and say all of an image."""
    extractor = backbone.extractor(specs)
    found: dict[str, list[np.ndarray]] = {tap: [] for tap in specs}
    for pixels in pixel_batches(images, extractor.reader, batch_size=extractor.batch_size):
        keys = [content_key(f"{one.dtype}{one.shape}".encode() + one.tobytes()) for one in pixels]
        kept = {tap: [MEMORY.get(name, key) for key in keys] for tap, name in taps.items()}
        missing = [row for row in range(len(keys)) if any(rows[row] is None for rows in kept.values())]
        computed = extractor.run(pixels[missing]) if missing else {}
        for tap, fresh in computed.items():
            for row, values in zip(missing, fresh, strict=True):
                kept[tap][row] = values
                MEMORY.put(taps[tap], keys[row], values)
        for tap, rows in kept.items():
            found[tap] += [values for values in rows if values is not None]
    return {tap: np.stack(rows) if rows else extractor.empty(tap) for tap, rows in found.items()}


def _of_files(backbone: Backbone, specs: Mapping[str, TapSpec], taps: Mapping[str, str], paths: Sequence[Path]) -> Rows:
    """Return rows by the bytes of the files, as an extraction of them keeps these."""
    keys = list(parallel_map(_key_of_file, paths))
    kept = {tap: [MEMORY.get(name, key) for key in keys] for tap, name in taps.items()}
    files = {
        key: path
        for number, (key, path) in enumerate(zip(keys, paths, strict=True))
        if any(rows[number] is None for rows in kept.values())
    }
    files = dict(sorted(files.items()))
    for tap, stored in (_extract(backbone, specs, files) if files else {}).items():
        fresh = dict(zip(files, stored, strict=True))
        kept[tap] = [fresh[key] if row is None else row for key, row in zip(keys, kept[tap], strict=True)]
        for key, row in fresh.items():
            MEMORY.put(taps[tap], key, row)
    extractor = backbone.extractor(specs) if not keys else None
    return {
        tap: np.stack([row for row in rows if row is not None]) if extractor is None else extractor.empty(tap)
        for tap, rows in kept.items()
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
    """Return the rows of some files, sorted by key, through the feature cache.

    What is missing there is computed by torch, whose rows are those of images in memory bit for bit. Raises DataError
    with the paths of files that cannot be used.
    """
    assert backbone.folder is not None, "the caller looked"
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
        _refuse_unusable(files, {one.key: one.reason for rows in stored.values() for one in rows.index.rejected})
        return {tap: rows.load(list(files)) for tap, rows in stored.items()}


def _reason_to_refuse(path: Path) -> str | None:
    """Return why the header of a file says that it cannot be used, such as too many pixels; else None."""
    try:
        check(path.read_bytes(), decode_pixels=False)
    except DataError as error:
        return str(error)
    return None


def _refuse_unusable(files: Mapping[str, Path], reasons: Mapping[str, str]) -> None:
    """Raise DataError with the path of each file that gave no row, of many the first."""
    unusable = {str(path): reasons[key] for key, path in files.items() if key in reasons}
    lines = [f"{path}: {reason.removeprefix(f'{path}: ')}" for path, reason in sorted(unusable.items())]
    if len(lines) == 1:
        raise DataError(lines[0])
    if lines:
        raise DataError(bullets(f"{len(lines):,} of {len(files):,} files cannot be used. The first of them", lines[:5]))


@contextlib.contextmanager
def _waiting_for(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; where the file system has none, nothing is held."""
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
