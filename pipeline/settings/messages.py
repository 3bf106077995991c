"""Write pydantic's errors as problems of params.yaml: one line each, in YAML's words, with the path of the key."""

import inspect
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.errors import counted, unknown

EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_sub_type"), "text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"), "a mapping"
    ),
    "none_required": "nothing",
    "path_type": "a path",
    "string_too_short": "text with at least one character",
}
"""The expected value in YAML's words, by pydantic's type of error."""

UNION_TAG_ERRORS = ("union_tag_not_found", "union_tag_invalid")
QUOTED = r"'([^']*)'"
SHOWN = 80
"""The most characters of a value in a message."""

DEEPEST = 3
"""The most levels of mappings and lists of a value in a message."""

CHOICE = re.compile(r"unknown value '.*'\.(?P<hint> Did you mean .*\?)? Expected one of: (?P<words>.*)\.", re.DOTALL)
"""The message of `pipeline.errors.unknown` about a value."""

_TYPE = re.compile(r"[\[\(]|^(str|int|float|bool|constrained-.*)$")


def in_yaml(value: Any, depth: int = 0) -> str:
    """Return a value as YAML text, shortened: `nothing`, `true`, `{a: 1}`, text in quotes."""
    if value is None:
        return "null" if depth else "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple) and depth > DEEPEST:
        text = "…"
    elif isinstance(value, dict):
        text = ", ".join(f"{key_in_yaml(key)}: {in_yaml(item, depth + 1)}" for key, item in value.items())
        text = f"{{{text}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(in_yaml(item, depth + 1) for item in value)}]"
    else:
        text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def key_in_yaml(key: Any) -> str:
    """Return a key as YAML text."""
    return key if isinstance(key, str) else in_yaml(key, depth=1)


def describe_errors(path: Sequence[str], problems: Iterable[dict[str, Any]], model: Any) -> list[str]:
    """Return a line for each of pydantic's errors about the settings at a path.

    model: the settings model, or the union of models, that is expected there.
    """
    all_problems = list(problems)
    kinds = models_in(model)
    lines: dict[tuple[str, str], list[str]] = {}
    for problem in all_problems:
        if (
            _is_about_words(problem, all_problems)
            or _is_consequence(problem)
            or _is_about_other_form(problem, all_problems)
        ):
            continue
        if len(kinds) == 1:
            where, message, got = _describe(path, problem, kinds[0])
        elif problem["type"] in UNION_TAG_ERRORS:
            where, message, got = _describe_tag_error(path, problem["ctx"])
        else:  # a union: pydantic puts the tag, the value of the discriminator, in front of the path of the key
            tag, *location = problem["loc"]
            kind = next(kind for kind in kinds if _has_tag(kind, tag))
            where, message, got = _describe(path, {**problem, "loc": tuple(location)}, kind)
        messages = lines.setdefault((where, got), [])
        if message not in messages:
            messages.append(message)
    return [line for (where, got), messages in lines.items() for line in _join(where, messages, got)]


def _join(where: str, messages: Sequence[str], got: str) -> list[str]:
    """Return a line per message; messages about the expected type of the same value are joined into a single line."""
    types = [message for message in messages if message.removeprefix("expected ") in EXPECTED.values()]
    lines = [message for message in messages if message not in types]
    hint = ""
    if types:
        words = [message.removeprefix("expected ") for message in types]
        choices = [match for message in lines if (match := CHOICE.fullmatch(message))]
        for choice in choices:  # the key also takes words
            lines.remove(choice[0])
            words += choice["words"].split(", ")
            hint = choice["hint"] or ""
        lines.insert(0, f"expected {' or '.join(words)}, got {got}.{hint}")
    lines = [line if got in line or not got else f"{line.rstrip('.')}, got {got}" for line in lines]
    return [f"{where}: {line}" if line.endswith(("?", ".")) else f"{where}: {line}." for line in lines]


def _is_about_words(problem: dict[str, Any], problems: Sequence[dict[str, Any]]) -> bool:
    """Return whether an error only says that a number is none of the words that the key also takes."""
    if problem["type"] != "literal_error" or isinstance(problem["input"], str):
        return False
    where = problem["loc"][:-1]
    return any(other is not problem and other["loc"][:-1] == where for other in problems)


def _is_consequence(problem: dict[str, Any]) -> bool:
    """Return whether pydantic calls a list too short only because it did not count wrong entries."""
    return problem["type"] == "too_short" and bool(len(problem["input"]) >= problem["ctx"]["min_length"])


def _is_about_other_form(problem: dict[str, Any], problems: Sequence[dict[str, Any]]) -> bool:
    """Return whether an error rejects one form of a value that has another allowed form, with errors inside."""
    if problem["type"] not in EXPECTED or not isinstance(problem["input"], dict | list):
        return False
    *above, last = problem["loc"] or ("",)
    if not _TYPE.search(str(last)):
        return False
    return any(
        other["loc"][: len(above)] == tuple(above) and len(other["loc"]) > len(problem["loc"]) for other in problems
    )


def _describe_tag_error(path: Iterable[str], context: dict[str, Any]) -> tuple[str, str, str]:
    """Return path and message of a missing discriminator, or of one whose value names no model."""
    where = ".".join([*path, context["discriminator"].strip("'")])
    if "tag" not in context:
        return where, "this key is missing", ""
    return where, unknown("value", context["tag"], re.findall(QUOTED, context["expected_tags"])), ""


def _describe(path: Sequence[str], problem: dict[str, Any], model: type[BaseModel]) -> tuple[str, str, str]:
    """Return the path of a pydantic error, what was expected there, and the value if the message does not have it."""
    # pydantic's location includes the types inside a union ("Inputs", "list[str]"); they mean nothing to a user.
    kind, context = problem["type"], problem.get("ctx", {})
    *above, last = (str(part) for part in problem["loc"] or ("",))
    parts = [part for part in above if not _TYPE.search(part)]
    if kind in ("extra_forbidden", "missing") or not _TYPE.search(last):
        parts.append(last)
    where = ".".join(part for part in [*path, *parts] if part)
    if kind in UNION_TAG_ERRORS:
        return _describe_tag_error([*path, *parts], context)
    if kind == "extra_forbidden":
        for settings in models_at(model, parts[:-1]):
            if instead := getattr(settings, "REMOVED", {}).get(parts[-1]):
                return where, f"no longer a setting. {instead}", ""
        return ".".join([*path, *parts[:-1]]), unknown("key", parts[-1], keys_at(model, parts[:-1])), ""
    if kind == "missing":
        if isinstance(problem["loc"][-1], int):
            return ".".join([*path, *parts[:-1]]), "expected one more entry", in_yaml(list(problem["input"]))
        return where, _describe_missing(models_at(model, parts[:-1]), parts[-1]), ""
    if kind == "literal_error" and (choices := re.findall(QUOTED, str(context["expected"]))):
        if isinstance(problem["input"], str | int | float) and not isinstance(problem["input"], bool):
            return where, unknown("value", str(problem["input"]), choices), in_yaml(problem["input"])
        return where, f"expected one of {', '.join(choices)}", in_yaml(problem["input"])
    got = in_yaml(problem["input"])
    return where, _expected(problem), "" if isinstance(problem["input"], dict) and kind not in EXPECTED else got


def _describe_missing(models: Iterable[type[BaseModel]], key: str) -> str:
    """Return the message about a missing key, with its allowed words if the key takes only words."""
    fields = [model.model_fields[key] for model in models if key in model.model_fields]
    choices = [field.annotation for field in fields if typing.get_origin(field.annotation) is Literal]
    words = [str(word) for choice in choices for word in typing.get_args(choice)]
    return f"this key is missing. Expected one of: {', '.join(words)}." if words else "this key is missing"


def _expected(problem: dict[str, Any]) -> str:
    """Return what was expected instead of a value."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind]}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("too_short", "too_long"):
        number = context["min_length" if kind == "too_short" else "max_length"]
        most = "least" if kind == "too_short" else "most"
        return f"expected at {most} {'one entry' if number == 1 else counted(number, 'entry', 'entries')}"
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {context['pattern']}"
    return str(problem["msg"]).replace("Input should be", "expected")


def keys_at(model: type[BaseModel], path: Iterable[str]) -> list[str]:
    """Return the keys that are allowed at a path inside a model."""
    return [name for kind in models_at(model, path) for name in kind.model_fields]


def models_at(model: type[BaseModel], path: Iterable[str]) -> list[type[BaseModel]]:
    """Return the settings models whose keys are allowed at a path inside a model."""
    here: list[Any] = [model]
    for part in path:
        here = [below for annotation in here for below in _below(annotation, part)]
    return [kind for annotation in here for kind in models_in(annotation)]


def _below(annotation: Any, part: str) -> list[Any]:
    """Return the annotations of the value at a key, or of the entries, of a value with this annotation."""
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        if field is not None:
            return [field.annotation]
        return [annotation] if _has_tag(annotation, part) else []
    inner = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    if typing.get_origin(annotation) in (dict, list, tuple):
        return list(inner[-1:] if typing.get_origin(annotation) is dict else inner)
    return [below for argument in inner for below in _below(argument, part)]


def _has_tag(model: type[BaseModel], tag: Any) -> bool:
    """Return whether a value of the discriminator selects a model of a union."""
    return any(tag in typing.get_args(field.annotation) for field in model.model_fields.values())


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings models in a type annotation."""
    if _is_model(annotation):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in models_in(inner)]
