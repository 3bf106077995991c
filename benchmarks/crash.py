"""Kill processes at random moments, and check that no shard is lost: `python benchmarks/crash.py --kills 300`.

A round of the store: three processes add the same twelve shards to one column, each beginning at another; one, two or
all of them are killed, then another process finishes. A round of extraction: a whole extraction is killed, then run
again. The moments are spread evenly over what an undisturbed process takes. After every round what was reported as
committed must be there, whole, and the store must equal, byte for byte, one that nobody disturbed.

`--images 20000` is another test, of one large extraction in each way that there is: see crash_modes.py.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.files import sha256_file
from pipeline.readers.sample_key import content_key
from pipeline.store import cache, index, key_arrays, maintenance

IDENTITY = {"node": "block1", "dtype": "float32"}
PARTS, ROWS, WIDTH = 12, 125, 2_000  # shards of 1 MB
FIRSTS = (0, 4, 8)  # where each of three writers begins
TAPS = {"deep": {"node": "block2", "pool": "mean"}, "wide": {"node": "block1.0", "dtype": "float32"}}
PICTURES = 30  # four units: of `wide`, eight rows make a shard of 1 MB

Process = subprocess.Popen[str]


@dataclass
class Counts:
    """The counts over all rounds."""

    kills: int = 0
    alive: int = 0
    rounds: int = 0
    found: int = 0
    swept: int = 0
    equal: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.rounds} rounds, {self.alive} of a process that was still alive; "
            f"{self.found} leftovers found, {self.swept} swept; {self.equal} of {self.rounds} stores equal"
        )


# What is killed -------------------------------------------------------------------------------------------------------


@contextmanager
def work() -> Iterator[None]:
    """Import everything, wait for the parent's signal, work, and print the seconds."""
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    yield
    print("took", time.perf_counter() - begin, flush=True)


def write(root: Path, first: int) -> None:
    """Add the missing shards of a cache entry, starting at one of them; print the committed shards."""
    column = cache.column(root, IDENTITY)
    print("swept", maintenance.remove_stale_files(column), flush=True)
    for turn in range(PARTS):
        part = (first + turn) % PARTS
        own = sorted(content_key(f"{part}/{number}".encode()) for number in range(ROWS))
        have = {key for record in column.records() for key in key_arrays.to_hex(column.keys(record))}
        if not have.issuperset(own):
            rows = np.array([[int(key[:6], 16)] for key in own], dtype=np.float32) + np.arange(WIDTH, dtype=np.float32)
            keys = key_arrays.from_hex(own)
            with column.writer((WIDTH,)) as writer:
                for batch in np.array_split(np.arange(ROWS), 5):
                    writer.append(keys[batch], rows[batch])
                record = writer.finish(provenance={})
            assert record is not None
            print("committed", record.name, flush=True)


def extract(root: Path, made: Path) -> None:
    """Extract the images that `draw` wrote to `root`, with the cache and the features in `made`."""
    from pipeline.extract import run
    from pipeline.extract.config import ExtractConfig

    config = ExtractConfig.model_validate({"datasets": ["drawn"], "taps": TAPS, "batch_size": 4, "shard_mb": 1})
    net, manifests = root / "net", root / "manifests"
    run.extract(config, backbone=net, manifests=manifests, out=made / "features", cache_root=made / "cache")


def draw(root: Path, pictures: int = PICTURES) -> None:
    """Draw pictures, list them, and write a small GlyphNet of random weights."""
    import torch

    from pipeline.backbones import glyphs, serialization
    from pipeline.manifest import ManifestPaths
    from pipeline.prepare.config import PrepareConfig
    from pipeline.prepare.run import prepare

    random = np.random.default_rng(0)
    folder = root / "drawn" / "noise"
    folder.mkdir(parents=True)
    for number in range(pictures):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:05d}.png")
    prepare(PrepareConfig.model_validate({"root": folder.parent}), ManifestPaths(root / "manifests", "drawn"))
    torch.manual_seed(0)
    network = glyphs.GlyphNet(classes=3, widths=(32, 8))
    architecture = {"family": "glyphs", "classes": 3, "widths": [32, 8]}
    serialization.write(root / "net", network, architecture=architecture, origin={}, inputs=glyphs.INPUT)


# What kills -----------------------------------------------------------------------------------------------------------


def start(*arguments: object) -> Process:
    """Start this script as a process to kill; it waits for the signal to start."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def writers(root: Path, *, first: int = 0) -> list[Process]:
    """Start three writers of the same shards; `first` sets which is first in the list."""
    return [start("--write", root, FIRSTS[(first + number) % len(FIRSTS)]) for number in range(len(FIRSTS))]


def race(processes: Sequence[Process], moments: Sequence[float] = ()) -> dict[str, list[str]]:
    """Start all at once, and kill the first of them, one per moment; return the printed lines by their first word."""
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        print("go", file=process.stdin, flush=True)
    begin = time.perf_counter()
    for process, moment in zip(processes, sorted(moments), strict=False):
        time.sleep(max(0.0, begin + moment - time.perf_counter()))
        process.kill()
    said: dict[str, list[str]] = {"took": [], "swept": [], "committed": []}
    for process in processes:
        for line in process.communicate()[0].splitlines():
            kind, value = line.split()
            said[kind].append(value)
    for number, process in enumerate(processes):
        if process.returncode not in (0, -signal.SIGKILL if number < len(moments) else 0):
            raise SystemExit(f"a process that was not killed ended with {process.returncode}")
    return said


def undisturbed(make: Callable[[str], Sequence[Process]]) -> float:
    """Return the seconds of processes without a kill, the median of three runs; `make` gets a name."""
    return float(np.median([max(map(float, race(make(name))["took"])) for name in "abc"]))


def contents(folder: Path) -> dict[str, str]:
    """Return the digests of all files below a folder, by relative path.

    Without `used`, which is empty and only its time counts, and `locks/`, which name whoever held them last.
    """
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "used")
    paths = (path for path in paths if path.parent.name != "locks")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def leftovers(folder: Path) -> int:
    """Return the number of temporary files."""
    return sum(1 for _ in folder.rglob(".*.tmp"))


def kill_writers(root: Path, moments: Sequence[float], whole: dict[str, str], counts: Counts) -> Iterator[str]:
    """Run a round of the store; yield each problem."""
    killed = writers(root, first=counts.rounds)
    said = race(killed, moments)
    column = cache.column(root, IDENTITY)
    lost = set(said["committed"]) - {record.name for record in column.records()}
    yield from (f"{name}: committed, and lost" for name in sorted(lost))
    yield from (problem for _, problem in maintenance.find_damage(column, whole=True))
    left, early = leftovers(root), sum(map(int, said["swept"]))
    late = race([start("--write", root, 0)])["swept"]
    tally(counts, killed, moments, found=early + left, swept=early + sum(map(int, late)))
    yield from compare(root, whole, counts)


def kill_extraction(root: Path, made: Path, moment: float, whole: dict[str, str], counts: Counts) -> Iterator[str]:
    """Run a round of extraction; yield each problem."""
    killed = [start("--extract", root, made)]
    race(killed, [moment])
    for column in cache.columns(made / "cache"):
        yield from (problem for _, problem in maintenance.find_damage(column, whole=True))
    for path in made.glob(f"features/*/{index.NAME}"):
        there = {f"features/{path.parent.name}/{name}": value for name, value in contents(path.parent).items()}
        if not there.items() <= whole.items():
            yield f"{path.parent}: committed, but not what it must be"
    left = leftovers(made)
    extract(root, made)
    tally(counts, killed, [moment], found=left, swept=left - leftovers(made))
    yield from compare(made, whole, counts)


def compare(root: Path, whole: dict[str, str], counts: Counts) -> Iterator[str]:
    """Count a store that equals the reference; yield the files that differ."""
    found = contents(root)
    counts.equal += found == whole
    for name in sorted(found.keys() | whole.keys()):
        if found.get(name) != whole.get(name):
            yield f"{root.name}/{name}: expected {whole.get(name, 'no file')}, got {found.get(name, 'no file')}"


def tally(counts: Counts, killed: Sequence[Process], moments: Sequence[float], *, found: int, swept: int) -> None:
    """Add a round to the counts."""
    counts.rounds += 1
    counts.kills += len(moments)
    counts.alive += sum(process.returncode == -signal.SIGKILL for process in killed)
    counts.found += found
    counts.swept += swept


def spread(kills: int, seconds: float, random: np.random.Generator) -> list[float]:
    """Return moments from 0 to `seconds`, one in each of equal parts, in random order."""
    moments: list[float] = ((random.permutation(kills) + random.random(kills)) * (seconds / max(kills, 1))).tolist()
    return moments


def rounds(root: Path, kills: int, extractions: int, seed: int, counts: Counts) -> Iterator[list[str]]:
    """Run all rounds, one after another; yield the problems of each."""
    random = np.random.default_rng(seed)

    moments = spread(kills - extractions, undisturbed(lambda name: writers(root / name)), random)
    whole = contents(root / "a")
    while moments:
        now = [moments.pop() for _ in range(min(len(moments), int(random.integers(1, len(FIRSTS) + 1))))]
        made = root / f"store-{counts.rounds}"
        yield list(kill_writers(made, now, whole, counts))
        shutil.rmtree(made)

    if extractions:
        draw(root)
        seconds = undisturbed(lambda name: [start("--extract", root, root / "extracted" / name)])
        whole = contents(root / "extracted" / "a")
        for moment in spread(extractions, seconds, random):
            made = root / f"extraction-{counts.rounds}"
            yield list(kill_extraction(root, made, moment, whole, counts))
            shutil.rmtree(made)


def main() -> None:
    """Kill, check and count; exit with 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="how many in all (300)")
    parser.add_argument("--extractions", type=int, default=None, help="how many of them of extractions (a tenth)")
    parser.add_argument("--images", type=int, default=None, help="extract so many, in each way, with a kill in each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (the system's temporary folder)")
    parser.add_argument("--write", nargs=2, metavar=("ROOT", "FIRST"), help="be a writer; for this script itself")
    parser.add_argument("--extract", nargs=2, metavar=("ROOT", "WORK"), help="be an extraction; likewise")
    given = parser.parse_args()
    if given.write:
        with work():
            write(Path(given.write[0]), int(given.write[1]))
    elif given.extract:
        import pipeline.extract.run  # noqa: F401 - before the word

        with work():
            extract(*map(Path, given.extract))
    elif given.images:
        import crash_modes

        wrong = 0
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            for said, problems in crash_modes.rounds(Path(name), given.images, given.seed):
                print(said, *problems, sep="\n  ", flush=True)
                wrong += len(problems)
        raise SystemExit(1 if wrong else 0)
    else:
        extractions = given.kills // 10 if given.extractions is None else min(given.extractions, given.kills)
        counts, wrong = Counts(), 0
        with tempfile.TemporaryDirectory(dir=given.folder) as name, tqdm(total=given.kills, unit=" kills") as bar:
            for problems in rounds(Path(name), given.kills, extractions, given.seed, counts):
                for problem in problems:
                    bar.write(problem)
                wrong += len(problems)
                bar.update(counts.kills - bar.n)
        print(counts)
        raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
