"""Write a teacher: what is new of its rows is computed into the feature cache, then its folders and teacher.json."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.backbones.spec import resolve
from pipeline.errors import TrainingError, counted
from pipeline.extract.config import folder_of
from pipeline.extract.run import commit, extract, refuse_too_many
from pipeline.files import write_json
from pipeline.loading.samples import Samples, read_samples
from pipeline.model_record import has_record, read_record
from pipeline.readers.augment import Views
from pipeline.runtime import SILENT, Reporter
from pipeline.store import cache, index
from pipeline.task import Kind
from pipeline.teach import head_teacher, network_teacher, top_k_extract
from pipeline.teach.config import LOGITS, TeachConfig, hint_folder
from pipeline.teach.teacher import FORMAT, JSON
from pipeline.teach.top_k import TopK


@dataclass(frozen=True)
class Paths(files.Paths):
    """Where a teacher is read from and written to. `run`: the folder of its run; None: the backbone by itself."""

    run: Path | None
    backbone: Path
    features: Path
    manifests: Path
    out: Path
    cache: Path


@dataclass(frozen=True)
class TeachSummary:
    """What was done. `computed`: rows of all folders that were not known. `deviation`: of `top_k`."""

    kind: Kind
    classes: int
    rows: int
    rejected: int
    computed: int
    views: int
    scores: str
    deviation: Mapping[str, Any] | None

    def __str__(self) -> str:
        views = f" and {counted(self.views, 'view')} of each" if self.views else ""
        classes = counted(self.classes, "class", "classes")
        text = f"{counted(self.rows, 'sample')}{views}, {self.rejected:,} rejected; {classes}: {self.scores}"
        if self.deviation is not None:
            off = ", ".join(
                f"{error['mean']:.2g} (at most {error['max']:.2g}) at temperature {error['temperature']:g}"
                for error in self.deviation["total_variation"]
            )
            text += f"; total variation to all logits: {off}"
        return f"{text}; {counted(self.computed, 'row')} computed"


@dataclass(frozen=True)
class _Made:
    """What teacher.json says besides the rows."""

    kind: Kind
    classes: tuple[str, ...]
    identity: dict[str, Any]
    views: Views | None
    hints: tuple[str, ...]
    refused: Mapping[str, str]
    computed: int
    source: dict[str, Any]


def teach(
    config: TeachConfig,
    paths: Paths,
    *,
    reporter: Reporter = SILENT,
) -> TeachSummary:
    """Write `paths.out`; rows that were ever computed come from the cache.

    Raises TrainingError, HeadError, BackboneError or DataError where run, backbone, features and settings do not go
    together, and what extraction raises.
    """
    samples = read_samples(paths.manifests, config.datasets)
    (paths.out / JSON).unlink(missing_ok=True)
    if _is_head(config, paths):
        stored_teacher = _from_head(config, paths, samples, reporter)
    else:
        stored_teacher = _from_network(config, paths, samples, reporter)
    refuse_too_many(config.max_rejected, len(samples), stored_teacher.refused)
    numbers = [None, *range(0 if stored_teacher.views is None else stored_teacher.views.count)]
    folders = [
        folder_of(name, number) for name in (LOGITS, *map(hint_folder, stored_teacher.hints)) for number in numbers
    ]
    opened = {name: index.read(paths.out / name) for name in folders}
    off = None
    if stored_teacher.identity["top_k"] is not None:
        off = top_k_extract.truncation_error(cache.column(paths.cache, opened[LOGITS].identity), samples.keys)
    write_json(
        paths.out / JSON,
        {
            "format": FORMAT,
            "run": config.run,
            "settings": config.model_dump(mode="json"),
            "source": stored_teacher.source,
            "kind": stored_teacher.kind,
            "classes": list(stored_teacher.classes),
            "identity": stored_teacher.identity,
            "views": None if stored_teacher.views is None else stored_teacher.views.model_dump(mode="json"),
            "hints": list(stored_teacher.hints),
            "top_k": off,
            "rows": opened[LOGITS].stored,
            "rejected": opened[LOGITS].samples - opened[LOGITS].stored,
            "columns": {
                name: {"address": features_index.address, "identity": features_index.identity}
                for name, features_index in opened.items()
            },
        },
    )
    for path in paths.out.iterdir():
        if path.is_dir() and path.name not in opened:
            shutil.rmtree(path)
    stored = opened[LOGITS]
    return TeachSummary(
        stored_teacher.kind,
        len(stored_teacher.classes),
        stored.stored,
        stored.samples - stored.stored,
        stored_teacher.computed,
        len(numbers) - 1,
        stored_teacher.identity["scores"],
        off,
    )


def _is_head(config: TeachConfig, paths: Paths) -> bool:
    """Return whether the run is one of `fit`; raises TrainingError where there is no such run."""
    if paths.run is None:
        return False
    if not has_record(paths.run):
        raise TrainingError(
            f"{paths.run}: expected the folder of a run with model.json, got none. Run fit or finetune of "
            f"{config.run} first."
        )
    return read_record(paths.run).kind == "heads"


def _packing(config: TeachConfig, classes: int) -> TopK | None:
    """Return which logits of a row are stored; None where all are."""
    few = config.top_k is not None and config.top_k < classes
    return TopK(config.top_k, config.top_k_temperature) if few and config.top_k else None


def _from_network(config: TeachConfig, paths: Paths, samples: Samples, reporter: Reporter) -> _Made:
    if isinstance(config.views, int):
        raise TrainingError(
            f"{config.run}: expected `views` with `count` and `augment` for a network, which sees them itself, got a "
            "number."
        )
    own = network_teacher.open_network(paths.run, paths.backbone, classes=config.classes)
    packing = _packing(config, len(own.classes))
    wanted = network_teacher.extraction_config(config, scores=True, hints=True)
    nodes = resolve(wanted.taps, own.spec, where=str(own.folder))
    place = top_k_extract.PackPaths(own.folder, paths.manifests, paths.out, paths.cache)
    refused: dict[str, str] = {}
    computed = 0
    if packing is not None:
        alone = network_teacher.extraction_config(config, scores=True, hints=False)
        refused, ran = top_k_extract.pack_logits(
            alone,
            packing,
            spec=own.spec,
            samples=samples,
            place=place,
            reporter=reporter,
        )
        computed += ran * (1 + (0 if config.views is None else config.views.count))
    if packing is None or config.hints:
        extracted = extract(
            network_teacher.extraction_config(config, scores=packing is None, hints=True),
            backbone=own.folder,
            manifests=paths.manifests,
            out=paths.out,
            cache_root=paths.cache,
            samples=samples,
            reporter=reporter,
        )
        computed += sum(extracted.plan.missing.values())
    source = {"run": config.run, "weights": own.spec.weights_digest, "nodes": {n: t.node for n, t in nodes.items()}}
    return _Made(
        own.kind,
        own.classes,
        {**own.identity(config), "top_k": None if packing is None else asdict(packing)},
        config.views,
        config.hints,
        refused,
        computed,
        source,
    )


def _from_head(config: TeachConfig, paths: Paths, samples: Samples, reporter: Reporter) -> _Made:
    assert paths.run is not None, "a head is of a run"
    if config.hints:
        raise TrainingError(
            f"{config.run}: expected `hints` with a network, which has nodes, got a run of fit. Leave them out."
        )
    own = head_teacher.open_head(config, paths.run, paths.features)
    classes = tuple(own.model.classes)
    packing = _packing(config, len(classes))
    width = len(classes) if packing is None else packing.width
    refused: dict[str, str] = {}
    computed = 0
    for number in range(len(own.taps)):
        column = cache.column(paths.cache, own.column(number, packing))
        held = cache.shards_for_keys(column, samples.keys)[2]
        without = head_teacher.rejected_samples(own, number, samples.keys)
        has = np.logical_and.reduce([tap.has(samples.keys) for tap in own.taps[number]])
        missing = samples.keys[has & ~held]
        head_teacher.store_logits(own, number, column, missing, packing=packing)
        reporter.progress((number + 1) * len(samples), len(own.taps) * len(samples))
        computed += len(missing)
        folder = paths.out / folder_of(LOGITS, None if number == 0 else number - 1)
        refused |= commit(folder, column, samples.keys, (width,), without)
    fit = {name: getattr(own.fit, name) for name in ("head", "input", "labels", "draw", "file")}
    identity = {**own.identity, "top_k": None if packing is None else asdict(packing)}
    return _Made(own.model.kind, classes, identity, own.views, (), refused, computed, {"run": config.run, **fit})
