"""Settings from params.yaml to checked values: every problem of the file in one message.

A settings model stands beside the code it configures and derives from `Settings`. This module knows no model; it is
handed a table of sections and checks a whole file against it.
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
LONGEST = 128  # characters of a name: files put suffixes behind it


class Settings(BaseModel):
    """Base of every settings model: unknown keys are errors, values do not change after they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)

    REMOVED: ClassVar[Mapping[str, str]] = {}
    """Keys that were settings once, each with what to write in its place."""

    def model_post_init(self, context: Any) -> None:
        """Keep the values for `repair`, which goes on with them where only a check of them together fails."""
        if isinstance(context, dict) and BUILT in context:
            context[BUILT].append(self)


@dataclass(frozen=True)
class Section:
    """One top-level key of params.yaml: a settings model, or a mapping of names to one.

    Several models that one key tells apart are one too: a union with a discriminator, as pydantic has it.
    """

    model: Any
    named: bool = False


@dataclass(frozen=True)
class Checked:
    """A model with all values of the settings; or, where some of these are wrong, one without them."""

    whole: Settings | None = None
    partial: Settings | None = None


class Entries(dict[str, Any]):
    """The entries of a section by name, without those some of whose values are wrong: `partial` has these.

    An entry in `partial` is looked at for what it names, and is no answer to those who name it.
    """

    def __init__(self, whole: Mapping[str, Any] = {}, partial: Mapping[str, Any] = {}) -> None:
        super().__init__(whole)
        self.partial = dict(partial)


def every(values: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    """Return name and settings of the entries of a section, also of those that are wrong in part."""
    entries = values.get(section, {})
    return [*entries.items(), *getattr(entries, "partial", {}).items()]


def check(raw: Mapping[str, Any], sections: Mapping[str, Section]) -> tuple[dict[str, Any], list[str]]:
    """Check a whole file; return the models of its sections, and all problems.

    Of settings that are wrong the models have what is right of them. A section that is left out has no entries, or its
    defaults.
    """
    values: dict[str, Any] = {}
    problems = [unknown("section", key_in_yaml(key), sections) for key in raw if key not in sections]
    for name, section in sections.items():
        found = raw.get(name, {})
        if found is None and section.named:
            values[name], more = (
                Entries(),
                [f"{name}: expected a mapping of names, got nothing. For none leave the section out."],
            )
        elif section.named:
            values[name], more = _check_named(name, found, section.model)
        else:
            checked, more = _check_model((name,), {} if found is None else found, section.model)
            values[name] = checked.whole or checked.partial
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
        raise ConfigError(bullets(f"{where}: {counted(len(found), 'problem')}", found))


def _check_named(section: str, found: Any, model: Any) -> tuple[Entries, list[str]]:
    if not isinstance(found, dict):
        return Entries(), [f"{section}: expected a mapping of names, got {in_yaml(found)}."]
    whole: dict[str, Settings] = {}
    partial: dict[str, Settings] = {}
    problems = []
    for key, value in found.items():
        name = key_in_yaml(key)
        if wrong := _check_name(key, [one for one in found if isinstance(one, str)]):
            problems.append(f"{section}.{name}: {wrong}")
        checked, more = _check_model((section, name), value if value is not None else {}, model)
        problems += more
        if checked.whole is not None:
            (partial if wrong else whole)[name] = checked.whole
        elif checked.partial is not None:
            partial[name] = checked.partial
    return Entries(whole, partial), problems


def _check_name(name: Any, names: list[str]) -> str:
    """Return what is wrong with the name of an entry, if anything; `names` are those of its section."""
    if not isinstance(name, str):
        return (
            f"expected text as a name, got {in_yaml(name)}: DVC addresses entries by text. Write it in quotes, here "
            "and where it is named."
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


def _check_model(path: tuple[str, ...], found: Any, model: Any) -> tuple[Checked, list[str]]:
    if not isinstance(found, dict):
        return Checked(), [f"{'.'.join(path)}: expected a mapping of settings, got {in_yaml(found)}."]
    try:
        return Checked(whole=TypeAdapter(model).validate_python(found)), []
    except ValidationError as error:
        errors = [dict(problem) for problem in error.errors(include_url=False)]
    repaired = repair(found, model, errors)
    first = [one for one in errors if not is_explained(one, found, repaired)]
    lines = [*describe_errors(path, first, model), *describe_errors(path, repaired.later, model)]
    kept = Checked(partial=repaired.value) if repaired.mended else Checked(whole=repaired.value)
    return kept, list(dict.fromkeys(lines))
