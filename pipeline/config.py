"""Settings from params.yaml to checked values: every problem of the file in one message.

A settings model stands beside the code it configures and derives from `Settings`. This module knows no model; it is
handed a table of sections and checks a whole file against it.
"""

import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import ConfigError, bullets, unknown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Where pydantic speaks of Python rather than of YAML.
EXPECTED = {"path_type": "expected a path", "tuple_type": "expected a list", "too_short": "expected at least one entry"}
UNTOLD = ("union_tag_not_found", "union_tag_invalid")
QUOTED = r"'([^']*)'"
_TYPE = re.compile(r"[\[\(]|^(str|int|float|bool|constrained-.*)$")


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors, values do not change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


@dataclass(frozen=True)
class Section:
    """One top-level key of params.yaml: a settings model, or a mapping of names to one.

    Several models that one key tells apart are one too: a union with a discriminator, as pydantic has it.
    """

    model: Any
    named: bool = False


def read_params(path: Path) -> dict[str, Any]:
    """Read params.yaml as it stands; raises ConfigError if it is missing, unreadable or not a mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Run the command in the root of an icecore project.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML. {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(raw).__name__}.")
    return raw


def check(raw: Mapping[str, Any], sections: Mapping[str, Section]) -> tuple[dict[str, Any], list[str]]:
    """Check a whole file; return the models of the sections that are right, and all problems of the others."""
    values: dict[str, Any] = {}
    problems = [unknown("section", str(key), sections) for key in raw if key not in sections]
    for name, section in sections.items():
        if name not in raw:
            problems.append(f"{name}: this section is missing.")
            continue
        found = raw[name] if raw[name] is not None else {}
        if section.named:
            values[name], more = _check_named(name, found, section.model)
        else:
            values[name], more = _check_model((name,), found, section.model)
        problems += more
    return values, problems


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
        if not NAME.fullmatch(str(key)):
            problems.append(f"{section}.{key}: a name has letters, digits, '-' and '_' only: it becomes a file's name.")
            continue
        checked, more = _check_model((section, str(key)), value if value is not None else {}, model)
        problems += more
        if checked is not None:
            values[str(key)] = checked
    return values, problems


def _check_model(path: tuple[str, ...], found: Any, model: Any) -> tuple[Settings | None, list[str]]:
    if not isinstance(found, dict):
        return None, [f"{'.'.join(path)}: expected a mapping of settings, got {found!r}."]
    try:
        return TypeAdapter(model).validate_python(found), []
    except ValidationError as error:
        problems = [dict(problem) for problem in error.errors(include_url=False)]
        kinds = _models_in(model)
        if len(kinds) == 1:
            return None, [_say(path, problem, kinds[0]) for problem in problems if not _follows(problem)]
        return None, [_say_variant(path, problem, kinds) for problem in problems if not _follows(problem)]


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
        return f"{'.'.join([*path, *parts[:-1]])}: {unknown('key', parts[-1], _keys_at(model, parts[:-1]))}"
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


def _keys_at(model: type[Settings], path: Iterable[str]) -> list[str]:
    """The keys that are allowed at a path below a model."""
    here: list[Any] = [model]
    for part in path:
        here = [below for annotation in here for below in _below(annotation, part)]
    return [name for annotation in here for kind in _models_in(annotation) for name in kind.model_fields]


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


def _models_in(annotation: Any) -> list[type[Settings]]:
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]
