"""List the settings of params.yaml with key, type, default and meaning, read from the settings models."""

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
DEEPEST = 6  # levels of nested settings


@dataclass(frozen=True)
class Setting:
    """A key of params.yaml. `key` is its path, with NAME for the name of an entry."""

    key: str
    type: str
    default: str
    """`needed`, `default …`, or empty for nested settings."""

    meaning: str


def list_settings(name: str, section: Section) -> list[Setting]:
    """Return every setting of a section. In a union, a model's keys follow the value that selects the model."""
    path = f"{name}.NAME" if section.named else name
    settings: dict[Setting, None] = {}
    for model in models_in(section.model):
        settings.update(dict.fromkeys(_list_model(model, path)))
    return list(settings)


def describe_settings(sections: Mapping[str, Section]) -> str:
    """Return all settings as text, two lines per setting: key, type and default; then the meaning."""
    lines = []
    for name, section in sections.items():
        models = models_in(section.model)
        about = _about(models[0]) if len(models) == 1 else "One of several kinds"
        lines.append(f"{name}: {about}.")
        for setting in list_settings(name, section):
            default = f"; {setting.default}" if setting.default else ""
            lines.append(f"  {setting.key}: {setting.type}{default}")
            lines += textwrap.wrap(setting.meaning, 100, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines[:-1])


def settings_to_json(sections: Mapping[str, Section]) -> list[dict[str, Any]]:
    """Return all settings as values that JSON can store."""
    return [asdict(setting) for name, section in sections.items() for setting in list_settings(name, section)]


def _list_model(model: type[BaseModel], path: str, depth: int = 0) -> Iterator[Setting]:
    kind = _discriminator(model)
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if kind is None else f"{path}({kind[1]}).{name}"
        yield Setting(here, describe_type(field.annotation), _default(field), _meaning(model, name, field))
        inner = models_in(field.annotation) if depth < DEEPEST else []
        several = "[]" if _is_list(field.annotation) else ".NAME" if _is_mapping(field.annotation) else ""
        for inner_model in inner:
            yield from _list_model(inner_model, f"{here}{several}", depth + 1)


def _discriminator(model: type[BaseModel]) -> tuple[str, str] | None:
    """Return the key and the value that select a model in its union; None for a model outside a union."""
    for name, field in model.model_fields.items():
        values = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
        if len(values) == 1:
            return name, str(values[0])
    return None


def _meaning(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.description:
        return field.description
    if _discriminator(model) is not None:  # the discriminator is described by the docstring of its model
        return _about(model)
    raise AssertionError(f"{model.__name__}.{name}: a setting without a description")


def _about(model: type[BaseModel]) -> str:
    """Return the first paragraph of a model's docstring as a single line."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, Settings):
        return ""
    return f"default {'none' if value is None else _to_yaml(value)}"


def _to_yaml(value: Any) -> str:
    """Return a value as YAML text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_to_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_to_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, Settings):
        return _to_yaml({name: getattr(value, name) for name in value.model_fields_set})
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_type(annotation: Any) -> str:
    """Return the type of a setting in words: `list of text`, `integer or none`, `auto | 64`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe_type(inner[0])
    if origin is Literal:
        return " | ".join(_to_yaml(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(argument) for argument in inner))
    if origin in (tuple, list, frozenset, set):
        parts = [argument for argument in inner if argument is not Ellipsis]
        is_uniform = Ellipsis in inner or len(parts) == 1
        return f"list of {describe_type(parts[0])}" if is_uniform else f"[{', '.join(map(describe_type, parts))}]"
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
    """Return whether the models of an annotation are inside a container of a wanted kind."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in wanted:
        return bool(models_in(annotation))
    return any(_outermost(argument, wanted) for argument in inner if origin is not Literal and argument is not Ellipsis)
