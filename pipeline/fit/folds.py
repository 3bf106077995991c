"""Choose the held-out rows of a training set: the validation split, or cross-validation folds.

Folds divide all rows that the head may learn from. Folds are stratified by class, rows of one group stay together, and
if the test rows come from other domains than the rest, each fold is a domain. A class that would be missing from the
training rows of a fold is never held out, nor is its group if the task has groups.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pipeline.errors import counted
from pipeline.fit.config import FOLDS, SPLIT_ROWS, FitConfig
from pipeline.task import Task, Training

SEED = 0
MOST_DOMAINS = 10  # up to this number each domain is a fold; more domains are held out several at a time
MOST_NAMED = 6


@dataclass(frozen=True)
class Part:
    """Row numbers of a task: the rows that a head is fitted to, and the rows held out from it."""

    train: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class Validation:
    """How a training set is validated.

    learned: numbers of the rows of the final fit.
    parts:   the validation split or the folds, on which the search chooses.
    record:  the description in `model.json`.
    notes:   sentences about what the user may not expect.
    instead: the validation of a head that cannot be fitted to the folds.
    """

    learned: np.ndarray
    parts: Sequence[Part]
    record: dict[str, Any]
    notes: Sequence[str] = ()
    instead: "Validation | None" = None

    @property
    def held(self) -> np.ndarray:
        """Return the numbers of all held-out rows, ascending."""
        return np.sort(np.concatenate([part.held for part in self.parts])) if self.parts else np.empty(0, np.int64)


@dataclass(frozen=True)
class _FoldRows:
    """The rows to divide into folds.

    numbers: the row numbers in the task.
    strata:  the class or the rarest label of each row, as text; None for a regression.
    units:   the group or domain of each row, which stays together; None if each row is its own unit.
    member:  which classes each row has, bool (rows, classes).
    """

    numbers: np.ndarray
    strata: np.ndarray | None
    units: np.ndarray | None
    member: np.ndarray = field(repr=False)


def validation_of(config: FitConfig, task: Task, training: Training) -> Validation:
    """Return the validation of a training set; without `parts` if nothing can be held out."""
    own = task.rows("validation")
    learned = training.rows
    if config.refit and training.labels is None:
        learned = np.sort(np.concatenate([training.rows, own]))
    split = _split_validation(training.rows, own, learned)
    wanted = config.validation
    if wanted == "auto" and len(own) >= SPLIT_ROWS:
        wanted = "split"
    if wanted == "split":
        return split
    folds = _fold_validation(task, learned, FOLDS if isinstance(wanted, str) else wanted)
    if folds is not None:
        return replace(folds, instead=split)
    size = "all training rows" if training.labels is None else f"{counted(training.labels, 'label')} per class"
    instead = f"{len(own):,} validation rows choose instead" if len(own) else "nothing is held out, and nothing chosen"
    return Validation(
        learned,
        split.parts,
        split.record,
        [f"{size} {'is' if training.labels == 1 else 'are'} too few for folds; {instead}"],
    )


def _split_validation(rows: np.ndarray, own: np.ndarray, learned: np.ndarray) -> Validation:
    if not len(own):
        return Validation(learned, [], {"method": "none"})
    return Validation(learned, [Part(rows, own)], {"method": "split", "held_rows": len(own)})


def _fold_validation(task: Task, numbers: np.ndarray, count: int) -> Validation | None:
    rows, unit, notes = _read_rows(task, numbers)
    splitter, name, k = _choose_splitter(rows, count, unit)
    if splitter is None:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # the notes say so, with names
        parts = list(splitter.split(np.zeros(len(numbers)), rows.strata, rows.units))
    never_held = _find_never_held(rows, [train for train, _ in parts], unit)
    folds = [
        Part(numbers[np.sort(np.concatenate([train, held[never_held[held]]]))], numbers[held[~never_held[held]]])
        for train, held in parts
        if len(train) and not never_held[held].all()
    ]
    if not folds:
        return None
    held_rows = sum(len(part.held) for part in folds)
    record = {"method": "folds", "splitter": name, "folds": len(folds), "seed": SEED, "held_rows": held_rows}
    if unit == "domain":
        notes = [f"each of {len(folds)} folds holds out rows of other domains", *notes]
    notes += _note_rare(rows, k, int(never_held.sum()))
    return Validation(numbers, folds, record, notes)


Unit = Literal["row", "group", "domain"]


def _read_rows(task: Task, numbers: np.ndarray) -> tuple[_FoldRows, Unit, list[str]]:
    """Return the rows with their strata and units, the kind of the units, and notes on them."""
    targets = task.targets[numbers]
    strata: np.ndarray | None = None
    member = np.zeros((len(numbers), 0), dtype=bool)
    if task.kind == "classification":
        names, places = np.unique(targets.astype(str), return_inverse=True)
        strata, member = names[places], places[:, None] == np.arange(len(names))
    elif task.kind == "multilabel":
        member = targets
        counts = np.where(member, member.sum(axis=0), len(member) + 1)
        rarest = np.where(member.any(axis=1), counts.argmin(axis=1), -1)
        strata = rarest.astype(str)
    columns = task.table.column_names
    groups = task.table["group"].to_numpy(zero_copy_only=False)[numbers] if "group" in columns else None
    if "domain" in columns:
        all_domains = task.table["domain"].to_numpy(zero_copy_only=False)
        own, tested = set(all_domains[numbers]), set(all_domains[task.rows("test")])
        if None not in own | tested and tested and not own & tested:
            domains = all_domains[numbers].astype(str)
            whole = groups is None or all(len(set(domains[groups == group])) == 1 for group in set(groups))
            if len(own) > 1 and whole:
                return _FoldRows(numbers, strata, domains, member), "domain", []
            return (
                _FoldRows(numbers, strata, None if groups is None else groups.astype(str), member),
                "row" if groups is None else "group",
                [
                    f"test rows are of other domains ({_join_names(tested)}) than all held-out rows "
                    f"({_join_names(own)}), which therefore look better"
                ],
            )
    if groups is not None:
        return _FoldRows(numbers, strata, groups.astype(str), member), "group", []
    return _FoldRows(numbers, strata, None, member), "row", []


def _choose_splitter(rows: _FoldRows, count: int, unit: Unit) -> tuple[Any, str, int]:
    """Return a scikit-learn splitter, its name and its number of folds; None if there would be fewer than two."""
    from sklearn import model_selection

    k = min(count, len(rows.numbers) if rows.units is None else len(set(rows.units)))
    if rows.strata is not None and unit != "domain":
        k = min(k, int(np.unique(rows.strata, return_counts=True)[1].max()))
    if k < 2:
        return None, "none", k
    if unit == "domain":
        domains = len(set(rows.units if rows.units is not None else ()))
        if domains <= MOST_DOMAINS:
            return model_selection.LeaveOneGroupOut(), "LeaveOneGroupOut", domains
        name = "GroupKFold"
    else:
        name = f"{'' if rows.strata is None else 'Stratified'}{'' if rows.units is None else 'Group'}KFold"
    return getattr(model_selection, name)(n_splits=k, shuffle=True, random_state=SEED), name, k


def _find_never_held(rows: _FoldRows, trains: Sequence[np.ndarray], unit: Unit) -> np.ndarray:
    """Return a mask, bool (rows,), of the rows to keep in the training rows of every fold.

    These are the rows of classes that would be missing from the training rows of some fold and, in a multilabel task,
    the rows without a label that all training rows of some fold have.
    """
    never_held = np.zeros(len(rows.numbers), dtype=bool)
    for train in trains:
        missing = rows.member.any(axis=0) & ~rows.member[train].any(axis=0)
        never_held |= rows.member[:, missing].any(axis=1)
        always = rows.member[train].all(axis=0) & ~rows.member.all(axis=0)
        never_held |= ~rows.member[:, always].all(axis=1)
    if unit == "group" and rows.units is not None and never_held.any():
        never_held = np.isin(rows.units, np.unique(rows.units[never_held]))
    return never_held


def _note_rare(rows: _FoldRows, folds: int, never_held: int) -> list[str]:
    """Return notes on classes with fewer rows than folds, and on rows that are never held out."""
    counts = rows.member.sum(axis=0)
    few = int(((counts > 0) & (counts < folds)).sum())
    notes = [f"{few:,} of {int((counts > 0).sum()):,} classes have fewer rows than {folds} folds"] if few else []
    if never_held:
        notes.append(
            f"{counted(never_held, 'row is', 'rows are')} learned from in every fold, since a class or label would "
            "else be missing"
        )
    return notes


def _join_names(names: set[Any]) -> str:
    listed = sorted(map(str, names))
    return ", ".join(listed[:MOST_NAMED]) + (", …" if len(listed) > MOST_NAMED else "")
