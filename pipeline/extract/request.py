"""The request of an extraction: settings, samples, columns of the cache, and the plan of missing rows."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.backbones.spec import BackboneSpec, Probe, TapSpec, read_spec, resolve, row_shape
from pipeline.errors import BackboneError, StoreError, bullets
from pipeline.extract.config import ExtractConfig, folder_of
from pipeline.extract.plan import Plan, Unit, plan
from pipeline.loading.samples import Samples, read_samples
from pipeline.readers.augment import View
from pipeline.store import cache, key_arrays
from pipeline.store.dtypes import ON_DISK
from pipeline.store.identity import identity
from pipeline.store.maintenance import remove_stale_files
from pipeline.store.shard_format import ShardRecord
from pipeline.store.use import hold

MAX_UNIT_ROWS = 65_536


@dataclass(frozen=True)
class Request:
    """Settings with aliases resolved to nodes, and their samples and columns of the cache.

    shards: the cached shards of each tap with samples of the request.
    stored: the number of samples in these shards.
    view: the augmented view of the samples; None for the clean samples.
    views: the requests of all augmented views.
    """

    config: ExtractConfig
    backbone: Path
    spec: BackboneSpec
    shapes: Mapping[str, tuple[int, ...]]
    samples: Samples
    columns: Mapping[str, cache.CacheEntry]
    shards: Mapping[str, list[ShardRecord]]
    stored: Mapping[str, int]
    plan: Plan
    view: View | None = None
    views: tuple["Request", ...] = ()

    @property
    def all(self) -> tuple["Request", ...]:
        """This request and the requests of its views."""
        return (self, *self.views)

    def folder(self, tap: str) -> str:
        """Return the name of a tap's folder."""
        return folder_of(tap, None if self.view is None else self.view.number)

    @property
    def whole(self) -> Plan:
        """The plan of all views together; taps are named by their folders."""
        missing = {one.folder(tap): rows for one in self.all for tap, rows in one.plan.missing.items()}
        units = [
            Unit(unit.rows, tuple(one.folder(tap) for tap in unit.taps)) for one in self.all for unit in one.plan.units
        ]
        return Plan(len(self.samples), missing, tuple(units), passes=len(self.all))

    @property
    def rows(self) -> np.ndarray:
        """The indices of all samples that the network must run on."""
        return np.concatenate([unit.rows for unit in self.plan.units] or [np.empty(0, np.int64)])

    @property
    def missing_taps(self) -> tuple[str, ...]:
        """The taps with missing rows."""
        return tuple(tap for tap, missing in self.plan.missing.items() if missing)


def read(config: ExtractConfig, *, backbone: Path, manifests: Path, cache_root: Path) -> Request:
    """Read the settings, the data sets and the cache, without writing anything.

    Raises BackboneError for a tap that does not exist and for poolings that do not fit.
    """
    spec = read_spec(backbone)
    samples = read_samples(manifests, config.datasets)
    return of_samples(config, backbone=backbone, spec=spec, samples=samples, cache_root=cache_root)


def of_samples(
    config: ExtractConfig,
    *,
    backbone: Path,
    spec: BackboneSpec,
    samples: Samples,
    cache_root: Path,
    unit_rows: int | None = None,
) -> Request:
    """Return the request for samples that are read already. unit_rows: the most rows of a unit, if not `shard_mb`."""
    views = [config.views.view(number) for number in range(config.views.count)] if config.views is not None else []
    clean, *others = (
        _of_view(
            config,
            view,
            backbone=backbone,
            spec=spec.viewed(view),
            samples=samples,
            cache_root=cache_root,
            unit_rows=unit_rows,
        )
        for view in (None, *views)
    )
    return replace(clean, views=tuple(others))


def _of_view(
    config: ExtractConfig,
    view: View | None,
    *,
    backbone: Path,
    spec: BackboneSpec,
    samples: Samples,
    cache_root: Path,
    unit_rows: int | None,
) -> Request:
    config, shapes = checked(config, spec, where=str(backbone))
    columns = {
        tap: cache.column(cache_root, identity(spec, config.taps[tap], precision=config.precision))
        for tap in config.taps
    }
    known, shards, stored = {}, {}, {}
    for tap, column in columns.items():
        shards[tap], _, held = cache.shards_for_keys(column, samples.keys)
        stored[tap] = int(held.sum())
        known[tap] = held | _rejected(column, samples.keys)
    todo = plan(known, unit_rows=_unit_rows(config, shapes, unit_rows), containers=samples.containers)
    return Request(config, backbone, spec, shapes, samples, columns, shards, stored, todo, view)


def checked(
    config: ExtractConfig, spec: BackboneSpec, *, where: str
) -> tuple[ExtractConfig, dict[str, tuple[int, ...]]]:
    """Return the settings with aliases resolved to nodes, and the shape of a stored row of each tap.

    Raises BackboneError for a tap that does not exist and for poolings that do not fit.
    """
    config = config.model_copy(update={"taps": resolve(config.taps, spec, where=where)})
    return config, row_shapes(config.taps, spec, where=where)


def row_shapes(specs: Mapping[str, TapSpec], spec: BackboneSpec, *, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of a stored row of each tap; raises BackboneError for poolings that do not fit."""
    shapes, problems = {}, []
    for tap, wanted in specs.items():
        try:
            shapes[tap] = row_shape(spec.taps[wanted.node], wanted)
        except ValueError as error:
            problems.append(f"tap {tap!r}, node {wanted.node!r}: {error}. Use none or flatten.")
    if problems:
        raise BackboneError(bullets(f"{where}: poolings that do not fit", problems))
    return shapes


def _unit_rows(config: ExtractConfig, shapes: Mapping[str, tuple[int, ...]], most: int | None) -> int:
    """Return the rows per unit, a multiple of the batch size; a shard of the widest tap has about `shard_mb`."""
    widest = max(int(np.prod(shapes[tap])) * np.dtype(ON_DISK[config.taps[tap].dtype]).itemsize for tap in shapes)
    rows = config.shard_mb * 2**20 // widest
    # Shards must not depend on a batch size that is measured on this machine.
    return max(1, min(rows, most or MAX_UNIT_ROWS, MAX_UNIT_ROWS) // config.batch) * config.batch


def _rejected(column: cache.CacheEntry, keys: np.ndarray) -> np.ndarray:
    """Return which samples were rejected before, as bool (samples,)."""
    result = np.zeros(len(keys), dtype=bool)
    places = key_arrays.find(keys, key_arrays.from_hex(sorted(column.rejected())))
    result[places[places >= 0]] = True
    return result


def refuse_other_values(request: Request) -> None:
    """Raise StoreError if cached rows come from the same weights and settings, but with other output values."""
    for name, column in _columns_of_views(request):
        if request.spec.probe is None or column.probe is None:
            continue
        computed_by = Probe.model_validate(column.probe)
        if computed_by == request.spec.probe:
            continue
        from pipeline.backbones import reference_output  # which imports torch

        off = reference_output.difference(computed_by, request.spec.probe)
        if off > reference_output.TOLERANCE:
            raise StoreError(
                f"{name}: expected cached rows of a network with the values of this one, got rows of "
                f"one whose outputs are off by {off:.2g} of the largest. "
                f"{reference_output.describe_versions(computed_by)}. They must not be mixed: remove them with "
                f"`icecore cache prune --address {column.address[:12]}`, or install what they were computed with."
            )


def keep_probes(request: Request) -> None:
    """Store the network's output for a fixed image in each column that gets rows."""
    if request.spec.probe is not None:
        for tap in request.missing_taps:
            if request.columns[tap].probe is None:
                request.columns[tap].keep_probe(request.spec.probe.model_dump(mode="json"))


@contextlib.contextmanager
def keep_in_use(request: Request) -> Iterator[None]:
    """Protect the cached rows of a request and its views from `icecore cache prune`."""
    with contextlib.ExitStack() as stack:
        for _, column in _columns_of_views(request):
            stack.enter_context(hold(column.folder))
        yield


def remove_stale(request: Request) -> None:
    """Remove the temporary files of dead processes in the cache, for all taps and views of a request."""
    for _, column in _columns_of_views(request):
        remove_stale_files(column)


def _columns_of_views(request: Request) -> Iterator[tuple[str, cache.CacheEntry]]:
    """Yield the column of each tap of each view, with the name of its folder."""
    for view in request.all:
        for tap, column in view.columns.items():
            yield view.folder(tap), column
