"""Write teacher.json after the rows of a teacher are stored, and return the summary."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import counted
from pipeline.extract.config import folder_of
from pipeline.files import write_json
from pipeline.loading.samples import Samples
from pipeline.readers.augment import Views
from pipeline.store import cache, index
from pipeline.task import Kind
from pipeline.teach import top_k_extract
from pipeline.teach.config import LOGITS, TeachConfig, hint_folder
from pipeline.teach.teacher import FORMAT, JSON
from pipeline.teach.top_k import TopK


@dataclass(frozen=True)
class Paths(files.Paths):
    """The folders that a teacher is read from and written to. `run`: None for a backbone with its own classifier."""

    run: Path | None
    backbone: Path
    features: Path
    manifests: Path
    out: Path
    cache: Path


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher whose rows are stored, for teacher.json. `refused`: samples without logits, with reasons."""

    kind: Kind
    classes: tuple[str, ...]
    identity: dict[str, Any]
    views: Views | None
    hints: tuple[str, ...]
    refused: Mapping[str, str]
    computed: int
    source: dict[str, Any]


@dataclass(frozen=True)
class TeachSummary:
    """The summary of a teacher. `computed`: the number of new rows. `deviation`: the error of `top_k`."""

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


def write_teacher(config: TeachConfig, paths: Paths, samples: Samples, teacher: StoredTeacher) -> TeachSummary:
    """Write teacher.json, remove folders that are not in it, and return the summary."""
    numbers = [None, *range(0 if teacher.views is None else teacher.views.count)]
    folders = [folder_of(name, number) for name in (LOGITS, *map(hint_folder, teacher.hints)) for number in numbers]
    indexes = {name: index.read(paths.out / name) for name in folders}
    deviation = None
    if teacher.identity["top_k"] is not None:
        deviation = top_k_extract.truncation_error(cache.column(paths.cache, indexes[LOGITS].identity), samples.keys)
    rows, rejected = indexes[LOGITS].stored, indexes[LOGITS].samples - indexes[LOGITS].stored
    write_json(
        paths.out / JSON,
        {
            "format": FORMAT,
            "run": config.run,
            "settings": config.model_dump(mode="json"),
            "source": teacher.source,
            "kind": teacher.kind,
            "classes": list(teacher.classes),
            "identity": teacher.identity,
            "views": None if teacher.views is None else teacher.views.model_dump(mode="json"),
            "hints": list(teacher.hints),
            "top_k": deviation,
            "rows": rows,
            "rejected": rejected,
            "columns": {name: {"address": own.address, "identity": own.identity} for name, own in indexes.items()},
        },
    )
    for path in paths.out.iterdir():
        if path.is_dir() and path.name not in indexes:
            shutil.rmtree(path)
    return TeachSummary(
        kind=teacher.kind,
        classes=len(teacher.classes),
        rows=rows,
        rejected=rejected,
        computed=teacher.computed,
        views=len(numbers) - 1,
        scores=teacher.identity["scores"],
        deviation=deviation,
    )


def packing_of(config: TeachConfig, classes: int) -> TopK | None:
    """Return how logits are packed; None if all logits are stored."""
    few = config.top_k is not None and config.top_k < classes
    return TopK(config.top_k, config.top_k_temperature) if few and config.top_k else None
