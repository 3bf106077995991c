"""Predict images with a trained model: a few in this process, many through the feature cache.

Features in the cache are not computed again, so that a killed prediction resumes where it stopped. The output is
written block by block and appears at the end. An exported model has no features and predicts block by block.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.predict.exported import ExportedModel
from pipeline.predict.few import predict_few
from pipeline.predict.inputs import Input, Inputs
from pipeline.predict.many import predict_many
from pipeline.predict.output_files import Write
from pipeline.predict.output_table import Block, Columns
from pipeline.predict.row_source import RowSource
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.runtime import SILENT, Reporter

FEW = 256
"""The most inputs for which the network runs in this process, with torch, without storing features."""

MOST_ERRORS = 20  # the most errors that are reported with their paths


@dataclass
class PredictSummary:
    """The counts of a prediction: rows, rows with an error, and skipped files by kind."""

    rows: int = 0
    failed: int = 0
    first_errors: list[tuple[str, str]] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Add the counts of a block."""
        errors = [(path, why) for path, why in zip(block.paths, block.reasons, strict=True) if why is not None]
        self.rows, self.failed = self.rows + len(block.paths), self.failed + len(errors)
        self.first_errors += errors[: MOST_ERRORS - len(self.first_errors)]


def predict(
    columns: Columns,
    inputs: Inputs,
    write: Write,
    *,
    near: RowSource | None = None,
    cache_root: Path,
    name: str,
    few: int | None = None,
    settings: Mapping[str, Any] | None = None,
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter = SILENT,
) -> PredictSummary:
    """Predict all inputs in order with the model of `columns`, and pass the rows to `write`, block by block.

    near: the network whose features select the nearest training samples, if that is not the model's own network.
    cache_root: the folder of the feature cache.
    name: identifies the prediction, such as the path of the output. Two predictions with the same name cannot run at
        the same time.
    few: the most inputs that are predicted without the feature cache, by default `FEW`.
    settings: settings of the extraction.
    max_pixels: larger images are refused.
    reporter: shows progress of the stages `list`, `extract` and `predict`.

    Raises DataError if there is nothing to predict, StoreError if the features do not fit on the disk, and the errors
    of an extraction.
    """
    model = columns.model
    done, few = PredictSummary(), FEW if few is None else few
    samples = iter(inputs)
    first = list(islice(samples, few + 1))
    if isinstance(model, ExportedModel):
        with reporter.stage("predict") as stage:
            _predict_exported(columns, model, chain(first, samples), few, write, done, max_pixels, stage)
        return _refuse_nothing(done, inputs)
    networks = [RowSource(model.backbone_folder, model.backbone, model.taps, model.precision)]
    if near is not None:
        networks.append(near)
    if len(first) <= few:
        with reporter.stage("predict") as stage:
            block, done.others = predict_few(columns, first, networks, max_pixels=max_pixels, progress=stage.progress)
            _write([block], columns, write, done)
    else:
        with predict_many(
            columns,
            chain(first, samples),
            networks,
            cache_root=cache_root,
            name=name,
            settings=settings or {},
            max_pixels=max_pixels,
            reporter=reporter,
        ) as (blocks, done.others):
            _write(blocks, columns, write, done)
    return _refuse_nothing(done, inputs)


def _predict_exported(
    columns: Columns,
    model: ExportedModel,
    samples: Iterator[Input],
    size: int,
    write: Write,
    done: PredictSummary,
    max_pixels: int,
    reporter: Reporter,
) -> None:
    """Predict with an exported model, `size` inputs at a time."""
    while chunk := list(islice(samples, size)):
        block, others = predict_few(columns, chunk, [model], max_pixels=max_pixels, progress=lambda _done, _total: None)
        _write([block], columns, write, done)
        for kind, count in others.items():
            done.others[kind] = done.others.get(kind, 0) + count
        reporter.progress(done.rows, done.rows)


def _refuse_nothing(done: PredictSummary, inputs: Inputs) -> PredictSummary:
    """Return the summary of a prediction; raises DataError if it has no rows."""
    if not done.rows:
        counts = [f"{count:,} {kind}" for kind, count in done.others.items()]
        others = f", but files that are no images: {', '.join(counts)}" if counts else ""
        raise DataError(f"{', '.join(inputs.arguments[:3])}: expected images to predict, got none{others}.")
    return done


def _write(blocks: Iterable[Block], columns: Columns, write: Write, done: PredictSummary) -> None:
    for block in blocks:
        if block.paths:
            write(columns.table(block))
            done.add(block)
