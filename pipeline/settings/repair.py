"""Go on with settings that are wrong in part, so that one mistake hides no other.

What is wrong is taken out, a misspelled key is taken for the one that it resembles, a text for a list of it, and a key
that is missing gets a value that stands for none. What comes of it is looked at for the names in it, and never used.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.settings.messages import QUOTED, UNTOLD, models_at, models_in

UNKNOWN = "‹unknown›"
"""Stands for the value of a key that is missing; a problem that names it is none."""

BUILT = "built"
"""The key of pydantic's context under which settings keep themselves while they are checked."""

ROUNDS = 8
"""How often what is wrong is mended: each round may show errors that those of the one before had hidden."""

_STAND_INS: Sequence[Any] = (UNKNOWN, [UNKNOWN], 1, {})
_REMOVED = object()

Error = dict[str, Any]
Path = tuple[Any, ...]


@dataclass
class Repaired:
    """What came of settings that are wrong."""

    value: Any = None
    """The settings without what is wrong with them; None where nothing can be made of them."""

    later: list[Error] = field(default_factory=list)
    """Errors of pydantic that the first ones had hidden."""

    mended: set[Path] = field(default_factory=set)
    """Keys whose values were taken out, or that got a value that stands for none."""

    guessed: set[Path] = field(default_factory=set)
    """Keys that misspelled ones were taken for; of a misspelled value that tells models apart, where it stands."""

    stand_ins: dict[Path, int] = field(default_factory=dict)
    """Which of the values that stand for none a key has."""


def repair(found: dict[Any, Any], model: Any, errors: Sequence[Error]) -> Repaired:
    """Return what is right of settings that have errors, and the errors that show once these are mended.

    model: the type of the settings: a model, or a union of models.
    """
    raw = copy.deepcopy(found)
    repaired = Repaired()
    waiting = list(errors)
    for _ in range(ROUNDS):
        ordered = sorted(waiting, key=lambda one: one["type"] != "extra_forbidden")  # before the key that it resembles
        mended = [_mend(raw, one, model, repaired) for one in ordered]
        if not any(mended):
            break
        raw = _without_removed(raw)
        repaired.value, waiting = _build(raw, model)
        repaired.later += [one for one in waiting if not _follows(one, raw, repaired)]
        if not waiting:
            break
    else:
        repaired.value = None
    if repaired.value is None and not repaired.mended:
        repaired.value, _ = _build(raw, model)
    return repaired


def is_explained(error: Error, found: Any, repaired: Repaired) -> bool:
    """Return whether a key is missing because it is misspelled, which another error says."""
    return error["type"] == "missing" and _place(found, error) in repaired.guessed


def _build(raw: Any, model: Any) -> tuple[Any, list[Error]]:
    """Return settings and their errors; settings too where the errors are of values that do not go together."""
    built: list[Any] = []
    try:
        return TypeAdapter(model).validate_python(raw, context={BUILT: built}), []
    except ValidationError as error:
        errors = [dict(problem) for problem in error.errors(include_url=False)]
    whole = [one for one in built if type(one) in models_in(model)]
    return (whole[-1] if whole else None), errors


def _mend(raw: Any, error: Error, model: Any, repaired: Repaired) -> bool:
    """Take out of `raw` what an error is about, or put in what it lacks; return whether something was changed."""
    path = _place(raw, error)
    if error["type"] in UNTOLD:
        return _guess_tag(raw, path, error, repaired)
    if not path:
        return False
    *above, key = path
    parent = _at(raw, above)
    if error["type"] == "extra_forbidden":
        value = parent.pop(key, None)
        kinds = [one for kind in models_in(model) for one in models_at(kind, map(str, above))]
        names = [name for kind in kinds for name in kind.model_fields if name not in parent]
        if any(key in getattr(kind, "REMOVED", {}) for kind in kinds):
            return True
        if near := difflib.get_close_matches(str(key), names, n=1, cutoff=0.6):
            parent[near[0]] = value
            repaired.guessed.add((*above, near[0]))
        if above:  # the value that holds it is not what was meant
            repaired.mended.add(path)
        return True
    if error["type"] == "missing" and (path in repaired.guessed or not isinstance(parent, dict)):
        return path in repaired.guessed
    is_list_wanted = error["type"] in ("list_type", "tuple_type") and path not in repaired.stand_ins
    if is_list_wanted and isinstance(parent[key], str):
        parent[key] = [parent[key]]
        return True
    repaired.mended.add(path)
    if error["type"] == "missing" or path in repaired.stand_ins:
        number = repaired.stand_ins[path] = repaired.stand_ins.get(path, -1) + 1
        if number < len(_STAND_INS):
            parent[key] = copy.copy(_STAND_INS[number])
        return number < len(_STAND_INS)
    parent[key] = _REMOVED
    return True


def _guess_tag(raw: Any, path: Path, error: Error, repaired: Repaired) -> bool:
    """Put the value in that tells the models of a union apart, where the one that is there resembles it."""
    context, here = error["ctx"], _at(raw, path)
    name = context["discriminator"].strip("'")
    near = difflib.get_close_matches(
        str(context.get("tag", "")), re.findall(QUOTED, context.get("expected_tags", "")), n=1, cutoff=0.6
    )
    if near and isinstance(here, dict) and name in here:
        here[name] = near[0]
        repaired.guessed.add(path)
        return True
    if path:
        _at(raw, path[:-1])[path[-1]] = _REMOVED
        repaired.mended.add(path)
    return bool(path)


def _place(raw: Any, error: Error) -> Path:
    """Return the keys and numbers that lead to what an error is about; what pydantic adds of types is left out."""
    path: list[Any] = []
    for place, part in enumerate(error["loc"]):
        is_key = (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int))
        if is_key and (isinstance(raw, dict) or part < len(raw)):
            path.append(part)
            raw = raw[part]
        elif error["type"] == "missing" and place == len(error["loc"]) - 1:
            path.append(part)
    return tuple(path)


def _at(raw: Any, path: Iterable[Any]) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def _without_removed(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_removed(value) for key, value in raw.items() if value is not _REMOVED}
    if isinstance(raw, list):
        return [_without_removed(value) for value in raw if value is not _REMOVED]
    return raw


def _follows(error: Error, raw: Any, repaired: Repaired) -> bool:
    """Return whether an error comes of what was mended, and not of what the user wrote."""
    path = _place(raw, error)
    if any(path[: len(one)] == one for one in repaired.mended):
        return True
    if error["type"] == "missing" and path[:-1] in repaired.guessed:
        return True
    lists = {one[:-1] for one in repaired.mended if isinstance(one[-1], int)}
    if (error["type"] == "missing" and path[:-1] in lists) or (error["type"] == "too_short" and path in lists):
        return True
    inside = [one for one in repaired.mended if one[: len(path)] == path]
    named = set(re.findall(r"`([^`:]*)", str(error["msg"])))
    return bool(inside) and (not named or any(str(one[-1]) in named for one in inside))
