"""The engine of an extraction: chosen, let through the gate, and made for the taps that a unit lacks."""

from collections.abc import Callable

from pipeline.engines import Engine
from pipeline.engines import gate as gates
from pipeline.engines.select import Job, Say, choose, gate
from pipeline.extract import card
from pipeline.extract.request import Request
from pipeline.extract.work import first_samples
from pipeline.readers import Reader


def engines(request: Request, job: Job, reader: Reader, say: Say) -> Callable[[tuple[str, ...]], Engine]:
    """Choose the engine, let it through the gate, and return what gives the engine for some of the taps.

    Eager torch computes the same bits whatever else is asked for, so it runs the taps that are missing only. A graph's
    kernels are chosen for all of its outputs: it has every tap of the settings each time, or a job that was killed
    between two taps would go on with other bits.
    """
    rows = request.rows
    pixels = first_samples(
        request.samples.keys[rows],
        request.samples.paths_of(rows),
        reader=reader,
        count=gates.rows_for(request.shapes, job.batch_size, job.precision),
        batch_size=job.batch_size,
    )
    if not len(pixels):  # there is nothing to run
        return lambda taps: job.engine("torch", {tap: job.specs[tap] for tap in taps})
    chosen = choose(request.config.engine, job, pixels, samples=len(rows), say=say)
    lacking = [request.columns[tap] for tap, missing in request.plan.missing.items() if missing]
    if not all(card.there(column, chosen.engine) for column in lacking):
        measured = chosen.card or gate(job, chosen.name, chosen.engine, pixels)
        say(str(measured))
        for tap, column in request.columns.items():
            card.write(column, measured, tap)
    made = {tuple(job.specs): chosen.engine}

    def engine_of(taps: tuple[str, ...]) -> Engine:
        if chosen.name != "torch":
            return chosen.engine
        if taps not in made:
            made[taps] = job.engine(chosen.name, {tap: job.specs[tap] for tap in taps})
        return made[taps]

    return engine_of
