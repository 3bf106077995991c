"""Write arrays and labels as a task and features on the disk, so that `fit` and `evaluate` can read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DataError
from pipeline.files import digest
from pipeline.manifest import ManifestPaths
from pipeline.runtime import Reporter
from pipeline.settings.check import Section, check, refuse
from pipeline.split.config import SplitConfig
from pipeline.split.run import split as split_rows
from pipeline.store import index, key_arrays, shard_writer
from pipeline.store.features import Features
from pipeline.store.identity import address
from pipeline.store.row_buffer import open_row_buffer
from pipeline.store.shard_format import Layout
from pipeline.task import Kind

DATASET = "rows"
"""The name of the data set and of the task in messages."""


class Inputs:
    """The rows of several inputs, with the same length and order: `Features`, or arrays (rows, values).

    `keys`: the key of each row as hex text: the key in the features, or a digest of the row number.
    Raises DataError for inputs of different lengths, or features with different keys.
    """

    def __init__(self, features: Any) -> None:
        named = dict(features) if isinstance(features, Mapping) else {"features": features}
        if not named:
            raise ConfigError("evaluate: features: expected at least one input, got none.")
        for name in named:
            if not isinstance(name, str) or not name.strip(".") or {"/", "+", "\0"} & {*name}:
                raise ConfigError(
                    f"evaluate: features: expected names without / and +, which join inputs, got {name!r}."
                )
        self.rows = {name: rows if isinstance(rows, Features) else _matrix(rows, name) for name, rows in named.items()}
        self.stored = next((rows for rows in self.rows.values() if isinstance(rows, Features)), None)
        lengths = {name: len(rows) for name, rows in self.rows.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {count:,}" for name, count in lengths.items())
            raise DataError(f"evaluate: features: expected inputs with equally many rows, got {listed}.")
        count = next(iter(lengths.values()))
        own = [digest({"row": row})[:32] for row in range(count)] if self.stored is None else self.stored.keys
        self.keys = np.array(own, dtype=object)
        for name, rows in self.rows.items():
            if isinstance(rows, Features) and rows.keys != own:
                raise DataError(
                    f"evaluate: features: expected inputs of the same images, got others in {name!r}. Take "
                    "`features.subset(keys)` of those that all have."
                )

    def column(self, values: Any, what: str) -> pa.Array:
        """Return a value per row; text names a column of the features. Raises DataError for another number of rows.

        Multilabel values, also a matrix of 0 and 1, become lists of text.
        """
        if isinstance(values, str):
            if self.stored is None:
                raise DataError(f"evaluate: {what}: expected a value per row, got the name {values!r} and no Features.")
            values = self.stored.column(values)
        if hasattr(values, "to_numpy"):
            values = values.to_numpy()
        matrix = getattr(values, "ndim", 1) > 1
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        if len(values) != len(self.keys):
            raise DataError(
                f"evaluate: {what}: expected a value for each of {len(self.keys):,} rows, got {len(values):,}."
            )
        if matrix:
            return pa.array(_labels_of_matrix(values, what), pa.list_(pa.string()))
        if any(isinstance(value, list | tuple | set | frozenset) for value in values):
            return pa.array(_label_lists(values, what), pa.list_(pa.string()))
        if any(isinstance(value, float) for value in values):
            return pa.array(values, pa.float64())
        return pa.array([None if value is None else str(value) for value in values], pa.string())

    def write(self, folder: Path) -> None:
        """Write a features folder for each input; for `Features`, a link to their folder.

        Raises DataError for values that are not finite.
        """
        order = np.argsort(self.keys.astype(str))
        keys = key_arrays.from_hex(self.keys[order].tolist())
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            if isinstance(rows, Features):
                (folder / name).symlink_to(rows.folder.resolve())
            else:
                _write_features(folder / name, keys, rows[order], name)


def _matrix(rows: Any, name: str) -> np.ndarray:
    """Return rows as a float16 or float32 matrix; raises DataError for values that are no numbers."""
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu()
    values = np.asarray(rows)
    if values.ndim < 2 or values.dtype.kind not in "fiub":
        raise DataError(
            f"evaluate: {name}: expected an array of numbers (rows, values), got {values.dtype} {values.shape}."
        )
    if not values.size:
        raise DataError(f"evaluate: {name}: expected rows with values, got the shape {values.shape}.")
    values = values.reshape(len(values), -1)
    with np.errstate(over="ignore"):
        values = values if values.dtype == np.float16 else values.astype(np.float32)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(
            f"evaluate: {name}: expected finite numbers that float32 holds, got others in {int((~finite).sum()):,} of "
            f"{len(values):,} rows, the first is row {int(np.argmin(finite))}."
        )
    return values


def _labels_of_matrix(rows: list[Any], what: str) -> list[list[str]]:
    """Return the indices of the columns that are 1 in each row; raises DataError for values other than 0 and 1."""
    odd = next((value for row in rows for value in row if value not in (0, 1)), None)
    if odd is not None:
        raise DataError(
            f"evaluate: {what}: expected a value per row, or a matrix of 0 and 1 (rows, labels), got one with {odd!r}."
        )
    return [[str(number) for number, value in enumerate(row) if value] for row in rows]


def _label_lists(rows: list[Any], what: str) -> list[list[str] | None]:
    """Return the labels of each row as text; raises DataError for lists that look like rows of a matrix."""
    listed = [None if row is None else [row] if isinstance(row, str) else list(row) for row in rows]
    values = [value for row in listed if row is not None for value in row]
    if values and all(isinstance(value, bool | int | float) and value in (0, 1) for value in values):
        raise DataError(
            f"evaluate: {what}: expected labels, got lists of 0 and 1 only. Give a matrix as an array, "
            "`np.array(labels)`; write classes as text."
        )
    return [None if row is None else sorted({str(value) for value in row}) for row in listed]


def _write_features(folder: Path, keys: np.ndarray, rows: np.ndarray, name: str) -> None:
    identity = {"source": "array", "name": name}
    layout = Layout(address(identity), rows.dtype.name, rows.shape[1:])  # type: ignore[arg-type]
    folder.mkdir()
    with open_row_buffer(folder, layout) as buffer:
        buffer.append(keys, rows)
        ordered = buffer.sorted()
        record = shard_writer.write(folder, ordered.keys, ordered, layout)
    index.commit(folder, identity=identity, layout=layout, shards=[record], keys=[keys], wanted=keys, rejected={})


def kind_of(labels: pa.Array) -> Kind:
    """Return the kind of task by the type of the labels: lists are multilabel, floats a regression, others classes."""
    if pa.types.is_list(labels.type):
        return "multilabel"
    return "regression" if pa.types.is_floating(labels.type) else "classification"


def write_task(
    folder: Path, keys: np.ndarray, columns: Mapping[str, pa.Array], *, kind: Kind, test_size: float, seed: int
) -> tuple[Path, list[str]]:
    """Split the rows, and write the task into a folder; return its file and the notes of the split.

    columns: `label`, and optionally `split` and `group`. Raises DataError as the stage `split` does.
    """
    if not 0 < test_size < 1:
        raise ConfigError(f"evaluate: test_size: expected a share between 0 and 1, got {test_size}.")
    paths = ManifestPaths(folder / "manifests", DATASET)
    paths.folder.mkdir(parents=True)
    if kind == "classification" and not pa.types.is_list(columns["label"].type):
        columns = {**columns, "label": _as_text(columns["label"])}
    names = pa.array([f"row {row}" for row in range(len(keys))], pa.string())
    pq.write_table(pa.table({"key": pa.array(keys, pa.string()), "path": names, **columns}), paths.rows)
    raw: dict[str, Any] = {"datasets": (DATASET,), "kind": kind, "target": "label", "seed": seed}
    if "split" in columns:
        raw |= {"by": "column"}
    else:
        raw |= {"by": "hash", "stratify": True, "sizes": {"train": 1 - test_size, "test": test_size}}
    if "group" in columns:
        raw["group"] = "group"
    if kind == "multilabel":
        raw["empty"] = "none"
    values, problems = check({"split": raw}, {"split": Section(SplitConfig)})
    refuse(problems, where="evaluate")
    notes: list[str] = []
    try:
        task = split_rows(values["split"], paths.folder, reporter=Reporter(message=notes.append))
    except DataError as error:
        raise DataError(_name_arguments(str(error))) from None
    path = folder / f"{DATASET}-task.parquet"
    task.write(path)
    return path, [_name_arguments(note) for note in notes]


def _name_arguments(message: str) -> str:
    """Replace the settings of the stage `split` in a message by the arguments of `evaluate`."""
    return message.replace("add samples or change `sizes`", "add rows, or change `test_size`").replace(
        "`sizes`", "`test_size`"
    )


def _as_text(column: pa.Array) -> pa.Array:
    """Return classes as text; if all numbers are whole, 1.0 becomes `1`."""
    values: Sequence[Any] = column.to_pylist()
    if any(isinstance(value, float) for value in values) and all(
        value is None or value == int(value) for value in values
    ):
        values = [None if value is None else int(value) for value in values]
    return pa.array([None if value is None else str(value) for value in values], pa.string())
