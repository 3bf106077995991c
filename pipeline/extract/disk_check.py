"""Check that an extraction fits on the disk, and suggest settings that would fit: int8, mean pooling, fewer taps."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.backbones.spec import WIDE, TapSpec
from pipeline.errors import counted
from pipeline.extract import disk_forecast
from pipeline.extract.disk_forecast import Forecast, Size
from pipeline.extract.request import Request, of_samples
from pipeline.runtime import Reporter, gpus
from pipeline.store.shard_format import path_of
from pipeline.text import human


def forecast_disk(request: Request, *, cache_root: Path, out: Path) -> Forecast:
    """Return the bytes of a request with all of its views, and the free bytes.

    The number of processes of an existing cluster is not known yet, so one is assumed.
    """
    run, plan = request.config.run, request.whole
    sizes = disk_forecast.sizes(
        plan,
        {one.folder(tap): column.layout(one.shapes[tap]) for one in request.all for tap, column in one.columns.items()},
        processes=run.processes(gpus()) if run.scheduler is None else 1,
    )
    linked = sum(
        record.bytes
        for one in request.all
        for tap, records in one.shards.items()
        for record in records
        if not path_of(out / one.folder(tap), record.name).exists()
    )
    written = sum(size.bytes for size in sizes.values())
    spooled = max(sum(sizes[one.folder(tap)].spool for tap in one.columns) for one in request.all)  # view after view
    spaces = disk_forecast.spaces(cache_root=cache_root, out=out, written=written, spooled=spooled, linked=linked)
    return Forecast(plan, sizes, spaces)


def check_disk(request: Request, *, cache_root: Path, out: Path, reporter: Reporter) -> Forecast:
    """Report the forecast of a request, and return it.

    Raises StoreError with alternatives if the features do not fit; with `disk: warn`, this is only a message.
    """
    forecast = forecast_disk(request, cache_root=cache_root, out=out)
    reporter.message(forecast)
    for line in describe_wide_taps(request):
        reporter.message(line)
    shortage = explain_shortage(request, forecast, cache_root=cache_root, out=out)
    if shortage is not None and request.config.disk == "warn":
        reporter.message(shortage)
    else:
        disk_forecast.raise_if_short(shortage)
    return forecast


def describe_wide_taps(request: Request) -> list[str]:
    """Return a line for each tap whose rows have more than `WIDE` values, with their bytes."""
    lines = []
    for tap, shape in request.shapes.items():
        width, size = math.prod(shape), request.columns[tap].layout(shape).row_bytes
        if width > WIDE:
            lines.append(
                f"note: {tap} has {counted(width, 'value')} per sample, {human(size)} each and "
                f"{human(size * len(request.samples.keys) * len(request.all))} for all samples. If a vector is meant, "
                "set a `pool`, `project`, or the node `penultimate`"
            )
    return lines


def explain_shortage(request: Request, forecast: Forecast, *, cache_root: Path, out: Path) -> str | None:
    """Return the message for a request that does not fit, with alternatives; None if it fits."""
    if forecast.fits:
        return None
    others = {label: _with(request, changes, cache_root, out) for label, changes in _others(request, forecast)}
    return disk_forecast.shortage_message(forecast, others)


def _others(request: Request, forecast: Forecast) -> Iterator[tuple[str, dict[str, Any]]]:
    taps = dict(request.config.taps)
    int8 = {tap: spec.model_copy(update={"dtype": "int8"}) for tap, spec in taps.items()}
    mean = {tap: _mean(request, tap) for tap in taps}
    if int8 != taps:
        yield "all taps in int8", {"taps": int8}
    if mean != taps:
        changed = [tap for tap in taps if mean[tap] != taps[tap]]
        yield f"{', '.join(changed)} pooled by mean", {"taps": mean}
        smallest = {tap: spec.model_copy(update={"dtype": "int8"}) for tap, spec in mean.items()}
        yield "the same in int8", {"taps": smallest}
    if request.views:
        yield "without views", {"views": None}
    sizes = {tap: _of_all_views(request, forecast, tap) for tap in taps}
    needed = sum(size.needed for size in sizes.values())
    room = needed - max(space.needed - space.free for space in forecast.spaces)
    dropped = disk_forecast.fewer(sizes, room)
    if dropped:
        yield f"without {', '.join(dropped)}", {"taps": {tap: taps[tap] for tap in taps if tap not in dropped}}


def _of_all_views(request: Request, forecast: Forecast, tap: str) -> Size:
    parts = [forecast.sizes[one.folder(tap)] for one in request.all]
    return replace(parts[0], bytes=sum(size.bytes for size in parts), spool=max(size.spool for size in parts))


def _mean(request: Request, tap: str) -> TapSpec:
    """Return the tap with mean pooling, if that is possible and smaller."""
    spec = request.config.taps[tap]
    node = request.spec.taps[spec.node]
    pools = {"CHW": "mean", "HWC": "mean", "LC": "mean_tokens"}
    if len(node.shape) < 2 or node.layout not in pools or spec.project is not None:
        return spec
    pooled = spec.model_copy(update={"pool": pools[node.layout]})
    channels = node.shape[0] if node.layout == "CHW" else node.shape[-1]
    larger = (
        request.columns[tap].layout(request.shapes[tap]).row_bytes > request.columns[tap].layout((channels,)).row_bytes
    )
    return pooled if larger else spec


def _with(request: Request, changes: Mapping[str, Any], cache_root: Path, out: Path) -> Forecast:
    """Return the forecast of a request with other settings, for which the cache may have rows too."""
    config = request.config.model_copy(update=changes)
    other = of_samples(
        config, backbone=request.backbone, spec=request.spec, samples=request.samples, cache_root=cache_root
    )
    return forecast_disk(other, cache_root=cache_root, out=out)
