"""Write pydantic's errors as problems of params.yaml: a line each, in YAML's words, with the place of its key."""

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
    "string_too_short": "text with a character or more",
}
"""The word of YAML for each kind of pydantic's errors about types."""

UNTOLD = ("union_tag_not_found", "union_tag_invalid")
QUOTED = r"'([^']*)'"
SHOWN = 80
"""Characters of a value that a message repeats."""

DEEPEST = 3
"""Levels of mappings and lists in a value that a message repeats."""

CHOICE = re.compile(r"unknown value '.*'\.(?P<hint> Did you mean .*\?)? Expected one of: (?P<words>.*)\.", re.DOTALL)
"""What `pipeline.errors.unknown` says of a value."""

_TYPE = re.compile(r"[\[\(]|^(str|int|float|bool|constrained-.*)$")


def in_yaml(value: Any, depth: int = 0) -> str:
    """Return a value as YAML has it, shortened: `nothing`, `true`, `{a: 1}`, and text in quotes."""
    if value is None:
        return "null" if depth else "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list | tuple) and depth > DEEPEST:
        text = "…"
    elif isinstance(value, dict):
        text = ", ".join(f"{key_in_yaml(key)}: {in_yaml(one, depth + 1)}" for key, one in value.items())
        text = f"{{{text}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(in_yaml(one, depth + 1) for one in value)}]"
    else:
        text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def key_in_yaml(key: Any) -> str:
    """Return a key as YAML has it."""
    return key if isinstance(key, str) else in_yaml(key, depth=1)


def describe_errors(path: Sequence[str], problems: Iterable[dict[str, Any]], model: Any) -> list[str]:
    """Return the lines of pydantic's errors about what stands at a path, where a model is expected."""
    every = list(problems)
    kinds = models_in(model)
    lines: dict[tuple[str, str], list[str]] = {}
    for problem in every:
        if _is_of_words(problem, every) or _follows(problem) or _is_of_another_form(problem, every):
            continue
        if len(kinds) == 1:
            where, message, got = _say(path, problem, kinds[0])
        elif problem["type"] in UNTOLD:
            where, message, got = _say_untold(path, problem["ctx"])
        else:  # a union: pydantic puts the value that tells the models apart before the path of the key
            tag, *location = problem["loc"]
            kind = next(kind for kind in kinds if _is_covered_by(kind, tag))
            where, message, got = _say(path, {**problem, "loc": tuple(location)}, kind)
        messages = lines.setdefault((where, got), [])
        if message not in messages:
            messages.append(message)
    return [line for (where, got), messages in lines.items() for line in _joined(where, messages, got)]


def _joined(where: str, messages: Sequence[str], got: str) -> list[str]:
    """Return a line of each message; what one value might have been instead is one line."""
    kinds = [one for one in messages if one.removeprefix("expected ") in EXPECTED.values()]
    lines = [one for one in messages if one not in kinds]
    hint = ""
    if kinds:
        words = [one.removeprefix("expected ") for one in kinds]
        for choice in [match for one in lines if (match := CHOICE.fullmatch(one))]:  # the key takes words too
            lines.remove(choice[0])
            words += choice["words"].split(", ")
            hint = choice["hint"] or ""
        lines.insert(0, f"expected {' or '.join(words)}, got {got}.{hint}")
    tail = [one if got in one or not got else f"{one.rstrip('.')}, got {got}" for one in lines]
    return [f"{where}: {one}" if one.endswith(("?", ".")) else f"{where}: {one}." for one in tail]


def _is_of_words(problem: dict[str, Any], every: Sequence[dict[str, Any]]) -> bool:
    """Return whether an error only says that a number is none of the words that the key takes too."""
    if problem["type"] != "literal_error" or isinstance(problem["input"], str):
        return False
    where = problem["loc"][:-1]
    return any(other is not problem and other["loc"][:-1] == where for other in every)


def _follows(problem: dict[str, Any]) -> bool:
    """Return whether pydantic calls a list too short only because it did not count the entries that are wrong."""
    return problem["type"] == "too_short" and bool(len(problem["input"]) >= problem["ctx"]["min_length"])


def _is_of_another_form(problem: dict[str, Any], every: Sequence[dict[str, Any]]) -> bool:
    """Return whether a value is not of one form that its key may have, and has another one with mistakes inside."""
    if problem["type"] not in EXPECTED or not isinstance(problem["input"], dict | list):
        return False
    *above, last = problem["loc"] or ("",)
    if not _TYPE.search(str(last)):
        return False
    return any(
        other["loc"][: len(above)] == tuple(above) and len(other["loc"]) > len(problem["loc"]) for other in every
    )


def _say_untold(path: Iterable[str], context: dict[str, Any]) -> tuple[str, str, str]:
    """Return place and message where the key that tells the models apart is missing, or has none of their values."""
    where = ".".join([*path, context["discriminator"].strip("'")])
    if "tag" not in context:
        return where, "this key is missing", ""
    return where, unknown("value", context["tag"], re.findall(QUOTED, context["expected_tags"])), ""


def _say(path: Sequence[str], problem: dict[str, Any], model: type[BaseModel]) -> tuple[str, str, str]:
    """Return the place of a pydantic error, what was expected there, and the value where the message lacks it."""
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
        for one in models_at(model, parts[:-1]):
            if instead := getattr(one, "REMOVED", {}).get(parts[-1]):
                return where, f"no longer a setting. {instead}", ""
        return ".".join([*path, *parts[:-1]]), unknown("key", parts[-1], keys_at(model, parts[:-1])), ""
    if kind == "missing":
        if isinstance(problem["loc"][-1], int):
            return ".".join([*path, *parts[:-1]]), "expected an entry more", in_yaml(list(problem["input"]))
        return where, _describe_missing(models_at(model, parts[:-1]), parts[-1]), ""
    if kind == "literal_error" and (choices := re.findall(QUOTED, str(context["expected"]))):
        if isinstance(problem["input"], str | int | float) and not isinstance(problem["input"], bool):
            return where, unknown("value", str(problem["input"]), choices), in_yaml(problem["input"])
        return where, f"expected one of {', '.join(choices)}", in_yaml(problem["input"])
    found = in_yaml(problem["input"])
    return where, _expected(problem), "" if isinstance(problem["input"], dict) and kind not in EXPECTED else found


def _describe_missing(models: Iterable[type[BaseModel]], key: str) -> str:
    """Return what is said of a key that is not there, with its words where there are few that it may have."""
    fields = [model.model_fields[key] for model in models if key in model.model_fields]
    choices = [field.annotation for field in fields if typing.get_origin(field.annotation) is Literal]
    words = [str(word) for choice in choices for word in typing.get_args(choice)]
    return f"this key is missing. Expected one of: {', '.join(words)}." if words else "this key is missing"


def _expected(problem: dict[str, Any]) -> str:
    """Return what was expected of a value."""
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
    """Return the keys that are allowed at a path below a model."""
    return [name for kind in models_at(model, path) for name in kind.model_fields]


def models_at(model: type[BaseModel], path: Iterable[str]) -> list[type[BaseModel]]:
    """Return the settings models whose keys are allowed at a path below a model."""
    here: list[Any] = [model]
    for part in path:
        here = [below for annotation in here for below in _below(annotation, part)]
    return [kind for annotation in here for kind in models_in(annotation)]


def _below(annotation: Any, part: str) -> list[Any]:
    """Return the annotations of what stands at a key, or as an entry, of a value with this annotation."""
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        if field is not None:
            return [field.annotation]
        return [annotation] if _is_covered_by(annotation, part) else []
    inner = [one for one in typing.get_args(annotation) if one is not Ellipsis]
    if typing.get_origin(annotation) in (dict, list, tuple):
        return list(inner[-1:] if typing.get_origin(annotation) is dict else inner)
    return [below for one in inner for below in _below(one, part)]


def _is_covered_by(model: type[BaseModel], tag: Any) -> bool:
    """Return whether a value is what tells a model of a union apart."""
    return any(tag in typing.get_args(field.annotation) for field in model.model_fields.values())


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings models in a type."""
    if _is_model(annotation):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in models_in(inner)]
