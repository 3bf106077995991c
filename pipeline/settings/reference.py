"""List the settings of params.yaml: key, type, default and meaning of each, as the models have them."""

import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.settings.check import Section, Settings
from pipeline.settings.messages import models_in

NAMES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    type(None): "none",
    Any: "any",
}
DEEPEST = 6  # settings within settings


@dataclass(frozen=True)
class Setting:
    """One key of params.yaml: `key` is its path, NAME standing for the name of an entry."""

    key: str
    type: str
    default: str
    """`needed`, `default …`, or nothing for settings within settings."""

    meaning: str


def list_settings(name: str, section: Section) -> list[Setting]:
    """Return every key of a section; of a union of models, the keys of each behind the value that tells it apart."""
    path = f"{name}.NAME" if section.named else name
    found: dict[Setting, None] = {}
    for model in models_in(section.model):
        found.update(dict.fromkeys(_of_model(model, path)))
    return list(found)


def describe_settings(sections: Mapping[str, Section]) -> str:
    """Return the settings of each section, two lines each: key, type and default; what it means."""
    lines = []
    for name, section in sections.items():
        models = models_in(section.model)
        about = _about(models[0]) if len(models) == 1 else "One of several kinds"
        lines.append(f"{name}: {about}.")
        for one in list_settings(name, section):
            default = f"; {one.default}" if one.default else ""
            lines.append(f"  {one.key}: {one.type}{default}")
            lines += textwrap.wrap(one.meaning, 100, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines[:-1])


def settings_to_json(sections: Mapping[str, Section]) -> list[dict[str, Any]]:
    """Return every setting as values that JSON can have."""
    return [asdict(one) for name, section in sections.items() for one in list_settings(name, section)]


def _of_model(model: type[BaseModel], path: str, depth: int = 0) -> Iterator[Setting]:
    kind = _described_by(model)
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if kind is None else f"{path}({kind[1]}).{name}"
        yield Setting(here, describe_type(field.annotation), _default(field), _meaning(model, name, field))
        inner = models_in(field.annotation) if depth < DEEPEST else []
        several = "[]" if _is_list(field.annotation) else ".NAME" if _is_mapping(field.annotation) else ""
        for one in inner:
            yield from _of_model(one, f"{here}{several}", depth + 1)


def _described_by(model: type[BaseModel]) -> tuple[str, str] | None:
    """Return the key and the value that tell a model from the others of its union."""
    for name, field in model.model_fields.items():
        values = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
        if len(values) == 1:
            return name, str(values[0])
    return None


def _meaning(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.description:
        return field.description
    if _described_by(model) is not None:  # the key that tells the models apart
        return _about(model)
    raise AssertionError(f"{model.__name__}.{name}: a setting without a description")


def _about(model: type[BaseModel]) -> str:
    """Return the first paragraph about a model, on one line."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, Settings):
        return ""
    return f"default {'none' if value is None else _written(value)}"


def _written(value: Any) -> str:
    """Return a value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(one)}' for key, one in value.items())}}}"
    if isinstance(value, Settings):
        return _written({name: getattr(value, name) for name in value.model_fields_set})
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_type(annotation: Any) -> str:
    """Return the type of a setting in words: `list of text`, `integer or none`, `auto | 64`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe_type(inner[0])
    if origin is Literal:
        return " | ".join(_written(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(one) for one in inner))
    if origin in (tuple, list, frozenset, set):
        parts = [one for one in inner if one is not Ellipsis]
        alike = Ellipsis in inner or len(parts) == 1
        return f"list of {describe_type(parts[0])}" if alike else f"[{', '.join(map(describe_type, parts))}]"
    if origin is dict:
        return f"mapping of {describe_type(inner[0])} to {describe_type(inner[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return "settings"
    return NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _is_list(annotation: Any) -> bool:
    return _outermost(annotation, (tuple, list))


def _is_mapping(annotation: Any) -> bool:
    return _outermost(annotation, (dict,))


def _outermost(annotation: Any, wanted: tuple[type, ...]) -> bool:
    """Return whether the models of an annotation lie in a container of a wanted kind."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in wanted:
        return bool(models_in(annotation))
    return any(_outermost(one, wanted) for one in inner if origin is not Literal and one is not Ellipsis)
