"""The engine of an extraction: chosen, let through the gate, and made for the taps that a unit lacks."""

from collections.abc import Callable, Collection, Mapping

import numpy as np

from pipeline.engines import Engine
from pipeline.engines.select import Job, Say, choose, gate
from pipeline.extract import card
from pipeline.store.cache import Column

EngineOf = Callable[[tuple[str, ...]], Engine]
"""The engine for some of the taps."""


def engines(
    wanted: str,
    job: Job,
    pixels: np.ndarray,
    *,
    samples: int,
    columns: Mapping[str, Column],
    lacking: Collection[str],
    say: Say,
) -> EngineOf:
    """Choose the engine, let it through the gate, and return what gives the engine for some of the taps.

    `pixels`: the first of the `samples` that the network is to run on; `lacking`: the taps that need it.

    Eager torch computes the same bits whatever else is asked for, so it runs the taps that are missing only. A graph's
    kernels are chosen for all of its outputs: it has every tap of the settings each time, or a job that was killed
    between two taps would go on with other bits.
    """
    if not len(pixels):  # there is nothing to run
        return lambda taps: job.engine("torch", {tap: job.specs[tap] for tap in taps})
    chosen = choose(wanted, job, pixels, samples=samples, say=say)
    if not all(card.there(columns[tap], chosen.engine) for tap in lacking):
        measured = chosen.card or gate(job, chosen.name, chosen.engine, pixels)
        say(str(measured))
        for tap, column in columns.items():
            card.write(column, measured, tap)
    made = {tuple(job.specs): chosen.engine}

    def engine_of(taps: tuple[str, ...]) -> Engine:
        if chosen.name != "torch":
            return chosen.engine
        if taps not in made:
            made[taps] = job.engine(chosen.name, {tap: job.specs[tap] for tap in taps})
        return made[taps]

    return engine_of
