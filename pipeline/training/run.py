"""The run of fine-tuning and distillation: train each training set, or load it from the cache; keep the best network.

A training with the same settings, data, weights and code is loaded from the cache.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import TrainingError
from pipeline.files import digest
from pipeline.model_record import NetworkFit
from pipeline.runtime import Reporter
from pipeline.store.use import hold
from pipeline.training.early_stopping import START, SURE
from pipeline.training.job import RunPaths, TrainingJob
from pipeline.training.loop import train


@dataclass(frozen=True)
class Trained:
    """The trained network of a training set, and its record in model.json."""

    network: nn.Module
    architecture: dict[str, Any]
    record: NetworkFit

    @property
    def order(self) -> tuple[float, float]:
        """Return the key by which the best network is chosen: most labels, then best validation."""
        labels = math.inf if self.record.labels is None else self.record.labels
        return labels, -self.record.kept.get("validation_loss", math.inf)


@dataclass
class RunResult:
    """The records of all training sets of a run, and the best of their networks."""

    records: list[NetworkFit] = field(default_factory=list)
    _best: Trained | None = None

    def add(self, trained: Trained, **more: Any) -> None:
        """Add the result of a training set, with further fields of its record; the first of equals stays the best."""
        trained = replace(trained, record=trained.record.model_copy(update=more))
        self.records.append(trained.record)
        if self._best is None or trained.order > self._best.order:
            self._best = trained

    @property
    def best(self) -> Trained:
        """Return the best network, which the run saves."""
        assert self._best is not None, "there is a training set"
        return self._best


def train_sets(
    jobs: Iterable[TrainingJob], *, steps: Sequence[int], paths: RunPaths, reporter: Reporter
) -> Iterator[tuple[TrainingJob, Trained]]:
    """Train the jobs of a run one after the other, and yield each with its result.

    jobs: built lazily, so that a single network is in memory. steps: optimizer steps per job. Raises the errors of
    `train_or_load`.
    """
    for number, job in enumerate(jobs):
        outcome = train_or_load(
            job,
            folder=paths.cache / "training" / digest(job.made_from)[:32],
            curves=paths.curves / str(job.training),
            reporter=reporter.part(sum(steps[:number]), sum(steps)).named(str(job.training)),
        )
        yield job, outcome


def train_or_load(job: TrainingJob, *, folder: Path, curves: Path, reporter: Reporter) -> Trained:
    """Train on a training set, or load the result of an earlier training from `folder`.

    Raises the errors of `loop.train`, and TrainingError if frozen weights have changed.
    """
    before = job.trainable.digest()
    for probe in job.probes:
        reporter.log(str(probe))
    with hold(folder):
        history = train(
            job.module,
            job.samples,
            job.validation,
            job.context,
            job.trainable,
            folder=folder,
            made_from=job.made_from,
            reporter=reporter,
            curves=curves,
        )
    os.utime(folder)
    kept_row = history.kept(job.context.config)
    if kept_row["epoch"] == START:
        assert job.validation is not None, "the start was measured"
        reporter.log(
            f"kept: the network before the first epoch; none was better by more than {SURE:g} standard errors on "
            f"{len(job.validation):,} validation rows"
        )
    after = job.trainable.digest()
    if after != before:
        raise TrainingError(
            f"{job.training}: expected an unchanged frozen part with the digest {before[:16]}…, got {after[:16]}…. "
            "A module of the network changes its own weights or buffers: train that part too."
        )
    record = NetworkFit(
        head=job.head,
        input=job.input,
        labels=job.training.labels,
        draw=job.training.draw,
        file=None,
        params={},
        search=None,
        temperature=None,
        rows=len(job.training.rows),
        epochs=len(history.rows),
        stopped=history.stopped,
        probes=tuple(probe.record for probe in job.probes),
        start=history.start,
        kept=kept_row,
        frozen={"before": before, "after": after},
        **job.counts,
    )
    return Trained(job.network, job.architecture, record)
