"""Check params.yaml against settings models, and report every problem of the file in one message.

A settings model is defined next to the code that it configures and derives from `Settings`. This module knows no model:
its caller passes a table of sections.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import ConfigError, bullets, counted, unknown
from pipeline.settings.messages import describe_errors, in_yaml, key_in_yaml
from pipeline.settings.repair import BUILT, is_explained, repair

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST = 128  # characters of a name, which leaves room for the suffixes of file names


class Settings(BaseModel):
    """Base class of every settings model: unknown keys are errors, and checked values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)

    REMOVED: ClassVar[Mapping[str, str]] = {}
    """Former settings, each with what to write instead."""

    def model_post_init(self, context: Any) -> None:
        """Record the instance for `repair`, which uses its values if only a check of several values together fails."""
        if isinstance(context, dict) and BUILT in context:
            context[BUILT].append(self)


@dataclass(frozen=True)
class Section:
    """A top-level key of params.yaml.

    model: a settings model, or a pydantic union of models with a discriminator.
    named: whether the section maps names to entries of that model.
    """

    model: Any
    named: bool = False


@dataclass(frozen=True)
class Checked:
    """The model of an entry: `whole` with all values, or `partial` without the values that are wrong."""

    whole: Settings | None = None
    partial: Settings | None = None


class Entries(dict[str, Any]):
    """The valid entries of a section by name. `partial` has the entries with wrong values, without these values.

    References in a partial entry are still checked, but references to a partial entry fail.
    """

    def __init__(self, whole: Mapping[str, Any] = {}, partial: Mapping[str, Any] = {}) -> None:
        super().__init__(whole)
        self.partial = dict(partial)


def all_entries(values: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    """Return name and settings of all entries of a section, including partial entries."""
    entries = values.get(section, {})
    return [*entries.items(), *getattr(entries, "partial", {}).items()]


def check(raw: Mapping[str, Any], sections: Mapping[str, Section]) -> tuple[dict[str, Any], list[str]]:
    """Check a whole file; return the models of its sections, and all problems.

    A model of wrong settings has the values that are right. A missing section has no entries or default values.
    """
    values: dict[str, Any] = {}
    problems = [unknown("section", key_in_yaml(key), sections) for key in raw if key not in sections]
    for name, section in sections.items():
        content = raw.get(name, {})
        if content is None and section.named:
            values[name], more = (
                Entries(),
                [f"{name}: expected a mapping of names, got nothing. If there are no entries, leave the section out."],
            )
        elif section.named:
            values[name], more = _check_named(name, content, section.model)
        else:
            checked, more = _check_model((name,), {} if content is None else content, section.model)
            values[name] = checked.whole or checked.partial
        problems += more
    return values, problems


def normalise_import_path(path: str) -> str:
    """Return an import path with a colon, `package.module:Net`, for one that YAML allows without quotes."""
    module, dot, name = path.rpartition(".")
    return f"{module}:{name}" if dot and ":" not in path else path


def refuse(problems: Iterable[str], *, where: str = "params.yaml") -> None:
    """Raise ConfigError with all problems, if there are any."""
    lines = list(problems)
    if lines:
        raise ConfigError(bullets(f"{where}: {counted(len(lines), 'problem')}", lines))


def _check_named(section: str, content: Any, model: Any) -> tuple[Entries, list[str]]:
    if not isinstance(content, dict):
        return Entries(), [f"{section}: expected a mapping of names, got {in_yaml(content)}."]
    whole: dict[str, Settings] = {}
    partial: dict[str, Settings] = {}
    problems = []
    for key, value in content.items():
        name = key_in_yaml(key)
        if problem := _check_name(key, [other for other in content if isinstance(other, str)]):
            problems.append(f"{section}.{name}: {problem}")
        checked, more = _check_model((section, name), value if value is not None else {}, model)
        problems += more
        if checked.whole is not None:
            (partial if problem else whole)[name] = checked.whole
        elif checked.partial is not None:
            partial[name] = checked.partial
    return Entries(whole, partial), problems


def _check_name(name: Any, names: list[str]) -> str:
    """Return the error in the name of an entry, or an empty string. names: all names of its section."""
    if not isinstance(name, str):
        return (
            f"expected text as a name, got {in_yaml(name)}: DVC addresses entries by text. Write the name in quotes, "
            "here and in every reference."
        )
    if not NAME.fullmatch(name):
        return "a name has only letters, digits, '-' and '_', a letter or digit first: it becomes a file name."
    if len(name) > LONGEST:
        return f"a name has at most {LONGEST} characters, got {len(name)}: it becomes a file name."
    return check_name_case(name, names)


def check_name_case(name: str, names: Iterable[str]) -> str:
    """Return the error for a name that differs only in case from a name before it, or an empty string."""
    for other in names:
        if other == name:
            break
        if other.lower() == name.lower():
            return f"expected a name that differs from {other!r} in more than case: many disks ignore case."
    return ""


def _check_model(path: tuple[str, ...], content: Any, model: Any) -> tuple[Checked, list[str]]:
    if not isinstance(content, dict):
        return Checked(), [f"{'.'.join(path)}: expected a mapping of settings, got {in_yaml(content)}."]
    try:
        return Checked(whole=TypeAdapter(model).validate_python(content)), []
    except ValidationError as error:
        errors = [dict(problem) for problem in error.errors(include_url=False)]
    repaired = repair(content, model, errors)
    first = [problem for problem in errors if not is_explained(problem, content, repaired)]
    lines = [*describe_errors(path, first, model), *describe_errors(path, repaired.later, model)]
    checked = Checked(partial=repaired.value) if repaired.changed else Checked(whole=repaired.value)
    return checked, list(dict.fromkeys(lines))
