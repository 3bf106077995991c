"""Settings from params.yaml to checked values: every problem of the file in one message.

A settings model stands beside the code it configures and derives from `Settings`. This module knows no model; it is
handed a table of sections and checks a whole file against it.
"""

import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import ConfigError, bullets, unknown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST = 128  # characters of a name: files put suffixes behind it
# Where pydantic speaks of Python rather than of YAML.
EXPECTED = {"path_type": "expected a path", "tuple_type": "expected a list", "too_short": "expected at least one entry"}
UNTOLD = ("union_tag_not_found", "union_tag_invalid")
QUOTED = r"'([^']*)'"
_TYPE = re.compile(r"[\[\(]|^(str|int|float|bool|constrained-.*)$")


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors, values do not change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)

    REMOVED: ClassVar[Mapping[str, str]] = {}
    """Keys that were settings once, each with what to write in its place."""


@dataclass(frozen=True)
class Section:
    """One top-level key of params.yaml: a settings model, or a mapping of names to one.

    Several models that one key tells apart are one too: a union with a discriminator, as pydantic has it.
    """

    model: Any
    named: bool = False


def check(raw: Mapping[str, Any], sections: Mapping[str, Section]) -> tuple[dict[str, Any], list[str]]:
    """Check a whole file; return the models of the sections that are right, and all problems of the others.

    A section that is left out has no entries, or its defaults.
    """
    values: dict[str, Any] = {}
    problems = [unknown("section", str(key), sections) for key in raw if key not in sections]
    for name, section in sections.items():
        found = raw.get(name, {})
        if found is None and section.named:
            values[name], more = (
                {},
                [f"{name}: expected a mapping of names, got nothing. For none leave the section out."],
            )
        elif section.named:
            values[name], more = _check_named(name, found, section.model)
        else:
            values[name], more = _check_model((name,), {} if found is None else found, section.model)
        problems += more
    return values, problems


def with_colon(path: str) -> str:
    """Write an import path with a colon: `package.module.Net`, which needs no quotes, as `package.module:Net`."""
    module, dot, name = path.rpartition(".")
    return f"{module}:{name}" if dot and ":" not in path else path


def refuse(problems: Iterable[str], *, where: str = "params.yaml") -> None:
    """Raise ConfigError with all problems, if there are any."""
    found = list(problems)
    if found:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError(bullets(f"{where}: {count}", found))


def _check_named(section: str, found: Any, model: Any) -> tuple[dict[str, Settings], list[str]]:
    if not isinstance(found, dict):
        return {}, [f"{section}: expected a mapping of names, got {found!r}."]
    values, problems = {}, []
    for key, value in found.items():
        if wrong := _check_name(key, [one for one in found if isinstance(one, str)]):
            problems.append(f"{section}.{key}: {wrong}")
            continue
        checked, more = _check_model((section, key), value if value is not None else {}, model)
        problems += more
        if checked is not None:
            values[key] = checked
    return values, problems


def _check_name(name: Any, names: list[str]) -> str:
    """What is wrong with the name of an entry, if anything; `names` are those of its section."""
    if not isinstance(name, str):
        return (
            f"expected text as a name, got {name!r}: DVC addresses entries by text. Write it in quotes, here and "
            "where it is named."
        )
    if not NAME.fullmatch(name):
        return "a name has letters, digits, '-' and '_' only, first a letter or a digit: it becomes a file's name."
    if len(name) > LONGEST:
        return f"a name has {LONGEST} characters at most, got {len(name)}: it becomes a file's name."
    return same_but_for_case(name, names)


def same_but_for_case(name: str, names: Iterable[str]) -> str:
    """Say which of the names before `name` is one file with it where case does not count; "" if there is none."""
    for one in names:
        if one == name:
            break
        if one.lower() == name.lower():
            return f"expected a name that differs from {one!r} by more than its case: on many disks both are one file."
    return ""


def _check_model(path: tuple[str, ...], found: Any, model: Any) -> tuple[Settings | None, list[str]]:
    if not isinstance(found, dict):
        return None, [f"{'.'.join(path)}: expected a mapping of settings, got {found!r}."]
    try:
        return TypeAdapter(model).validate_python(found), []
    except ValidationError as error:
        every = [dict(problem) for problem in error.errors(include_url=False)]
        problems = [problem for problem in every if not _is_of_words(problem, every)]
        kinds = models_in(model)
        if len(kinds) == 1:
            return None, [_say(path, problem, kinds[0]) for problem in problems if not _follows(problem)]
        return None, [_say_variant(path, problem, kinds) for problem in problems if not _follows(problem)]


def _is_of_words(problem: dict[str, Any], every: list[dict[str, Any]]) -> bool:
    """Whether pydantic says of a number that it is none of the words that the key takes too, besides what is wrong."""
    if problem["type"] != "literal_error" or isinstance(problem["input"], str):
        return False
    where = problem["loc"][:-1]
    return any(other is not problem and other["loc"][:-1] == where for other in every)


def _follows(problem: dict[str, Any]) -> bool:
    """Whether pydantic calls a list too short only because it did not count the entries that are wrong."""
    return problem["type"] == "too_short" and bool(len(problem["input"]) >= problem["ctx"]["min_length"])


def _say_variant(path: tuple[str, ...], problem: dict[str, Any], kinds: list[type[Settings]]) -> str:
    """The same of a union: pydantic puts the value that tells the models apart before the path of the key."""
    if problem["type"] in UNTOLD:
        return _say_untold(path, problem["ctx"])
    tag, *location = problem["loc"]
    return _say(path, {**problem, "loc": tuple(location)}, next(kind for kind in kinds if _is_told_by(kind, tag)))


def _say_untold(path: Iterable[str], context: dict[str, Any]) -> str:
    """The same where the key that tells the models apart is missing, or has none of their values."""
    where = ".".join([*path, context["discriminator"].strip("'")])
    if "tag" not in context:
        return f"{where}: this key is missing."
    return f"{where}: {unknown('value', context['tag'], re.findall(QUOTED, context['expected_tags']))}"


def _is_told_by(model: type[Settings], tag: Any) -> bool:
    """Whether a value is what tells a model of a union apart."""
    return any(tag in typing.get_args(field.annotation) for field in model.model_fields.values())


def _say(path: tuple[str, ...], problem: dict[str, Any], model: type[Settings]) -> str:
    """One pydantic error as a line: the path of the key, what was expected, what was found."""
    # Types inside a union stand in pydantic's location ("Inputs", "list[str]"); they mean nothing to a user.
    kind, context = problem["type"], problem.get("ctx", {})
    *above, last = (str(part) for part in problem["loc"] or ("",))
    parts = [part for part in above if not _TYPE.search(part)]
    if kind in ("extra_forbidden", "missing") or not _TYPE.search(last):
        parts.append(last)
    where = ".".join(part for part in [*path, *parts] if part)
    if kind in UNTOLD:
        return _say_untold([*path, *parts], context)
    if kind == "extra_forbidden":
        return _say_unknown_key(path, parts, model)
    if kind == "missing":
        return f"{where}: this key is missing."
    if kind == "literal_error":
        choices = re.findall(QUOTED, str(context["expected"]))
        return f"{where}: {unknown('value', str(problem['input']), choices)}"
    message = EXPECTED.get(kind, problem["msg"].replace("Input should be", "expected"))
    if kind == "value_error":
        message = str(context["error"])
    found = repr(problem["input"])
    got = "" if isinstance(problem["input"], dict) or found in message else f", got {found}"
    return f"{where}: {message.rstrip('.')}{got}."


def _say_unknown_key(path: Iterable[str], parts: list[str], model: type[Settings]) -> str:
    """One line for a key that no model has at its place: what to write in its place, or which keys there are."""
    *above, key = parts
    kinds = _models_at(model, above)
    for kind in kinds:
        if key in kind.REMOVED:
            return f"{'.'.join([*path, *parts])}: no longer a setting. {kind.REMOVED[key]}"
    return f"{'.'.join([*path, *above])}: {unknown('key', key, [name for kind in kinds for name in kind.model_fields])}"


def _models_at(model: type[Settings], path: Iterable[str]) -> list[type[Settings]]:
    """Return the settings models whose keys are allowed at a path below a model."""
    here: list[Any] = [model]
    for part in path:
        here = [below for annotation in here for below in _below(annotation, part)]
    return [kind for annotation in here for kind in models_in(annotation)]


def _below(annotation: Any, part: str) -> list[Any]:
    """The annotations of what stands at a key, or as an entry, of a value with this annotation."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        field = annotation.model_fields.get(part)
        if field is not None:
            return [field.annotation]
        return [annotation] if _is_told_by(annotation, part) else []
    inner = [one for one in typing.get_args(annotation) if one is not Ellipsis]
    if typing.get_origin(annotation) in (dict, list, tuple):
        return list(inner[-1:] if typing.get_origin(annotation) is dict else inner)
    return [below for one in inner for below in _below(one, part)]


def models_in(annotation: Any) -> list[type[Settings]]:
    """Return the settings models in a type."""
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in models_in(inner)]
