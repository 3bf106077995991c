"""Predict images by a trained model: a few in this process, many through the feature cache.

What the cache has is not computed again, so that a prediction which was killed goes on where it was. The output is
written block by block and appears at the end. An exported model has no
features: it predicts block by block.
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
from pipeline.runtime import SILENT, Reporter

FEW = 256
"""Inputs up to which the network runs in this process, by torch, and nothing is stored."""

MOST_ERRORS = 20  # that are kept with their paths


@dataclass
class Predicted:
    """What a prediction did: its rows, how many of them have an error, and the files that are no rows, by kind."""

    rows: int = 0
    failed: int = 0
    first_errors: list[tuple[str, str]] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Count a block."""
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
    reporter: Reporter = SILENT,
) -> Predicted:
    """Predict all inputs in their order by the model of `columns`, and hand the rows to `write`, block by block.

    near: the network whose rows say which training samples are near, where that is not the model's own. few: more
    inputs than that, by default `FEW`, go through the feature cache in `cache_root`, by an extraction with `settings`.
    name: what is predicted, such as the path of the output: of two predictions of one name the second is refused.
    reporter: has a bar for each of `list`, `extract` and `predict`.

    Raises DataError where there is nothing to predict, StoreError where the features do not fit on the disk, and what
    an extraction raises.
    """
    model = columns.model
    done, few = Predicted(), FEW if few is None else few
    samples = iter(inputs)
    first = list(islice(samples, few + 1))
    if isinstance(model, ExportedModel):
        with reporter.stage("predict") as stage:
            _predict_exported(columns, model, chain(first, samples), few, write, done, stage)
        return _refuse_nothing(done, inputs)
    networks = [RowSource(model.backbone_folder, model.backbone, model.taps, model.precision)]
    if near is not None:
        networks.append(near)
    if len(first) <= few:
        with reporter.stage("predict") as stage:
            block, done.others = predict_few(columns, first, networks, progress=stage.progress)
            _write([block], columns, write, done)
    else:
        with predict_many(
            columns,
            chain(first, samples),
            networks,
            cache_root=cache_root,
            name=name,
            settings=settings or {},
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
    done: Predicted,
    reporter: Reporter,
) -> None:
    """Predict by an exported model, `size` inputs at a time."""
    while block_of := list(islice(samples, size)):
        block, others = predict_few(columns, block_of, [model], progress=lambda _done, _total: None)
        _write([block], columns, write, done)
        for kind, count in others.items():
            done.others[kind] = done.others.get(kind, 0) + count
        reporter.progress(done.rows, done.rows)


def _refuse_nothing(done: Predicted, inputs: Inputs) -> Predicted:
    """Return what a prediction did; raises DataError where it has no row."""
    if not done.rows:
        counts = [f"{count:,} {kind}" for kind, count in done.others.items()]
        others = f", but files that are no images: {', '.join(counts)}" if counts else ""
        raise DataError(f"{', '.join(inputs.arguments[:3])}: expected images to predict, got none{others}.")
    return done


def _write(blocks: Iterable[Block], columns: Columns, write: Write, done: Predicted) -> None:
    for block in blocks:
        if block.paths:
            write(columns.table(block))
            done.add(block)
