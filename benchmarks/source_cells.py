"""Cells of the matrix of sources: the same photos in folders, lists, archives, Parquet and behind URLs.

`pairwise` returns cells, `uncovered` the pairs of values that no cell has. `write_sources` writes the photos in every
form, and `Bench.check` extracts one cell and compares its keys and bytes with those of the reference. `sources.py` runs
all cells, `tests/test_matrix.py` a covering sample.
"""

import contextlib
import functools
import io
import itertools
import logging
import os
import re
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from allpairspy import AllPairs
from pictures import weights_of

from pipeline import embed
from pipeline.engines import PRECISIONS, PRECISIONS_OF
from pipeline.files import read_json, sha256_file
from pipeline.freeze.config import Torchvision
from pipeline.freeze.run import freeze
from pipeline.store.dtypes import Stored, decode, encode, int8_scale, largest_magnitudes, quantise
from pipeline.store.features import Features

TAPS: Mapping[str, tuple[str, ...]] = {
    "default": ("penultimate",),
    "map": ("{map}",),
    "two": ("{map}:mean", "penultimate"),
    "views": ("penultimate",),
}
VIEWS = {"count": 1, "augment": [{"name": "horizontal_flip"}]}
MAPS = {"mobilenet_v2": "features.18", "squeezenet1_1": "features.12"}
"""Each network with the node of its last map."""

LEVELS: Mapping[str, Sequence[str]] = {  # in an order in which allpairspy gives all pairs in spite of `possible`
    "dtype": ("float16", "float32", "bfloat16", "int8"),
    "source": (
        *("folder", "list", "tar", "webdataset", "parquet"),
        *("file", "http_list", "http_tar", "s3_folder", "s3_tar", "memory"),
    ),
    "decode": ("threads", "processes"),
    "engine": ("torch", "onnxruntime", "openvino", "auto"),
    "precision": ("float32", "bfloat16"),
    "taps": tuple(TAPS),
    "who": ("local", "workers", "scheduler"),
    "model": tuple(MAPS),
}
SHARDS = 2  # archives of a source, and files of Parquet
BUCKET = "photos"

Levels = Mapping[str, Sequence[str]]
Rows = Mapping[str, tuple[tuple[str, ...], np.ndarray]]
"""Each folder of features with its keys and its rows."""


@dataclass(frozen=True)
class Cell:
    """One way to extract; the names of values are those of `LEVELS`."""

    dtype: Stored
    source: str
    decode: str
    engine: str
    precision: str
    taps: str
    who: str
    model: str


@dataclass(frozen=True)
class Source:
    """The values of `--data` and `--image` for a source of images."""

    data: str
    image: str | None = None


@dataclass
class Bench:
    """Frozen networks by model, the images in all sources, and references that were computed, of float32 rows.

    `scheduler`: the address of a Dask scheduler with a worker. `batch_size`: samples per batch.
    """

    root: Path
    networks: Mapping[str, Path]
    sources: Mapping[str, Source]
    scheduler: str
    batch_size: int = 4
    references: dict[Cell, Rows] = field(default_factory=dict)

    def check(self, cell: Cell) -> str:
        """Extract as a cell says and return the engine; raises ValueError where rows differ from the reference's."""
        rows, engine = self.extract(cell)
        like = replace(cell, dtype="float32", source="folder", decode="threads", who="local", engine=engine)
        if like not in self.references:
            self.references[like] = rows if like == cell else self.extract(like)[0]
        expected = self.references[like]
        if rows.keys() != expected.keys():
            raise ValueError(f"{cell}: expected the folders {sorted(expected)}, got {sorted(rows)}.")
        for tap, (keys, values) in rows.items():
            expected_keys, computed = expected[tap]
            if keys != expected_keys:
                raise ValueError(f"{cell}, {tap}: expected {len(expected_keys)} keys of the folder, got {len(keys)}.")
            if values.tobytes() != through(computed, cell.dtype).tobytes():
                raise ValueError(f"{cell}, {tap}: expected the bytes of the folder's rows, got others.")
        return engine

    def extract(self, cell: Cell) -> tuple[Rows, str]:
        """Extract into a cache with exported graphs only; return keys, rows and the engine."""
        source = self.sources[cell.source]
        run: dict[str, Any] = {"decode": cell.decode}
        if cell.who == "workers":
            run["workers"] = 2
        elif cell.who == "scheduler":
            run["scheduler"] = self.scheduler
        job = embed.job(
            str(self.networks[cell.model]),
            [tap.format(map=MAPS[cell.model]) for tap in TAPS[cell.taps]],
            source.data,
            image=source.image,
            dtype=cell.dtype,
            max_rejected=0.5,
            engine=cell.engine,
            precision=cell.precision,
            batch_size=self.batch_size,
            shard_mb=1,
            run=run,
            **({"views": VIEWS} if cell.taps == "views" else {}),
        )
        folder = Path(tempfile.mkdtemp(dir=self.root))
        (folder / "cache").mkdir()
        for graphs in ("onnx", "openvino"):  # exporting a graph takes longer than all else
            (self.root / "graphs" / graphs).mkdir(parents=True, exist_ok=True)
            (folder / "cache" / graphs).symlink_to(self.root / "graphs" / graphs)
        try:
            embed.embed(job, folder / "out", cache_root=folder / "cache")
            rows, engines = {}, set()
            for tap in sorted(path.parent for path in (folder / "out").glob("*/card.json")):
                features = Features.open(tap)
                rows[tap.name] = (tuple(features.keys), features.load())
                engines |= {card["engine"]["engine"] for card in read_json(tap / "card.json")["cards"]}
            [engine] = engines
            return rows, engine
        finally:
            shutil.rmtree(folder)


def through(values: np.ndarray, stored: Stored) -> np.ndarray:
    """Return float32 rows (n, channels, ...) after storage in a shard."""
    if stored != "int8":
        return decode(encode(values, stored).values, stored)
    scale = int8_scale(largest_magnitudes(values))
    return decode(quantise(values.copy(), scale), stored, scale)


def possible(cell: Mapping[str, str]) -> bool:
    """Return whether values can go together; `cell` has those of the first settings of `LEVELS`."""
    if cell.get("precision", "float32") not in PRECISIONS_OF.get(cell.get("engine", "auto"), PRECISIONS):
        return False
    # The file system in memory is that of this process.
    return cell.get("source") != "memory" or (cell.get("decode") != "processes" and cell.get("who", "local") == "local")


def pairwise(levels: Levels, wanted: Callable[[Mapping[str, str]], bool] = possible) -> list[Cell]:
    """Return cells in which every two values of two settings meet, where `wanted` says that these can go together."""

    def allowed(values: Sequence[str]) -> bool:
        return wanted(dict(zip(levels, values, strict=False)))

    rows = AllPairs([list(values) for values in levels.values()], filter_func=allowed)
    return [Cell(**dict(zip(levels, values, strict=True))) for values in rows]


def uncovered(cells: Sequence[Cell], levels: Levels) -> set[tuple[str, str]]:
    """Return the pairs of values of two settings that no cell has."""
    return {
        pair
        for one, other in itertools.combinations(levels, 2)
        for pair in itertools.product(levels[one], levels[other])
        if not any((getattr(cell, one), getattr(cell, other)) == pair for cell in cells)
    }


# Networks and where images lie ----------------------------------------------------------------------------------------


def freeze_small(model: str, folder: Path, *, side: int) -> Path:
    """Freeze a torchvision model, with real weights where ICECORE_ASSETS has them, for images of `side` px."""
    file, frozen = weights_of(model, folder), folder / "backbones" / model
    settings = {"source": "torchvision", "model": model, "weights": "IMAGENET1K_V1", "file": file}
    sizes = {"input": {"resize": side, "crop": side}}
    freeze(Torchvision(**settings, **sizes, sha256=sha256_file(file)), frozen, pretrained=folder)
    return frozen


def write_sources(photos: Path, root: Path, *, http: str, names: Sequence[str]) -> dict[str, Source]:
    """Write the images of a folder of classes as every source of `names`; return what each is to `embed.job`.

    The images of an archive are not in the order of their keys. `http`: the address of a server of `root`.
    """
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    mixed = [files[place] for place in np.random.default_rng(0).permutation(len(files))]
    parts = [mixed[number::SHARDS] for number in range(SHARDS)]
    for folder in ("tar", "webdataset", "parquet"):
        (root / folder).mkdir(parents=True)
    for number, part in enumerate(parts):
        with tarfile.open(root / "tar" / f"{number}.tar", "w") as archive:
            for file in part:
                archive.add(file, f"{file.parent.name}/{file.name}")
        with tarfile.open(root / "webdataset" / f"{number}.tar", "w") as archive:
            for place, file in enumerate(part):
                _add(archive, f"{number}{place:05d}{file.suffix.lower()}", file.read_bytes())
                _add(archive, f"{number}{place:05d}.cls", file.parent.name.encode())
        rows = {"image": [file.read_bytes() for file in part], "label": [file.parent.name for file in part]}
        pq.write_table(pa.table(rows), root / "parquet" / f"{number}.parquet", row_group_size=5)
    with tarfile.open(root / "all.tar", "w") as archive:
        for file in mixed:
            archive.add(file, f"{file.parent.name}/{file.name}")
    shutil.copytree(photos, root / "photos")
    lines = [f"photos/{file.parent.name}/{file.name},{file.parent.name}\n" for file in mixed]
    (root / "list.csv").write_text("path,label\n" + "".join(lines))
    written = {
        "folder": Source(str(photos)),
        "list": Source(str(root / "list.csv")),
        "tar": Source(str(root / "tar")),
        "webdataset": Source(str(root / "webdataset")),
        "parquet": Source(str(root / "parquet"), "image"),
        "file": Source(f"file://{photos}"),
        "http_list": Source(f"{http}/list.csv"),
        "http_tar": Source(f"{http}/all.tar"),
        "s3_folder": _upload(root / "photos", f"s3://{BUCKET}/photos", "s3_folder" in names),
        "s3_tar": _upload(root / "tar", f"s3://{BUCKET}/tar", "s3_tar" in names),
        "memory": _upload(root / "tar", f"memory://{root.name}", "memory" in names),
    }
    return {name: written[name] for name in names}


def _upload(folder: Path, url: str, wanted: bool) -> Source:
    """Copy a folder to a URL where that is wanted; return the URL as a source."""
    if wanted:
        import fsspec

        system, base = fsspec.core.url_to_fs(url)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            system.pipe_file(f"{base}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return Source(url)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def add_oddities(photos: Path) -> None:
    """Add a copy of an image, and an image that is damaged behind its header, to the first class of a folder."""
    first = min(path for path in photos.rglob("*") if path.is_file())
    data = first.read_bytes()
    first.with_name(f"copy{first.suffix}").write_bytes(data)
    first.with_name(f"damaged{first.suffix}").write_bytes(data[: len(data) // 2])


# Servers on this machine ----------------------------------------------------------------------------------------------


class _Ranges(SimpleHTTPRequestHandler):
    """A server that supports range requests, and writes no log."""

    def do_GET(self) -> None:
        """Send a file, or bytes first-last of it."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, size = path.read_bytes(), path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@contextlib.contextmanager
def http_server(root: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
    """Serve an empty bucket on this machine; processes that start meanwhile reach it by their environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it writes a line for each request
    server.start()
    host, port = server.get_host_and_port()
    access = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in access}
    os.environ.update(access)
    try:
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        server.stop()


@contextlib.contextmanager
def scheduler(*, processes: bool) -> Iterator[str]:
    """Start a Dask scheduler with one worker, a process of its own or a thread of this one; yield the address."""
    import dask
    from distributed import LocalCluster

    # A daemon could not start the processes that decode.
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=processes,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
    ):
        yield cluster.scheduler_address
