"""`icecore cache`: list, verify, repair and prune the feature cache."""

import json
from typing import Annotated, Any

import typer

from pipeline.errors import counted

app = typer.Typer(help="The feature cache that all projects of this machine share.", no_args_is_help=True)


@app.command("list")
def cache_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List the columns of the cache with content, size and date of the last use; then the other folders of the cache.

    Example:

      icecore cache list
    """
    from datetime import UTC, datetime

    from pipeline.store import cache, location, maintenance

    root = location.default_root()
    rows: list[dict[str, Any]] = [
        {
            "address": column.address,
            "network": column.identity.get("architecture", {}),
            "node": column.identity.get("node"),
            "pool": column.identity.get("pool"),
            "dtype": column.identity.get("dtype"),
            "shards": len(column.records()),
            "rows": sum(record.rows for record in column.records()),
            "bytes": maintenance.size(column),
            "last_used": datetime.fromtimestamp(column.last_used(), UTC).isoformat(timespec="seconds"),
        }
        for column in cache.columns(root)
    ]
    others = [entry for entry in maintenance.entries(root) if entry.column is None]
    folders: list[dict[str, Any]] = [
        {
            "folder": folder,
            "entries": sum(entry.folder == folder for entry in others),
            "bytes": sum(entry.bytes for entry in others if entry.folder == folder),
        }
        for folder in dict.fromkeys(entry.folder for entry in others)
    ]
    if as_json:
        typer.echo(json.dumps([*rows, *folders], indent=2, ensure_ascii=False))
        return
    for row in rows:
        name = row["network"].get("name") or row["network"].get("family")
        typer.echo(
            f"{row['address'][:12]}  {row['last_used'][:10]}  {row['rows']:>12,} rows  {row['bytes'] / 1e6:>9,.1f} MB "
            f" {name} {row['node']} {row['pool']} {row['dtype']}"
        )
    for group in folders:
        typer.echo(
            f"{group['folder']}/: {counted(group['entries'], 'entry', 'entries')}, {group['bytes'] / 1e6:,.1f} MB"
        )
    total = sum(row["bytes"] for row in [*rows, *folders])
    typer.echo(f"{root}: {counted(len(rows), 'column')}, {total / 1e6:,.1f} MB")


@app.command("verify")
def cache_verify(
    full: Annotated[bool, typer.Option("--full", help="Read every byte, not only sizes and keys.")] = False,
) -> None:
    """Check all shards; print the damaged ones, and exit with 1 if there are any.

    Example:

      icecore cache verify --full
    """
    if _check_shards(full=full, drop=False):
        raise SystemExit(1)


@app.command("repair")
def cache_repair() -> None:
    """Read every byte of the cache and drop damaged shards; the next extraction computes their rows again.

    Example:

      icecore cache repair && icecore repro --force extract@mobilenet
    """
    _check_shards(full=True, drop=True)


def _check_shards(*, full: bool, drop: bool) -> int:
    """Print the damaged shards of the cache, drop them if `drop`, and return their number."""
    from pipeline.store import cache, location, maintenance

    shards, damaged = 0, 0
    for column in cache.columns(location.default_root()):
        shards += len(column.records())
        for record, problem in list(maintenance.find_damage(column, whole=full)):
            damaged += 1
            typer.echo(problem)
            if drop:
                column.drop(record)
    dropped = " and dropped" if drop and damaged else ""
    typer.echo(f"{location.default_root()}: {counted(shards, 'shard')}, {damaged} damaged{dropped}")
    return damaged


@app.command("prune")
def cache_prune(
    unused_for: Annotated[
        str | None, typer.Option(help="Remove entries that no project used for this time: 12h, 30d, 8w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Remove the longest unused entries until the cache is as small: 200GB.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Remove the columns whose address begins with these digits.")
    ] = None,
) -> None:
    """Remove unused entries: columns, graphs, decoded images, trainings.

    Features that a project links below data/features/ stay there; their bytes are freed when no project links them.

    Examples:

      icecore cache prune --unused-for 30d --max-size 200GB

      icecore cache prune --address 1a2b3c4d5e6f
    """
    import time

    from pipeline.store import location, maintenance

    limit = None if max_size is None else maintenance.parse_size(max_size)
    seconds = None if unused_for is None else maintenance.parse_duration(unused_for)
    root = location.default_root()
    removed = maintenance.prune(root, unused_for=seconds, max_bytes=limit, address=address, now=time.time())
    for entry in removed:
        typer.echo(f"removed {entry.name}")
    columns = sum(entry.column is not None for entry in removed)
    others = len(removed) - columns
    typer.echo(
        f"{root}: {counted(columns, 'column')} removed"
        + (f", and {counted(others, 'other entry', 'other entries')}" if others else "")
    )
