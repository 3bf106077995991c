"""Describe an artefact: its kind, its contents and its inputs."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.files import AnyPath, as_path, check_readable, read_json
from pipeline.predictions import SCORES
from pipeline.task import KIND, RARE, describe_rare


def describe(path: AnyPath) -> dict[str, Any]:
    """Return a description of an artefact as JSON values; raises DataError if the path is not an artefact."""
    path = as_path(path, "describe: path")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    try:
        for marker, reader in READERS.items():
            if (path / marker).is_file():
                return {"path": str(path), **reader(path)}
        if path.suffix in (".parquet", ".json"):
            return {"path": str(path), **(_table(path) if path.suffix == ".parquet" else _numbers(path))}
    except ValueError as error:  # raised by readers of JSON and Parquet for truncated files
        raise DataError(f"{path}: damaged, or not what its name says: {error}") from None
    raise DataError(
        f"{path}: no artefact of icecore. Expected a folder with {' or '.join(READERS)}, "
        "a .parquet of manifests, tasks or predictions, or the .json of a run's metrics."
    )


def render(description: Mapping[str, Any], *, indent: int = 0) -> str:
    """Return a description as lines of text."""
    lines = []
    for name, value in description.items():
        pad = "  " * indent
        if isinstance(value, Mapping) and value:
            lines += [f"{pad}{name}:", render(value, indent=indent + 1)]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += [f"{pad}{name}:", *("  " * (indent + 1) + _line(item) for item in value)]
        else:
            lines.append(f"{pad}{name}: {_short(value)}")
    return "\n".join(lines)


def _line(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in item.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_short(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        text = ", ".join(map(str, value[:12]))
        return f"{text}, … ({len(value)} in all)" if len(value) > 12 else text
    return str(value)


def _backbone(path: Path) -> dict[str, Any]:
    from pipeline.backbones.spec import read_spec

    spec = read_spec(path).model_dump(mode="json")
    taps = {name: "×".join(map(str, tap["shape"])) for name, tap in spec.pop("taps").items()}
    return {"artefact": "backbone", **spec, "taps": taps}


def _features(path: Path) -> dict[str, Any]:
    from pipeline.store import index

    features = index.read(path).model_dump(mode="json")
    return {"artefact": "features", "bytes": sum(shard["bytes"] for shard in features["shards"]), **features}


def _model(path: Path) -> dict[str, Any]:
    from pipeline.model_record import HeadsRecord, read_record, to_json

    record = read_record(path)
    before = {fit.before_refit for fit in record.fits} if isinstance(record, HeadsRecord) else set()
    heads = sorted(file.stem for file in path.glob("*.skops") if file.name not in before)
    return {"artefact": "model", **to_json(record), "heads": heads}


def _teacher(path: Path) -> dict[str, Any]:
    return {"artefact": "teacher", **read_json(path / "teacher.json")}


READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "backbone.json": _backbone,
    "index.json": _features,
    "model.json": _model,
    "teacher.json": _teacher,
}
"""The function that describes a folder, by the file that identifies the kind of artefact."""


def _table(path: Path) -> dict[str, Any]:
    check_readable(path)
    schema, rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    columns = {name: str(kind) for name, kind in zip(schema.names, schema.types, strict=True)}
    content: dict[str, Any] = {"rows": rows, "columns": columns}
    if "predicted" in columns and KIND.encode() in (schema.metadata or {}):
        metadata = {name.decode(): value.decode() for name, value in schema.metadata.items()}
        return {
            "artefact": "predictions",
            **content,
            **{name: value for name, value in metadata.items() if name == KIND or name.startswith(SCORES)},
        }
    if {"key", "target", "split"} <= {*columns} and "predicted" not in columns:
        kind = (schema.metadata or {}).get(KIND.encode(), b"classification").decode()
        counted = ("split",) if kind == "regression" else ("split", "target")
        rare = json.loads((schema.metadata or {}).get(RARE.encode(), b"{}"))
        rare_classes = {"rare classes": describe_rare(rare, kind)} if rare else {}
        return {"artefact": "task", KIND: kind, **content, **_counts(path, *counted), **rare_classes}
    if {"key", "path", "size"} <= {*columns}:
        return {
            "artefact": "manifest",
            **content,
            **_counts(path, *(name for name in ("label", "domain", "split") if name in columns)),
        }
    raise DataError(f"{path}: a Parquet file, but no manifest, task or predictions of icecore.")


def _numbers(path: Path) -> dict[str, Any]:
    values = read_json(path)
    markers = {
        "evaluation": "selected",
        "comparison": "across",
        "metrics": "test_rows",
        "audit": "byte_duplicates",
        "extraction metrics": "rows_computed",
        "distillation metrics": "student",
        "digest": "weights_digest",
        "card": "cards",
    }
    for artefact, field in markers.items():
        if isinstance(values, dict) and field in values:
            return {"artefact": artefact, **values}
    raise DataError(f"{path}: a JSON file, but no metrics of an icecore run.")


def _counts(path: Path, *columns: str) -> dict[str, dict[str, int]]:
    table = pq.read_table(path, columns=list(columns))
    by_column = {name: Counter(_labels(table[name].to_pylist())) for name in columns}
    return {f"rows by {name}": dict(sorted(counts.items())) for name, counts in by_column.items()}


def _labels(values: Iterable[Any]) -> Iterator[str]:
    """Yield values as text; lists are flattened."""
    for value in values:
        yield from map(str, value) if isinstance(value, list) else [str(value)]
