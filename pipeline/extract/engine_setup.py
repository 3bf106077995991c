"""The engine of an extraction: chosen, let through the gate, and made for the taps that a unit lacks."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from pipeline.engines import Engine, parity_card
from pipeline.engines.autotune import Job, choose, gate
from pipeline.engines.batch_size import batch_size
from pipeline.runtime import Reporter
from pipeline.store.cache import CacheEntry
from pipeline.text import Line

EngineOf = Callable[[tuple[str, ...]], Engine]
"""The engine for some of the taps."""


def engines(
    wanted: str,
    job: Job,
    pixels: Callable[[], np.ndarray],
    *,
    find_size: bool,
    samples: int,
    columns: Mapping[str, CacheEntry],
    missing_taps: Collection[str],
    reporter: Reporter,
) -> tuple[int, EngineOf]:
    """Choose the engine and let it through the gate; return the size of batches and what gives the engine of some taps.

    `pixels` gives the first of the `samples` that the network is to run on, or none where none can be read.
    `missing_taps`: the taps that need it. `find_size`: find the size of batches by trying, in place of that of the job.

    Eager torch computes the same bits whatever else is asked for, so it runs the taps that are missing only. A graph's
    kernels are chosen for all of its outputs: it has every tap of the settings each time, or a job that was killed
    between two taps would go on with other bits.
    """
    chosen = choose(wanted, job, pixels, samples=samples, reporter=reporter)
    if find_size and len(pixels()):
        job = replace(job, batch_size=batch_size(job, chosen.name, pixels(), reporter=reporter))
        chosen = replace(chosen, engine=job.engine(chosen.name), card=None)
    verdict, more = "", [chosen.measured]
    if not all(parity_card.has_card(columns[tap], chosen.engine) for tap in missing_taps) and len(pixels()):
        measured = chosen.card or gate(job, chosen.engine, pixels())
        for tap, column in columns.items():
            parity_card.write(column, measured, tap)
        verdict = f"; {measured.verdict}"
        more.append(str(measured))
    line = f"engine: {chosen.name}, {job.precision}, {chosen.why}{verdict}"
    reporter.message(Line(line, "\n".join(text for text in more if text)))
    made = {tuple(job.specs): chosen.engine}

    def engine_of(taps: tuple[str, ...]) -> Engine:
        if chosen.name != "torch":
            return chosen.engine
        if taps not in made:
            made[taps] = job.engine(chosen.name, {tap: job.specs[tap] for tap in taps})
        return made[taps]

    return job.batch_size, engine_of
