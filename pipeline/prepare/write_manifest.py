"""Write the manifest of a data set, the table of its files, and the list of its excluded files."""

import csv
import json
import sqlite3
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import atomic
from pipeline.manifest import FILES_SCHEMA, ManifestPaths
from pipeline.prepare.config import SPLIT_COLUMNS
from pipeline.prepare.label_types import json_readers
from pipeline.prepare.labels import json_type

BLOCK = 16_384


def write_manifest(database: sqlite3.Connection, paths: ManifestPaths, types: dict[str, pa.DataType]) -> None:
    """Write all three from the table of samples. types: the type of each label column of the manifest."""
    places = [
        name
        for name in SPLIT_COLUMNS
        if name in types
        or database.execute("SELECT 1 FROM files WHERE json_extract(place, ?) NOT NULL", (f"$.{name}",)).fetchone()
    ]
    labels = {name: kind for name, kind in types.items() if name not in places}
    fields = [*FILES_SCHEMA, *(pa.field(n, t) for n, t in labels.items()), *(pa.field(n, pa.string()) for n in places)]
    schema = pa.schema(fields)
    plain = pa.schema([pa.field(column.name, json_type(column.type)) for column in schema])
    with atomic(paths.excluded) as temporary, temporary.open("w", newline="", encoding="utf-8") as listed:
        writer = csv.writer(listed)
        writer.writerow(["path", "size", "kind", "reason"])
        writer.writerows(
            database.execute("SELECT path, size, kind, reason FROM files WHERE kind IS NOT NULL ORDER BY path")
        )
    columns = "key, path, size, container, offset, labels, place"
    samples = database.execute(f"SELECT {columns} FROM files WHERE kind IS NULL ORDER BY path")
    readers = json_readers(plain)
    with ExitStack() as stack:
        rows = stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic(paths.rows)), schema))
        files = stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic(paths.files)), FILES_SCHEMA))
        while block := samples.fetchmany(BLOCK):
            records = [
                {
                    **{name: readers[name](value) for name, value in json.loads(labels).items()},
                    **json.loads(place),
                    **dict(zip(FILES_SCHEMA.names, fixed, strict=True)),
                }
                for *fixed, labels, place in block
            ]
            rows.write_table(pa.Table.from_pylist(records, schema=plain).cast(schema))
            files.write_table(pa.Table.from_pylist(records, schema=FILES_SCHEMA))
