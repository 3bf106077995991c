"""Predictions: the one format that every method writes and evaluation reads.

`data/predictions/<run>.parquet`, for each fit of the run a row a validation or test sample:

    input      the tap or taps that the head saw, such as block2 or block2+penultimate
    labels     labels a class in training; null where the whole training split was used
    draw       the few-shot draw; null likewise
    key, split, target, predicted
    score:<class>   a column a class; null where the head gives no scores

The schema's metadata says under `scores` whether they are `probability`, `decision` values or `none`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.files import publish, scratch

Scores = Literal["probability", "decision", "none"]
SCORE = "score:"


@dataclass(frozen=True)
class Predictions:
    """The predictions of one fit. Arrays of one length; `scores` is (rows, classes), float32, NaN without scores."""

    input: str
    labels: int | None
    draw: int | None
    keys: np.ndarray
    splits: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray


class Writer:
    """Writes one fit after the other; the file appears when the last was written."""

    def __init__(self, path: Path, classes: list[str], scores: Scores) -> None:
        self.path, self.classes = path, classes
        self._schema = pa.schema(
            [
                ("input", pa.string()),
                ("labels", pa.int32()),
                ("draw", pa.int32()),
                *((name, pa.string()) for name in ("key", "split", "target", "predicted")),
                *((SCORE + name, pa.float32()) for name in classes),
            ],
            metadata={"scores": scores},
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

    def add(self, one: Predictions) -> None:
        """Append the predictions of one fit, as one row group."""
        rows = len(one.keys)
        columns = {
            "input": [one.input] * rows,
            "labels": [one.labels] * rows,
            "draw": [one.draw] * rows,
            "key": one.keys,
            "split": one.splits,
            "target": one.targets,
            "predicted": one.predicted,
            **{SCORE + name: pa.array(one.scores[:, i], from_pandas=True) for i, name in enumerate(self.classes)},
        }
        self._file.write_table(pa.table(columns, schema=self._schema))


@dataclass(frozen=True)
class PredictionsFile:
    """A predictions file: what it holds, and one fit after the other."""

    path: Path
    classes: list[str]
    scores: Scores

    @classmethod
    def open(cls, path: Path) -> "PredictionsFile":
        """Read the schema; raises DataError if there is no such file."""
        if not path.is_file():
            raise DataError(f"{path}: no such predictions. Run `dvc repro fit@{path.stem}`.")
        schema = pq.read_schema(path)
        classes = [name.removeprefix(SCORE) for name in schema.names if name.startswith(SCORE)]
        return cls(path, classes, schema.metadata[b"scores"].decode())

    def __iter__(self) -> Iterator[Predictions]:
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                first = {name: table[name][0].as_py() for name in ("input", "labels", "draw")}
                text = {name: table[name].to_numpy() for name in ("key", "split", "target", "predicted")}
                scores = [table[SCORE + name].to_numpy() for name in self.classes]
                yield Predictions(
                    **first,
                    keys=text["key"],
                    splits=text["split"],
                    targets=text["target"],
                    predicted=text["predicted"],
                    scores=np.stack(scores, axis=1),
                )
