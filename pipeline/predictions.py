"""Predictions: the format that all methods write and evaluation reads.

`data/predictions/<run>.parquet`, for each fit of the run one row per validation or test sample:

    head       the head's name, such as logistic
    input      the tap or taps that the head saw, such as block2 or block2+penultimate
    labels     labels per class in training; null where the whole training split was used
    draw       the few-shot draw, or the seed of the head where the run has several; null where there is one fit alone
    key, path, split
    target, predicted   as a task has them: text, lists of text, or float64
    score:<class>   float32, a column per class; null where the head gives no scores; no such column in a regression

The schema's metadata says under `kind` what the targets are, and under `scores:<head>` whether that head's scores are
`probability`, `decision` values or `none`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.files import AnyPath, as_path, check_readable, publish, scratch
from pipeline.task import KIND, TYPES, Kind, array_of, column_of

Scores = Literal["probability", "decision", "none"]
SCORE = "score:"  # prefix of a class: a column
SCORES = "scores:"  # prefix of a head in the metadata: its kind of scores


@dataclass(frozen=True)
class Predictions:
    """The predictions of one fit. Arrays of one length: targets and predicted as `Task.targets` has them; `scores` is
    (rows, classes), float32, NaN without scores.
    """

    head: str
    input: str
    labels: int | None
    draw: int | None
    keys: np.ndarray
    splits: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray


class Writer:
    """Writes the predictions of fits one after the other; the file gets its name at the end."""

    def __init__(
        self,
        path: Path,
        kind: Kind,
        classes: list[str],
        scores: Mapping[str, Scores],
        *,
        paths_of: Callable[[np.ndarray], pa.Array] | None = None,
    ) -> None:
        """Write to `path`; `paths_of` returns the path of the sample of each key, as `Task.paths_of` does."""
        self.path, self.kind, self.classes, self._paths_of = path, kind, classes, paths_of
        self._keys, self._paths = np.empty(0, dtype=object), pa.array([], pa.string())
        self._schema = pa.schema(
            [
                ("head", pa.string()),
                ("input", pa.string()),
                ("labels", pa.int32()),
                ("draw", pa.int32()),
                ("key", pa.string()),
                ("path", pa.string()),
                ("split", pa.string()),
                ("target", TYPES[kind]),
                ("predicted", TYPES[kind]),
                *((SCORE + name, pa.float32()) for name in classes),
            ],
            metadata={KIND: kind, **{SCORES + head: found for head, found in scores.items()}},
        )

    def __enter__(self) -> Self:
        self._scratch = scratch(self.path.parent, self.path.name)
        self._temporary = self._scratch.__enter__()
        self._file = pq.ParquetWriter(self._temporary, self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            publish(self._temporary, self.path)
        self._scratch.__exit__(kind, error, trace)

    def add(self, fit: Predictions) -> None:
        """Append the predictions of a fit as a row group."""
        rows = len(fit.keys)
        columns = {
            "head": [fit.head] * rows,
            "input": [fit.input] * rows,
            "labels": [fit.labels] * rows,
            "draw": [fit.draw] * rows,
            "key": fit.keys,
            "path": self._look_up(fit.keys),
            "split": fit.splits,
            "target": column_of(fit.targets, self.kind, self.classes),
            "predicted": column_of(fit.predicted, self.kind, self.classes),
            **{SCORE + name: pa.array(fit.scores[:, i], from_pandas=True) for i, name in enumerate(self.classes)},
        }
        self._file.write_table(pa.table(columns, schema=self._schema))

    def _look_up(self, keys: np.ndarray) -> pa.Array:
        """Return the paths of keys, cached since fits usually have the same keys."""
        if self._paths_of is None:
            return pa.nulls(len(keys), pa.string())
        if not np.array_equal(self._keys, keys):
            self._keys, self._paths = keys, self._paths_of(keys)
        return self._paths


@dataclass(frozen=True)
class PredictionsFile:
    """A predictions file; iterating over it yields the predictions of each fit.

    >>> file = PredictionsFile.open("data/predictions/probe.parquet")
    >>> file.kind, file.classes
    ('classification', ['cat', 'dog'])
    >>> [(fit.head, fit.input, fit.scores.shape) for fit in file]
    [('ridge', 'penultimate', (6, 2))]
    """

    path: Path
    kind: Kind
    classes: list[str]
    scores: Mapping[str, Scores]
    """The kind of scores of each head."""

    @classmethod
    def open(cls, path: AnyPath) -> "PredictionsFile":
        """Read the schema; raises DataError if there is no such file."""
        path = as_path(path, "PredictionsFile.open: path")
        if not path.is_file():
            raise DataError(f"{path}: no such predictions. Run `icecore repro`, or only the run {path.stem!r}.")
        check_readable(path)
        schema = pq.read_schema(path)
        classes = [name.removeprefix(SCORE) for name in schema.names if name.startswith(SCORE)]
        metadata = {name.decode(): value.decode() for name, value in schema.metadata.items()}
        scores = {
            name.removeprefix(SCORES): cast(Scores, metadata[name]) for name in metadata if name.startswith(SCORES)
        }
        return cls(path, cast(Kind, metadata[KIND]), classes, scores)

    def __iter__(self) -> Iterator[Predictions]:
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                first = {name: table[name][0].as_py() for name in ("head", "input", "labels", "draw")}
                scores = [table[SCORE + name].to_numpy() for name in self.classes]
                yield Predictions(
                    **first,
                    keys=table["key"].to_numpy(),
                    splits=table["split"].to_numpy(),
                    targets=array_of(table["target"], self.kind, self.classes),
                    predicted=array_of(table["predicted"], self.kind, self.classes),
                    scores=np.stack(scores, axis=1) if scores else np.empty((len(table), 0), np.float32),
                )
