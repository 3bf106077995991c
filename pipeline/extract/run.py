"""Run an extraction: compute what is missing into the feature cache, then commit each tap's folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import manifest
from pipeline.backbones import artefact
from pipeline.backbones.spec import BackboneSpec, TapSpec, resolve, row_shape
from pipeline.engines import Engine
from pipeline.engines import gate as gates
from pipeline.engines.select import Job, Say, choose, gate
from pipeline.errors import BackboneError, DataError, bullets
from pipeline.extract import ExtractConfig, card, oracle
from pipeline.extract.plan import Plan, plan
from pipeline.extract.work import Reject, first_samples, make_unit
from pipeline.files import link_or_copy
from pipeline.readers.image import ImageReader
from pipeline.runtime import Progress, silent
from pipeline.store import cache, index
from pipeline.store import keys as key_arrays
from pipeline.store.encoding import ON_DISK
from pipeline.store.features import Features
from pipeline.store.identity import identity
from pipeline.store.layout import path_of


@dataclass(frozen=True)
class Samples:
    """What is to be extracted: distinct keys (S16, sorted) and a path for each."""

    keys: np.ndarray
    paths: pa.Array


@dataclass(frozen=True)
class Extracted:
    """What an extraction did."""

    plan: Plan
    rejected: int


def read_samples(manifests: Path, datasets: tuple[str, ...]) -> Samples:
    """The union of some data sets, a row a distinct content."""
    table = pa.Table.from_batches(manifest.read_files(manifests, datasets), schema=manifest.FILES_SCHEMA)
    keys, first = np.unique(key_arrays.from_hex(table["key"].to_pylist()), return_index=True)
    return Samples(keys, table["path"].combine_chunks().take(pa.array(first)))


def extract(
    config: ExtractConfig,
    *,
    backbone: Path,
    manifests: Path,
    out: Path,
    cache_root: Path,
    progress: Progress = silent,
    announce: Callable[[Plan], None] = lambda _: None,
    say: Say = lambda _: None,
) -> Extracted:
    """Extract every tap of `config` and commit `out/<tap>/`; `say` is told which engine runs, and why.

    Raises BackboneError for a tap that does not exist, EngineError for an engine that cannot run here or computes other
    values than torch float32, DataError if more samples than `max_rejected` gave no features.
    """
    spec = artefact.read_spec(backbone)
    config = config.model_copy(update={"taps": resolve(config.taps, spec, where=str(backbone))})
    shapes = row_shapes(config.taps, spec, where=str(backbone))
    samples = read_samples(manifests, config.datasets)
    columns = {
        tap: cache.column(cache_root, identity(spec, config.taps[tap], precision=config.precision))
        for tap in config.taps
    }
    for column in columns.values():
        cache.leftovers(column)
    known = {tap: _known(column, samples.keys) for tap, column in columns.items()}
    todo = plan(known, unit_rows=_unit_rows(config, shapes))
    announce(todo)
    rejects = _compute(config, todo, samples, columns, backbone, cache_root, progress, say)
    failed = {reject.key: str(reject) for reject in rejects}
    refused: dict[str, str] = {}
    for tap, column in columns.items():
        refused |= commit(out / tap, column, samples.keys, shapes[tap], {**failed, **column.rejected()})
    _replay(config, todo, samples, backbone, out, say)
    _refuse_too_many(config, len(samples.keys), refused)
    return Extracted(todo, len(refused))


def row_shapes(specs: Mapping[str, TapSpec], spec: BackboneSpec, *, where: str) -> dict[str, tuple[int, ...]]:
    """The shape of a stored row of each tap; raises BackboneError for poolings that do not fit."""
    shapes, problems = {}, []
    for tap, wanted in specs.items():
        try:
            shapes[tap] = row_shape(spec.taps[wanted.node], wanted)
        except ValueError as error:
            problems.append(f"tap {tap!r}, node {wanted.node!r}: {error}. Use none or flatten.")
    if problems:
        raise BackboneError(bullets(f"{where}: poolings that do not fit", problems))
    return shapes


def _unit_rows(config: ExtractConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Rows a unit, a whole number of batches: the shard of the widest tap has about `shard_mb`."""
    widest = max(int(np.prod(shapes[tap])) * np.dtype(ON_DISK[config.taps[tap].dtype]).itemsize for tap in shapes)
    rows = config.shard_mb * 2**20 // widest
    return max(1, min(rows, 65_536) // config.batch_size) * config.batch_size


def _known(column: cache.Column, keys: np.ndarray) -> np.ndarray:
    """Which samples need not be computed: stored, or rejected for good; bool (samples,)."""
    _, _, held = cache.covering(column, keys)
    places = key_arrays.find(keys, key_arrays.from_hex(sorted(column.rejected())))
    held[places[places >= 0]] = True
    return held


def _compute(
    config: ExtractConfig,
    todo: Plan,
    samples: Samples,
    columns: Mapping[str, cache.Column],
    backbone: Path,
    cache_root: Path,
    progress: Progress,
    say: Say,
) -> list[Reject]:
    total = sum(len(unit.rows) for unit in todo.units)
    if not total:
        return []
    loaded = artefact.read(backbone)
    reader = ImageReader(loaded.spec.input.image)
    job = Job(loaded, config.taps, config.batch_size, config.precision, config.limits, cache_root)
    engines = _engines(config, job, todo, samples, columns, reader, say)
    done, rejects = 0, []

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for unit in todo.units:
        rejects += make_unit(
            samples.keys[unit.rows],
            samples.paths.take(pa.array(unit.rows)).to_pylist(),
            reader=reader,
            engine=engines(unit.taps),
            columns={tap: columns[tap] for tap in unit.taps},
            batch_size=config.batch_size,
            done=advance,
        )
    return rejects


def _engines(
    config: ExtractConfig,
    job: Job,
    todo: Plan,
    samples: Samples,
    columns: Mapping[str, cache.Column],
    reader: ImageReader,
    say: Say,
) -> Callable[[tuple[str, ...]], Engine]:
    """Choose the engine, let it through the gate, and return what gives the engine for some of the taps.

    Eager torch computes the same bits whatever else is asked for, so it runs the taps that are missing only. A graph's
    kernels are chosen for all of its outputs: it has every tap of the settings each time, or a job that was killed
    between two taps would go on with other bits.
    """
    rows = np.concatenate([unit.rows for unit in todo.units])
    pixels = first_samples(
        samples.keys[rows],
        samples.paths.take(pa.array(rows)).to_pylist(),
        reader=reader,
        count=gates.rows_for(row_shapes(job.specs, job.backbone.spec, where=""), job.batch_size, job.precision),
        batch_size=config.batch_size,
    )
    if not len(pixels):  # there is nothing to run
        return lambda taps: job.engine("torch", {tap: job.specs[tap] for tap in taps})
    chosen = choose(config.engine, job, pixels, samples=len(rows), say=say)
    todo_taps = [columns[tap] for tap, missing in todo.missing.items() if missing]
    if not all(card.there(column, chosen.engine) for column in todo_taps):
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


def commit(
    folder: Path, column: cache.Column, keys: np.ndarray, shape: tuple[int, ...], rejected: Mapping[str, str]
) -> dict[str, str]:
    """Link the shards that hold the samples into `folder` and write its index; return the samples without features."""
    chosen, own, held = cache.covering(column, keys)
    for record in chosen:
        column.verify(record)
        link_or_copy(column.path_of(record), path_of(folder, record.name))
    refused = {key: rejected[key] for key in key_arrays.to_hex(keys[~held]) if key in rejected}
    index.commit(
        folder,
        identity=column.identity,
        layout=column.layout(shape),
        shards=chosen,
        keys=own,
        wanted=keys,
        rejected=refused,
    )
    card.link(column, folder)
    column.touch()
    return refused


def _replay(config: ExtractConfig, todo: Plan, samples: Samples, backbone: Path, out: Path, say: Say) -> None:
    """Check a few rows of each penultimate tap of which rows were computed."""
    taps = [tap for tap, missing in todo.missing.items() if missing and oracle.replayable(config.taps[tap])]
    if not taps:
        return
    loaded = artefact.read(backbone)
    for tap in taps:
        rows = np.concatenate([unit.rows for unit in todo.units if tap in unit.taps])
        found = oracle.check(
            Features.open(out / tap),
            config.taps[tap],
            backbone=loaded,
            precision=config.precision,
            keys=samples.keys[rows],
            paths=samples.paths.take(pa.array(rows)).to_pylist(),
            reader=ImageReader(loaded.spec.input.image),
        )
        if found:
            say(
                f"{tap}: {found['rows']} stored rows through the network's own last layer give its logits to within "
                f"{found['error']:.1g} of the largest, with the same first class in {found['agreement']:.0%}"
            )


def _refuse_too_many(config: ExtractConfig, samples: int, refused: Mapping[str, str]) -> None:
    if len(refused) > config.max_rejected * samples:
        title = (
            f"{len(refused):,} of {samples:,} samples gave no features, more than the share of "
            f"{config.max_rejected:g} that `max_rejected` allows. What was computed is kept. The first of them"
        )
        raise DataError(bullets(title, [f"{key}: {reason}" for key, reason in refused.items()][:5]))
