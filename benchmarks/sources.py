"""Every pair of settings of an extraction, on the same photos: python benchmarks/sources.py

    --images 12          photos
    --models squeezenet1_1   some of the networks only
    --folder /tmp        where it works

A cell is one way to extract: where the images lie, which taps, who decodes, who computes, the engine, the precision and
the stored type. allpairspy chooses cells so that every two values of two settings meet in one of them. A cell holds if
it ends without an error, the check of stored rows against the network's end included, and if its keys and the bytes of
its rows are those of the reference: one process with threads, on the images in a folder, with the same taps, precision,
stored type and network, and the engine that the cell ran on (`auto` chooses by time). One photo lies there twice, and
one is damaged.
"""

import argparse
import contextlib
import functools
import io
import itertools
import logging
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from allpairspy import AllPairs

from pipeline import embed
from pipeline.engines import PRECISIONS, PRECISIONS_OF
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.store.features import Features
from pipeline.text import table

TAPS: Mapping[str, tuple[str, ...]] = {
    "default": ("penultimate",),
    "map": ("{map}",),
    "two": ("{map}:mean", "penultimate"),
    "views": ("penultimate",),
}
VIEWS = {"count": 1, "augment": [{"name": "horizontal_flip"}]}
LEVELS: Mapping[str, Sequence[str]] = {  # in an order in which allpairspy gives all pairs in spite of `possible`
    "taps": tuple(TAPS),
    "dtype": ("float16", "float32", "bfloat16", "int8"),
    "source": ("folder", "list", "tar", "webdataset", "parquet", "file", "http", "memory", "s3"),
    "decode": ("threads", "processes"),
    "engine": ("torch", "onnxruntime", "openvino", "auto"),
    "model": ("mobilenet_v2", "squeezenet1_1"),
    "who": ("local", "workers", "scheduler"),
    "precision": ("float32", "bfloat16"),
}
SHARDS = 2  # archives of a source, and files of Parquet
BUCKET = "photos"


@dataclass(frozen=True)
class Cell:
    """One way to extract; the names of values are those of `LEVELS`."""

    taps: str
    dtype: str
    source: str
    decode: str
    engine: str
    model: str
    who: str
    precision: str


@dataclass(frozen=True)
class Source:
    """What `--data` and `--image` are for images that lie somewhere."""

    data: str
    image: str | None = None


@dataclass
class Bench:
    """Frozen networks with the node of their map, the images in all sources, and references that were computed.

    `scheduler`: the address of a Dask scheduler with a worker. `batch_size`: samples a batch.
    """

    root: Path
    networks: Mapping[str, tuple[Path, str]]
    sources: Mapping[str, Source]
    scheduler: str
    batch_size: int = 4
    references: dict[Cell, dict[str, tuple[tuple[str, ...], bytes]]] = field(default_factory=dict)

    def check(self, cell: Cell) -> str:
        """Extract as a cell says and return the engine; raises ValueError where rows differ from the reference's."""
        rows, engine = self.extract(cell)
        like = replace(cell, source="folder", decode="threads", who="local", engine=engine)
        if like not in self.references:
            self.references[like] = self.extract(like)[0]
        wanted = self.references[like]
        if rows.keys() != wanted.keys():
            raise ValueError(f"{cell}: expected the folders {sorted(wanted)}, got {sorted(rows)}.")
        for tap, (keys, values) in rows.items():
            if keys != wanted[tap][0]:
                raise ValueError(f"{cell}, {tap}: expected {len(wanted[tap][0])} keys of the folder, got {len(keys)}.")
            if values != wanted[tap][1]:
                raise ValueError(f"{cell}, {tap}: expected the bytes of the folder's rows, got others.")
        return engine

    def extract(self, cell: Cell) -> tuple[dict[str, tuple[tuple[str, ...], bytes]], str]:
        """Extract into an empty cache; return the keys and the bytes of each folder of features, and the engine."""
        backbone, node = self.networks[cell.model]
        source = self.sources[cell.source]
        run: dict[str, Any] = {"decode": cell.decode}
        if cell.who == "workers":
            run["workers"] = 2
        elif cell.who == "scheduler":
            run["scheduler"] = self.scheduler
        job = embed.job(
            str(backbone),
            [tap.format(map=node) for tap in TAPS[cell.taps]],
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
        try:
            embed.embed(job, folder / "out", cache_root=folder / "cache")
            found, engines = {}, set()
            for tap in sorted(path.parent for path in (folder / "out").glob("*/card.json")):
                features = Features.open(tap)
                found[tap.name] = (tuple(features.keys), np.ascontiguousarray(features.load()).tobytes())
                engines |= {card["engine"]["engine"] for card in read_json(tap / "card.json")["cards"]}
            [engine] = engines
            return found, engine
        finally:
            shutil.rmtree(folder)


def possible(values: Sequence[str]) -> bool:
    """Return whether the first settings of a cell, in the order of `LEVELS`, can go together."""
    cell = dict(zip(LEVELS, values, strict=False))
    if cell.get("precision", "float32") not in PRECISIONS_OF.get(cell.get("engine", "auto"), PRECISIONS):
        return False
    # The file system in memory is that of this process.
    return cell.get("source") != "memory" or (cell.get("decode") != "processes" and cell.get("who", "local") == "local")


def pairwise(levels: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Return cells in which every two values of two settings meet, where these can go together."""
    return [Cell(*values) for values in AllPairs([list(levels[name]) for name in LEVELS], filter_func=possible)]


def uncovered(cells: Sequence[Cell], levels: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """Return the pairs of values of two settings that no cell has."""
    return {
        pair
        for one, other in itertools.combinations(LEVELS, 2)
        for pair in itertools.product(levels[one], levels[other])
        if not any((getattr(cell, one), getattr(cell, other)) == pair for cell in cells)
    }


# Where images lie -----------------------------------------------------------------------------------------------------


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
                _member(archive, f"{number}{place:05d}{file.suffix.lower()}", file.read_bytes())
                _member(archive, f"{number}{place:05d}.cls", file.parent.name.encode())
        rows = {"image": [file.read_bytes() for file in part], "label": [file.parent.name for file in part]}
        pq.write_table(pa.table(rows), root / "parquet" / f"{number}.parquet", row_group_size=5)
    (root / "list.csv").write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in mixed))
    with tarfile.open(root / "all.tar", "w") as archive:
        for file in mixed:
            archive.add(file, f"{file.parent.name}/{file.name}")
    made = {
        "folder": Source(str(photos)),
        "list": Source(str(root / "list.csv")),
        "tar": Source(str(root / "tar")),
        "webdataset": Source(str(root / "webdataset")),
        "parquet": Source(str(root / "parquet"), "image"),
        "file": Source(f"file://{photos}"),
        "http": Source(f"{http}/all.tar"),
    }
    for name, base in (("memory", f"memory://{root.name}"), ("s3", f"s3://{BUCKET}/tar")):
        if name in names:
            import fsspec

            system, path = fsspec.core.url_to_fs(base)
            for file in sorted((root / "tar").iterdir()):
                system.pipe_file(f"{path}/{file.name}", file.read_bytes())
            made[name] = Source(base)
    return {name: made[name] for name in names}


def _member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def add_oddities(photos: Path) -> None:
    """Put a copy of one image and one that is damaged behind its header into the first class of a folder."""
    first = min(path for path in photos.rglob("*") if path.is_file())
    data = first.read_bytes()
    first.with_name(f"copy{first.suffix}").write_bytes(data)
    first.with_name(f"damaged{first.suffix}").write_bytes(data[: len(data) // 2])


class _Ranges(SimpleHTTPRequestHandler):
    """Answers with the part of a file that is asked for, as servers of archives do, and writes no log."""

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


# The benchmark --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bench(folder: Path, models: Sequence[str], images: int) -> Iterator[Bench]:
    """Yield real networks where they are there, photos in all sources, and a scheduler with one worker."""
    import dask
    from distributed import LocalCluster
    from pictures import backbone_of, data_sets, unpack

    photos = unpack(data_sets()[0], folder / "images", images)
    add_oddities(photos)
    nodes = {"mobilenet_v2": "features.18", "squeezenet1_1": "features.12"}
    networks = {model: (backbone_of(model, folder)[0], nodes[model]) for model in models}
    served = folder / "served"
    served.mkdir()
    with http_server(served) as http, s3_server():
        sources = write_sources(photos, served, http=http, names=LEVELS["source"])
        # A daemon could not start the processes that decode.
        with (
            dask.config.set({"distributed.worker.daemon": False}),
            LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
        ):
            yield Bench(folder, networks, sources, cluster.scheduler_address)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Print a row for each cell; return how many cells failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=LEVELS["model"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as many as a worker has: kernels round differently on another number
    levels = {**LEVELS, "model": given.models}
    cells = pairwise(levels)
    rows, failures = [], []
    with tempfile.TemporaryDirectory(dir=given.folder) as name, bench(Path(name), given.models, given.images) as ready:
        for cell in cells:
            start = time.perf_counter()
            try:
                engine, said = ready.check(cell), "equal"
            except (PipelineError, ValueError) as error:
                engine, said = "", "FAILED"
                failures.append(f"{cell}\n    {error}")
                print(failures[-1], file=sys.stderr, flush=True)
            rows.append([*(getattr(cell, name) for name in LEVELS), engine, said, f"{time.perf_counter() - start:.1f}"])
            print(f"{len(rows)}/{len(cells)} {said}", file=sys.stderr, flush=True)
    say(table([*LEVELS, "ran on", "rows", "s"], rows))
    left = ", ".join(" with ".join(pair) for pair in sorted(uncovered(cells, levels)))
    say(f"{len(cells)} cells, {len(failures)} failed. No cell has {left}.")
    say("\n".join(failures))
    return len(failures)


if __name__ == "__main__":
    sys.exit(min(1, main()))
