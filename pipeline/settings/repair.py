"""Repair settings with errors, so that one mistake does not hide others.

A wrong value is removed, a misspelled key is replaced by the key that it resembles, a text becomes a list where a list
is expected, and a missing key gets a placeholder. The repaired settings serve only to check the rest, such as names
that they refer to. They are never used for a run.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.settings.messages import QUOTED, UNION_TAG_ERRORS, models_at, models_in

UNKNOWN = "‹unknown›"
"""The placeholder for the value of a missing key. Problems that mention it are not reported."""

BUILT = "built"
"""The key of pydantic's context under which settings record themselves while they are validated."""

ROUNDS = 8
"""The most rounds of repair. Each round may reveal errors that earlier errors had hidden."""

_PLACEHOLDERS: Sequence[Any] = (UNKNOWN, [UNKNOWN], 1, {})
_REMOVED = object()

Error = dict[str, Any]
Path = tuple[Any, ...]


@dataclass
class Repaired:
    """The result of repairing settings with errors."""

    value: Any = None
    """The settings without their errors; None if they cannot be repaired."""

    later: list[Error] = field(default_factory=list)
    """pydantic's errors that the first errors had hidden."""

    changed: set[Path] = field(default_factory=set)
    """Keys whose values were removed or replaced by a placeholder."""

    guessed: set[Path] = field(default_factory=set)
    """Keys that were substituted for misspelled keys; paths of models with a misspelled discriminator."""

    placeholders: dict[Path, int] = field(default_factory=dict)
    """For each missing key, the index in `_PLACEHOLDERS` of its value."""


def repair(found: dict[Any, Any], model: Any, errors: Sequence[Error]) -> Repaired:
    """Repair settings; return them with the errors that only the repair revealed.

    found: the settings as they were read. model: their type, a model or a union of models. errors: pydantic's errors.
    """
    raw = copy.deepcopy(found)
    repaired = Repaired()
    remaining = list(errors)
    for _ in range(ROUNDS):
        # A misspelled key comes first, since it may supply the missing key that it resembles.
        ordered = sorted(remaining, key=lambda error: error["type"] != "extra_forbidden")
        changes = [_fix(raw, error, model, repaired) for error in ordered]
        if not any(changes):
            break
        raw = _without_removed(raw)
        repaired.value, remaining = _build(raw, model)
        repaired.later += [error for error in remaining if not _is_consequence(error, raw, repaired)]
        if not remaining:
            break
    else:
        repaired.value = None
    if repaired.value is None and not repaired.changed:
        repaired.value, _ = _build(raw, model)
    return repaired


def is_explained(error: Error, found: Any, repaired: Repaired) -> bool:
    """Return whether an error reports a missing key that is only misspelled, which another error reports."""
    return error["type"] == "missing" and _path_of(found, error) in repaired.guessed


def _build(raw: Any, model: Any) -> tuple[Any, list[Error]]:
    """Return the settings and their errors. There are settings even with errors, if each value by itself is right."""
    built: list[Any] = []
    try:
        return TypeAdapter(model).validate_python(raw, context={BUILT: built}), []
    except ValidationError as error:
        errors = [dict(problem) for problem in error.errors(include_url=False)]
    complete = [settings for settings in built if type(settings) in models_in(model)]
    return (complete[-1] if complete else None), errors


def _fix(raw: Any, error: Error, model: Any, repaired: Repaired) -> bool:
    """Remove the value that an error is about from `raw`, or add what is missing; return whether `raw` changed."""
    path = _path_of(raw, error)
    if error["type"] in UNION_TAG_ERRORS:
        return _guess_tag(raw, path, error, repaired)
    if not path:
        return False
    *above, key = path
    parent = _at(raw, above)
    if error["type"] == "extra_forbidden":
        value = parent.pop(key, None)
        kinds = [inner for kind in models_in(model) for inner in models_at(kind, map(str, above))]
        names = [name for kind in kinds for name in kind.model_fields if name not in parent]
        if any(key in getattr(kind, "REMOVED", {}) for kind in kinds):
            return True
        if similar := difflib.get_close_matches(str(key), names, n=1, cutoff=0.6):
            parent[similar[0]] = value
            repaired.guessed.add((*above, similar[0]))
        if above:  # the mapping around the key no longer has its intended value
            repaired.changed.add(path)
        return True
    if error["type"] == "missing" and (path in repaired.guessed or not isinstance(parent, dict)):
        return path in repaired.guessed
    is_list_wanted = error["type"] in ("list_type", "tuple_type") and path not in repaired.placeholders
    if is_list_wanted and isinstance(parent[key], str):
        parent[key] = [parent[key]]
        return True
    repaired.changed.add(path)
    if error["type"] == "literal_error" and (choice := _similar_of(parent[key], error["ctx"]["expected"])):
        parent[key] = choice
        return True
    if error["type"] == "missing" or path in repaired.placeholders:
        number = repaired.placeholders[path] = repaired.placeholders.get(path, -1) + 1
        if number < len(_PLACEHOLDERS):
            parent[key] = copy.copy(_PLACEHOLDERS[number])
        return number < len(_PLACEHOLDERS)
    parent[key] = _REMOVED
    return True


def _guess_tag(raw: Any, path: Path, error: Error, repaired: Repaired) -> bool:
    """Replace a misspelled discriminator of a union by the value that it resembles, or remove the settings."""
    context, here = error["ctx"], _at(raw, path)
    name = context["discriminator"].strip("'")
    similar = _similar_of(context.get("tag", ""), context.get("expected_tags", ""))
    if similar is not None and isinstance(here, dict) and name in here:
        here[name] = similar
        repaired.guessed.add(path)
        return True
    if path:
        _at(raw, path[:-1])[path[-1]] = _REMOVED
        repaired.changed.add(path)
    return bool(path)


def _similar_of(value: Any, expected: str) -> str | None:
    """Return the name in quotes in pydantic's list of expected names that a value resembles, or None."""
    similar = difflib.get_close_matches(str(value), re.findall(QUOTED, expected), n=1, cutoff=0.6)
    return similar[0] if similar else None


def _path_of(raw: Any, error: Error) -> Path:
    """Return the keys and list indices of an error's location, without the type names that pydantic adds."""
    path: list[Any] = []
    for index, part in enumerate(error["loc"]):
        is_key = (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int))
        if is_key and (isinstance(raw, dict) or part < len(raw)):
            path.append(part)
            raw = raw[part]
        elif error["type"] == "missing" and index == len(error["loc"]) - 1:
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


def _is_consequence(error: Error, raw: Any, repaired: Repaired) -> bool:
    """Return whether the repair caused an error, not what the user wrote."""
    path = _path_of(raw, error)
    if any(path[: len(changed)] == changed for changed in repaired.changed):
        return True
    if error["type"] == "missing" and path[:-1] in repaired.guessed:
        return True
    lists = {changed[:-1] for changed in repaired.changed if isinstance(changed[-1], int)}
    if (error["type"] == "missing" and path[:-1] in lists) or (error["type"] == "too_short" and path in lists):
        return True
    inside = [changed for changed in repaired.changed if changed[: len(path)] == path]
    named = set(re.findall(r"`([^`:]*)", str(error["msg"])))
    return bool(inside) and (not named or any(str(changed[-1]) in named for changed in inside))
