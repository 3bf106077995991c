"""Time extractions with no or few new images, relative to a first extraction, without start-up."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pictures

from pipeline.backbones.spec import TapSpec
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare

CONFIG = ExtractConfig(datasets=("tiny",), taps={"x": TapSpec(node="penultimate")}, engine="torch", batch_size=256)


class Job:
    """A folder of tiny images, their manifest, features and a cache."""

    def __init__(self, root: Path, backbone: Path, count: int) -> None:
        self.root, self.backbone, self.count = root, backbone, 0
        self.add(count)

    def add(self, count: int) -> None:
        """Draw more images, and prepare."""
        pictures.draw(self.root / "tiny", count, first=self.count)
        self.count += count
        prepare(PrepareConfig(root=self.root / "tiny", check="header"), ManifestPaths(self.root / "manifests", "tiny"))

    def seconds(self) -> float:
        """Return the seconds of an extraction."""
        start = time.perf_counter()
        extract(
            CONFIG,
            backbone=self.backbone,
            manifests=self.root / "manifests",
            out=self.root / "features",
            cache_root=self.root / "cache",
        )
        return time.perf_counter() - start


def rows(count: int, *, folder: Path | None) -> Iterator[tuple[str, str]]:
    """Return the seconds of a first run, of a run without new images, and of a run with 1 % more, less start-up."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        backbone = pictures.tiny(root / "net")
        one = Job(root / "one", backbone, 1)
        job = Job(root / "many", backbone, count)
        one.seconds()
        first = job.seconds()
        idle = min(one.seconds() for _ in range(3))
        again = min(job.seconds() for _ in range(3))
        yield "first extraction", f"{first:.2f} s"
        yield "again, nothing new", f"{again:.2f} s; beyond the same over one image {again - idle:.2f} s"
        yield "  as a share of the first", f"{(again - idle) / first:.1%}"
        new = max(1, count // 100)
        job.add(new)
        one.add(1)
        begin = one.seconds()
        more = job.seconds()
        yield f"{new:,} more", f"{more:.2f} s; beyond one more of one {more - begin:.2f} s"
        yield "  as a share of the first", f"{(more - begin) / first:.1%}"
