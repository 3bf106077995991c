"""Run a FitConfig: read the taps once, fit every head on every input, write models and predictions."""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import HeadError
from pipeline.files import AnyPath, as_path
from pipeline.fit.config import FitConfig
from pipeline.fit.outputs import save_head, write_run
from pipeline.fit.setup import list_jobs, load_run
from pipeline.fit.single_fit import Data, FittedHead, fit_head
from pipeline.fit.summary import Summary, describe_workers, summarise
from pipeline.fit.workers import Sums
from pipeline.model_record import FailedFit, HeadFit
from pipeline.predictions import Writer
from pipeline.runtime import SILENT, Reporter


def fit(
    config: FitConfig,
    *,
    task: AnyPath,
    features: AnyPath,
    models: AnyPath,
    predictions: AnyPath,
    save: Callable[[FittedHead, Data, Path], HeadFit] = save_head,
    reporter: Reporter = SILENT,
) -> Summary:
    """Fit and predict all heads; a fit that fails is recorded with its cause, and the other fits continue.

    `features` has a folder per tap; `save` stores each head, by default as a file below `models`. Raises HeadError,
    ConfigError, DataError or StoreError before the first fit if the task, taps, heads and settings are incompatible,
    and HeadError with the cause of the first failure if all fits fail.
    """
    task, features = as_path(task, "fit: task"), as_path(features, "fit: features")
    models, predictions = as_path(models, "fit: models"), as_path(predictions, "fit: predictions")
    run = load_run(config, task=task, features=features)
    scores = {head.called: head.scores for head, _ in run.heads}
    fits: list[HeadFit] = []
    failed: list[FailedFit] = []
    first_error: HeadError | None = None
    with (
        Writer(predictions, run.task.kind, run.task.classes, scores, paths_of=run.task.paths_of) as writer,
        Sums(config.run) as sums,
    ):
        for job in list_jobs(run, sums):
            try:
                fitted = fit_head(job)
                record = save(fitted, job.data, models)
            except HeadError as error:
                first_error = first_error or error
                failed.append(
                    FailedFit(
                        head=job.head.called,
                        input=job.data.name,
                        labels=job.training.labels,
                        draw=job.draw,
                        cause=str(error),
                    )
                )
            else:
                writer.add(fitted.predictions)
                fits.append(record)
            reporter.progress(len(fits) + len(failed), run.fits)
        if first_error is not None and not fits:
            raise first_error
        notes = [*run.notes]
        if config.run.several(gpus=0):
            notes += describe_workers([head for head, _ in run.heads], started=sums.started)
    write_run(run, task, models, fits=fits, failed=failed)
    return summarise(fits, failed, notes)
