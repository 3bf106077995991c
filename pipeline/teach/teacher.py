"""Read a stored teacher: its logits and hints by sample key. Training reads teachers only through this class.

data/teachers/<name>/logits/          features: a row of logits per sample, or packed by `top_k`
                     logits.view0/    the logits of an augmented copy of every sample
                     <node>/          hints: the unpooled rows of a node
                     teacher.json     the identity of the teacher; written last
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones.spec import InputSpec
from pipeline.errors import DataError, StoreError, TrainingError, bullets, unknown
from pipeline.extract.config import folder_of
from pipeline.files import read_json
from pipeline.readers.augment import View, Views
from pipeline.readers.image import ImageReader
from pipeline.store import key_arrays
from pipeline.store.features import Features, Keys
from pipeline.store.identity import differences
from pipeline.task import Kind
from pipeline.teach import top_k
from pipeline.teach.config import LOGITS, hint_folder

JSON, FORMAT = "teacher.json", 1


@dataclass(frozen=True)
class Teacher:
    """The stored logits and hints of a teacher.

    identity: everything that determines the logits: the digest of the weights, or of the head's file with the addresses
              of its features; the conversion to logits; the preprocessing of images.
    views:    the settings of the augmented copies with logits; None if there are none.
    """

    folder: Path
    kind: Kind
    classes: Sequence[str]
    identity: Mapping[str, Any]
    views: Views | None
    record: Mapping[str, Any]
    scores: Sequence[Features]
    """The logits of the original samples, then of each view."""

    nodes: Mapping[str, Sequence[Features]]
    """The rows of each hint by its node: of the original samples, then of each view."""

    @classmethod
    def open(cls, folder: Path, *, check: bool = True) -> "Teacher":
        """Open a teacher; `check` as in `Features.open`.

        Raises TrainingError if the folder has no teacher, and StoreError, with the fields that differ, if the rows are
        other ones than teacher.json was written for.
        """
        path = folder / JSON
        if not path.is_file():
            raise TrainingError(
                f"{folder}: expected a teacher with {JSON}, got none. Run `icecore repro teach@{folder.name}`."
            )
        record = read_json(path)
        if record.get("format") != FORMAT:
            raise TrainingError(
                f"{path}: expected a teacher of format {FORMAT}, got {record.get('format')}. Run `icecore repro -f "
                f"teach@{folder.name}`."
            )
        columns = {
            name: _open_features(folder / name, column, check=check) for name, column in record["columns"].items()
        }
        views = None if record["views"] is None else Views.model_validate(record["views"])
        numbers = [None, *range(0 if views is None else views.count)]
        nodes = {
            node: [columns[folder_of(hint_folder(node), number)] for number in numbers] for node in record["hints"]
        }
        return cls(
            folder=folder,
            kind=record["kind"],
            classes=tuple(record["classes"]),
            identity=record["identity"],
            views=views,
            record=record,
            scores=[columns[folder_of(LOGITS, number)] for number in numbers],
            nodes=nodes,
        )

    @property
    def name(self) -> str:
        """Return the name of the teacher's folder."""
        return self.folder.name

    @property
    def top_k(self) -> top_k.TopK | None:
        """Return how logits are packed; None if all logits are stored."""
        packing = self.identity["top_k"]
        return None if packing is None else top_k.TopK(**packing)

    @property
    def addresses(self) -> dict[str, str]:
        """Return the cache address of each folder of rows."""
        return {name: column["address"] for name, column in self.record["columns"].items()}

    @property
    def keys(self) -> np.ndarray:
        """Return the keys of all samples with logits, S16, sorted."""
        return self.scores[0].key_array

    def has(self, keys: Keys) -> np.ndarray:
        """Return which samples have logits, also for all views: bool (n,)."""
        known: np.ndarray = np.logical_and.reduce([features.has(keys) for features in self.scores])
        return known

    def logits(self, keys: Keys, view: int | None = None) -> np.ndarray:
        """Read logits float32 (n, classes) in the order of the keys; `view`: None for the original samples.

        Raises DataError with the number of samples without logits, and TrainingError for a view that is not stored.
        """
        rows = self._load(self._of_view(self.scores, view), keys)
        return rows if self.top_k is None else top_k.unpack(rows, len(self.classes))

    def hints(self, node: str, keys: Keys, view: int | None = None) -> np.ndarray:
        """Read rows float32 (n, *shape) of a node; raises as `logits` does, and TrainingError for an unknown node."""
        return self._load(self._of_view(self._node(node), view), keys)

    def hint_shape(self, node: str) -> tuple[int, ...]:
        """Return the shape of a row of a node."""
        return self._node(node)[0].shape

    def view(self, number: int) -> View:
        """Return the settings of a view; raises TrainingError for a view that is not stored."""
        self._of_view(self.scores, number)
        assert self.views is not None, "it has views"
        return self.views.view(number)

    def read_as(self, inputs: InputSpec) -> list[str]:
        """Return the differences to another preprocessing of images, apart from mean and standard deviation."""
        own = {name: value for name, value in ImageReader(inputs.image).identity.items() if name != "view"}
        return differences(self.identity["reader"], own)

    def _node(self, node: str) -> Sequence[Features]:
        if node not in self.nodes:
            raise TrainingError(f"{self.folder}: {unknown('hint', node, self.nodes)} Add it to the teacher's `hints`.")
        return self.nodes[node]

    def _of_view(self, stored: Sequence[Features], view: int | None) -> Features:
        if view is None:
            return stored[0]
        if not 0 <= view < len(stored) - 1:
            raise TrainingError(
                f"{self.folder}: expected view {view}, got a teacher with {len(stored) - 1} views. Give the entry of "
                f"`teach` {view + 1} `views` at least, or ask for fewer."
            )
        features = stored[1 + view]
        assert self.views is not None, "it has views"
        asked = self.views.view(view).model_dump(mode="json")
        if problems := differences(features.identity["reader"]["view"], asked, path="view"):
            title = (
                f"{features.folder}: expected the view that {JSON} names, as it is made here, got another. Run teach "
                "again"
            )
            raise StoreError(bullets(title, problems))
        return features

    def _load(self, stored: Features, keys: Keys) -> np.ndarray:
        has_rows = stored.has(keys)
        if not has_rows.all():
            missing = np.asarray(keys)[~has_rows]
            first = key_arrays.to_hex(missing[:1])[0] if missing.dtype == key_arrays.DTYPE else str(missing[0])
            raise DataError(
                f"{stored.folder}: expected scores of all {len(has_rows):,} samples, got none of {len(missing):,}, the "
                f"first is {first}. Add their data set to the teacher's `datasets`, or run "
                f"`icecore repro teach@{self.name}`."
            )
        return stored.load(keys).astype(np.float32, copy=False)


def check_compatible(teachers: Sequence[Teacher]) -> None:
    """Raise TrainingError unless all teachers have the same kind of task, views and preprocessing."""
    for other in teachers[1:]:
        own = _shared_fields(teachers[0])
        if problems := differences(own, _shared_fields(other)):
            title = (
                f"{other.folder}: expected a teacher that goes together with {teachers[0].folder}, got another. Teach "
                "both with the same settings, or take one of them"
            )
            raise TrainingError(bullets(title, problems))


def _shared_fields(teacher: Teacher) -> dict[str, Any]:
    views = None if teacher.views is None else teacher.views.model_dump(mode="json")
    return {"kind": teacher.kind, "views": views, "reader": dict(teacher.identity["reader"])}


def _open_features(folder: Path, column: Mapping[str, Any], *, check: bool) -> Features:
    features = Features.open(folder, check=check)
    if features.index.address != column["address"]:
        problems = differences(column["identity"], features.identity)
        title = f"{folder}: expected the rows that {JSON} was written for, got others. Run teach again"
        raise StoreError(bullets(title, problems))
    return features
