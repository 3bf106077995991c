"""Two workers through Dask against one process with the same two cores; `extract.py` runs it.

MobileNetV2, the fastest engine, float32, a tap of 23 KB a row, so that a unit has one batch of images and each worker
several units. Both are timed over as many units for each worker as there are images for, and over the first `FEW`, and
the second is taken off: what is left are images beyond start-up. So what is taken off is what a job does once, and the
first `FEW` units: the manifest is read, the network loaded and the engine prepared (in both workers), the job files
written, the scheduler joined, the features committed. The worker processes are started, and have run a job, before
anything is timed.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cases import Case, clock, emptied, fastest, prepared

from pipeline.backbones.spec import TapSpec
from pipeline.extract import dask_run
from pipeline.extract.config import ExtractConfig, RunConfig
from pipeline.extract.run import extract
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare

WORKERS = 2
FEW = WORKERS * dask_run.AHEAD  # units that are handed out at once: every worker makes some of them
TAPS = {"grid": TapSpec(node="features.18", pool="avg3x3")}


def rows(given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Return the images per second of both beyond the first units, and their ratio."""
    with tempfile.TemporaryDirectory(dir=given.folder) as name, _workers() as address:
        case = prepared(Path(name), given.data[0], "mobilenet_v2", "float32", given)
        turn = WORKERS * case.batch  # images that every worker makes a unit of: nobody waits at the end
        counts = {"few": FEW * case.batch, "all": len(case.paths) // turn * turn}
        if counts["all"] < 2 * counts["few"]:
            raise SystemExit(f"--images: expected at least {2 * counts['few']} for two workers, got {len(case.paths)}.")
        fastest(case)
        for which, count in counts.items():
            listed = case.folder / f"{which}.csv"
            listed.write_text("\n".join(["path", *case.paths[:count]]))
            prepare(PrepareConfig(root=listed, base=Path("/")), ManifestPaths(case.folder / which, given.data[0]))
        ways = {"one process": RunConfig(), f"{WORKERS} workers": RunConfig(scheduler=address)}
        for way in ways:  # the graph is exported and the card is there
            shutil.copytree(case.folder / "engine-cache", case.folder / way / "cache")
            _run(case, ways[way], case.folder / way, "all")
        for _ in range(given.rounds):
            for way, run in ways.items():
                for which in counts:
                    root = emptied(case.folder / way)
                    clock(case, f"{way} {which}", partial(_run, case, run, root, which))
        rates = {
            way: (counts["all"] - counts["few"]) / (case.best(f"{way} all") - case.best(f"{way} few")) for way in ways
        }
    for way, rate in rates.items():
        yield f"{way} ({case.engine}), beyond the first {FEW} units, images/s", rate
    one, several = rates.values()
    yield f"{WORKERS} workers against one process", several / one


@contextmanager
def _workers() -> Iterator[str]:
    """Yield the address of a scheduler with workers that share this machine's cores."""
    with dask_run.open_client(RunConfig(workers=WORKERS), gpus=0) as client:
        yield client.scheduler.address


def _run(case: Case, run: RunConfig, root: Path, manifests: str) -> None:
    data = Path(case.paths[0]).relative_to(case.folder).parts[0]
    config = ExtractConfig(datasets=(data,), taps=TAPS, batch_size=case.batch, engine=case.engine, shard_mb=1, run=run)
    out, cache_root = root / "features", root / "cache"
    extract(config, backbone=case.backbone, manifests=case.folder / manifests, out=out, cache_root=cache_root)
