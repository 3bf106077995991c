"""A worker: the network, its engine and the decoders, prepared once per process and used for all units."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache as once
from functools import cached_property

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec
from pipeline.engines import parity_gate
from pipeline.engines.autotune import Job
from pipeline.extract.engine_setup import EngineOf, engines
from pipeline.extract.job_files import WorkerJob
from pipeline.extract.request import Request, row_shapes
from pipeline.extract.throughput import Rates, rates, sample
from pipeline.extract.timing import Timings
from pipeline.extract.units import TapOutput, UnitInput, UnitResult, make_units
from pipeline.loading.batches import first_pixels
from pipeline.loading.decoders import Decoders, start_decoders
from pipeline.loading.samples import Samples
from pipeline.readers import Reader
from pipeline.readers.image import ImageReader
from pipeline.runtime import Reporter, gpus
from pipeline.store import cache
from pipeline.store.identity import identity


class Worker:
    """Computes units. It must be closed, since it may have processes."""

    def __init__(self, assignment: WorkerJob, *, reporter: Reporter) -> None:
        self.assignment, self._reporter = assignment, reporter
        self._engine_of: EngineOf | None = None
        self._batch_size = 0

    @cached_property
    def backbone(self) -> Backbone:
        """The network with its weights."""
        return serialization.read(self.assignment.backbone)

    @cached_property
    def spec(self) -> BackboneSpec:
        """The backbone's spec, with the input of the view."""
        return self.backbone.spec.viewed(self.assignment.view)

    @cached_property
    def reader(self) -> Reader:
        """The function that decodes a sample."""
        return ImageReader(self.spec.input.image)

    @cached_property
    def decoders(self) -> Decoders:
        """The threads or processes that decode samples."""
        sample_bytes = int(np.prod(self.backbone.spec.input.shape))
        kind = self.assignment.config.run.decode
        return start_decoders(self.reader, kind, sample_bytes=sample_bytes, with_gpu=gpus() > 0)

    @cached_property
    def targets(self) -> dict[str, TapOutput]:
        """The cache entry of each tap."""
        config, spec = self.assignment.config, self.spec
        shapes = row_shapes(config.taps, spec, where=str(self.assignment.backbone))
        return {
            tap: TapOutput(
                cache.column(self.assignment.cache_root, identity(spec, tap_spec, precision=config.precision)),
                shapes[tap],
            )
            for tap, tap_spec in config.taps.items()
        }

    def prepare(self, units: Iterable[Samples]) -> None:
        """Choose the engine and check its parity on the first samples of some units, unless that is done already."""
        if self._engine_of is not None:
            return
        config, targets = self.assignment.config, self.targets
        job = Job(self.backbone, config.taps, config.batch, config.precision, self.assignment.cache_root)
        shapes = {tap: target.shape for tap, target in targets.items()}
        count = parity_gate.rows_for(shapes, job.batch_size, job.precision)

        @once
        def pixels() -> np.ndarray:
            """Return the pixels for choosing and checking the engine."""
            return first_pixels(units, self.decoders, count=count, batch_size=min(count, job.batch_size))[1]

        self._batch_size, self._engine_of = engines(
            config.engine,
            job,
            pixels,
            find_size=config.batch_size == "auto" and gpus() > 0,
            samples=self.assignment.samples,
            columns={tap: target.column for tap, target in targets.items()},
            missing_taps=self.assignment.missing_taps,
            reporter=self._reporter,
        )

    def forecast(self, request: Request, *, batches: int) -> Rates:
        """Measure some batches of a request, and return the rates. Call `prepare` first."""
        assert self._engine_of is not None, "the engine is chosen on samples that can be read"
        return rates(
            request,
            self._engine_of(self.assignment.missing_taps),
            self.decoders,
            sample(request.rows, batches * self._batch_size, seed=0),
            batch_size=self._batch_size,
            cache_root=self.assignment.cache_root,
        )

    def make(self, works: Iterable[UnitInput], *, done: Callable[[int], None], spent: Timings) -> Iterator[UnitResult]:
        """Compute units one after another, and yield their results. Call `prepare` first."""
        assert self._engine_of is not None, "the engine is chosen on samples that can be read"
        return make_units(
            works,
            decoders=self.decoders,
            engine_of=self._engine_of,
            targets=self.targets,
            batch_size=self._batch_size,
            done=done,
            spent=spent,
        )

    def close(self) -> None:
        """Stop the decoders."""
        if "decoders" in self.__dict__:
            self.decoders.close()
