"""A teacher's folder, open: its scores as logits, and its hints, by sample key. All that training sees of a teacher.

data/teachers/<name>/logits/          features: a row of logits per sample, or packed by `top_k`
                     logits.view0/    those of an augmented copy of every sample
                     <node>/          hints: the rows of a node, as they are
                     teacher.json     what made them; written last
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
    """Stored scores of one teacher.

    `identity`: what made them, such as the digest of the weights, or that of the head's file and the addresses of its
    features, how scores became logits, and how pixels are read. `views`: the augmented copies that it scored too.
    """

    folder: Path
    kind: Kind
    classes: Sequence[str]
    identity: Mapping[str, Any]
    views: Views | None
    record: Mapping[str, Any]
    scores: Sequence[Features]
    """Those of the samples as they are, then of each view."""

    nodes: Mapping[str, Sequence[Features]]
    """The same of each hint, by its node."""

    @classmethod
    def open(cls, folder: Path, *, check: bool = True) -> "Teacher":
        """Open a teacher; `check` as `Features.open` has it.

        Raises TrainingError where there is none, and StoreError where its rows are not those that teacher.json was
        written for, with the fields that differ.
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
        """Return which logits of a row are stored; None: all."""
        packing = self.identity["top_k"]
        return None if packing is None else top_k.TopK(**packing)

    @property
    def addresses(self) -> dict[str, str]:
        """Return the addresses of all stored rows, by their folder."""
        return {name: column["address"] for name, column in self.record["columns"].items()}

    @property
    def keys(self) -> np.ndarray:
        """Return all keys that have scores, S16, sorted."""
        return self.scores[0].key_array

    def has(self, keys: Keys) -> np.ndarray:
        """Return which samples have scores, and those of all views: bool (n,)."""
        known: np.ndarray = np.logical_and.reduce([features.has(keys) for features in self.scores])
        return known

    def logits(self, keys: Keys, view: int | None = None) -> np.ndarray:
        """Read logits float32 (n, classes) of samples, in the order of the keys; `view`: of that augmented copy.

        Raises DataError that counts samples without scores, and TrainingError for a view that is not there.
        """
        rows = self._load(self._of_view(self.scores, view), keys)
        return rows if self.top_k is None else top_k.unpack(rows, len(self.classes))

    def hints(self, node: str, keys: Keys, view: int | None = None) -> np.ndarray:
        """Read rows float32 (n, *shape) of a node; raises what `logits` does, and TrainingError for another node."""
        return self._load(self._of_view(self._node(node), view), keys)

    def hint_shape(self, node: str) -> tuple[int, ...]:
        """Return the shape of a row of a node."""
        return self._node(node)[0].shape

    def view(self, number: int) -> View:
        """Return what makes the pixels of a view; raises TrainingError as `logits` does."""
        self._of_view(self.scores, number)
        assert self.views is not None, "it has views"
        return self.views.view(number)

    def read_as(self, inputs: InputSpec) -> list[str]:
        """Return in which fields other inputs read images differently; mean and deviation of pixels do not count."""
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
        there = stored.has(keys)
        if not there.all():
            missing = np.asarray(keys)[~there]
            first = key_arrays.to_hex(missing[:1])[0] if missing.dtype == key_arrays.DTYPE else str(missing[0])
            raise DataError(
                f"{stored.folder}: expected scores of all {len(there):,} samples, got none of {len(missing):,}, the "
                f"first is {first}. Add their data set to the teacher's `datasets`, or run "
                f"`icecore repro teach@{self.name}`."
            )
        return stored.load(keys).astype(np.float32, copy=False)


def check_compatible(teachers: Sequence[Teacher]) -> None:
    """Raise TrainingError unless teachers can teach together: of one kind, of the same images and views, read alike."""
    for other in teachers[1:]:
        own = _compared(teachers[0])
        if problems := differences(own, _compared(other)):
            title = (
                f"{other.folder}: expected a teacher that goes together with {teachers[0].folder}, got another. Teach "
                "both with the same settings, or take one of them"
            )
            raise TrainingError(bullets(title, problems))


def _compared(teacher: Teacher) -> dict[str, Any]:
    views = None if teacher.views is None else teacher.views.model_dump(mode="json")
    return {"kind": teacher.kind, "views": views, "reader": dict(teacher.identity["reader"])}


def _open_features(folder: Path, column: Mapping[str, Any], *, check: bool) -> Features:
    features = Features.open(folder, check=check)
    if features.index.address != column["address"]:
        problems = differences(column["identity"], features.identity)
        title = f"{folder}: expected the rows that {JSON} was written for, got others. Run teach again"
        raise StoreError(bullets(title, problems))
    return features
