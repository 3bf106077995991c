"""Every pair of settings of an extraction, on the same photos: python benchmarks/sources.py

    --images 12          photos
    --side 96            of the networks' input, px
    --models squeezenet1_1   some of the networks only
    --folder /tmp        where it works

A cell is one way to extract: where the images lie, which taps, who decodes, who computes, the engine, the precision and
the stored type. allpairspy chooses cells so that every two values of two settings meet in one of them. A cell holds if
it ends without an error, the check of stored rows against the network's end included, and if its keys and the bytes of
its rows are those of the reference: float32 rows, encoded as the cell stores them, of one process with threads, on the
images in a folder, with the same taps, precision and network, and the engine that the cell ran on (`auto` chooses by
time). One photo lies there twice, and one is damaged. S3 and HTTP are servers on this machine.

Processes that decode and workers import this file: it imports nothing large before `main`.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Print a row for each cell; return how many cells failed."""
    import torch
    from pictures import data_sets, unpack
    from source_cells import (
        LEVELS,
        Bench,
        add_oddities,
        freeze_small,
        http_server,
        pairwise,
        s3_server,
        scheduler,
        uncovered,
        write_sources,
    )

    from pipeline.errors import PipelineError
    from pipeline.text import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--models", nargs="+", default=LEVELS["model"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as many as a worker has: kernels round differently on another number
    levels = {**LEVELS, "model": given.models}
    cells = pairwise(levels)
    rows, failures = [], []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
        photos = unpack(data_sets()[0], folder / "images", given.images)
        add_oddities(photos)
        networks = {model: freeze_small(model, folder, side=given.side) for model in given.models}
        served = folder / "served"
        served.mkdir()
        http = stack.enter_context(http_server(served))
        stack.enter_context(s3_server())
        sources = write_sources(photos, served, http=http, names=levels["source"])
        bench = Bench(folder, networks, sources, stack.enter_context(scheduler(processes=True)))
        for cell in cells:
            start = time.perf_counter()
            try:
                engine, outcome = bench.check(cell), "equal"
            except (PipelineError, ValueError) as error:
                engine, outcome = "", "FAILED"
                failures.append(f"{cell}\n    {error}")
                print(failures[-1], file=sys.stderr, flush=True)
            seconds = time.perf_counter() - start
            rows.append([*(getattr(cell, name) for name in LEVELS), engine, outcome, f"{seconds:.1f}"])
            print(f"{len(rows)}/{len(cells)} {outcome}, {seconds:.1f} s", file=sys.stderr, flush=True)
    say(table([*LEVELS, "ran on", "rows", "s"], rows))
    left = ", ".join(" with ".join(pair) for pair in sorted(uncovered(cells, levels)))
    say(f"{len(cells)} cells, {len(failures)} failed. No cell has {left}.")
    say("\n".join(failures))
    return len(failures)


if __name__ == "__main__":
    sys.exit(min(1, main()))
