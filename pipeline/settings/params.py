"""Read params.yaml as DVC does: YAML 1.2, with the same library and the same loader.

Another reader could give the same text another meaning: YAML 1.1 reads `1e-3` as text, `on` as true, `010` as 8 and
`1:30` as 90. DVC also rewrites the file (`dvc exp run -S`) without its quotes; `check_rewriting` lists the values that
this would break.
"""

import datetime
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, requires
from pipeline.settings.messages import in_yaml, key_in_yaml

HINTS = {
    "found unexpected ':'": " In {…} and […] put a value with `:` in quotes.",
    "found character that cannot start any token": ". Indent with spaces, not with tabs, and put text that begins with "
    "`@` or a backtick in quotes.",
    "found duplicate key": ". Rename one of the two, or leave it out.",
    "codec can't decode": ". Save the file as UTF-8.",
}
"""What to do, for a part of the YAML reader's message."""


def read_params(path: Path) -> dict[str, Any]:
    """Read params.yaml without checking it; raises ConfigError if it is missing, unreadable or not a mapping."""
    with requires("pipeline", what="params.yaml"):
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Run the command in the root of an icecore project.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML. {_explain(error, path)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {in_yaml(raw)}.")
    return raw


def with_lines(problems: Iterable[str], path: Path) -> list[str]:
    """Return problems of params.yaml, each followed by the line number of the key that it begins with."""
    from ruamel.yaml import YAML

    lines = list(problems)
    raw = YAML().load(path.read_text(encoding="utf-8")) if lines else None
    return [f"{problem} (line {line})" if (line := _line_of(problem, raw)) else problem for problem in lines]


def _line_of(problem: str, raw: Any) -> int:
    """Return the line number of the key that a problem begins with, or of the nearest mapping around it; else 0."""
    key, _, message = problem.partition(": ")
    is_section = key.startswith("unknown ")
    unknown_key = re.match(r"unknown (?:key|section) '([^']*)'", problem if is_section else message)
    parts = [] if is_section else key.split(".")
    line = 0
    for part in [*parts, *([unknown_key[1]] if unknown_key else [])]:
        marks: Any = getattr(raw, "lc", None)  # ruamel.yaml's record of lines and columns
        if isinstance(raw, dict):
            keys = [key for key in raw if key_in_yaml(key) == part]
            position = marks.key(keys[0]) if keys and keys[0] in marks.data else None
        elif isinstance(raw, list) and part.isdigit() and int(part) < len(raw):
            keys = [int(part)]
            position = marks.item(keys[0])
        else:
            break
        if not keys:
            break
        line = position[0] + 1 if position else line
        raw = raw[keys[0]]
    return line


def _explain(error: Exception, path: Path) -> str:
    """Return the YAML reader's message with its line, without its advice to programmers."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    advice = next((n for n, line in enumerate(lines) if line.startswith(("To suppress", "Duplicate keys"))), len(lines))
    text = "\n".join(lines[:advice]).replace('"<unicode string>"', path.name)
    return text + next((hint for part, hint in HINTS.items() if part in text), "")


def unusual_values(raw: Mapping[Any, Any]) -> list[str]:
    """Return the values that DVC cannot hold or compare, such as dates, each as a problem with its path."""
    try:
        return list(_unusual(raw, (), ()))
    except RecursionError:
        return ["expected settings, got mappings and lists that are nested too deeply."]


def _unusual(value: Any, path: tuple[str, ...], above: tuple[int, ...]) -> Iterator[str]:
    where = ".".join(path)
    if id(value) in above:
        yield f"{where}: expected a value, got an anchor that contains itself."
    elif isinstance(value, dict):
        for key, inner in value.items():
            if _is_plain(key):
                yield from _unusual(inner, (*path, key_in_yaml(key)), (*above, id(value)))
            else:
                yield f"{where}: expected text as a key, got {in_yaml(key)}. Write it in quotes."
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _unusual(inner, (*path, str(number)), (*above, id(value)))
    elif isinstance(value, float) and math.isnan(value):
        yield f"{where}: expected a number, got .nan, which equals nothing: DVC would run the stage every time."
    elif not _is_plain(value):
        yield (
            f"{where}: expected text, a number, a list or a mapping, got {_describe(value)}. Write text that looks "
            "like a date in quotes, and leave tags such as !!set out."
        )


def _describe(value: Any) -> str:
    """Return YAML's name for a value that is neither text, number, list nor mapping."""
    if isinstance(value, datetime.date):
        return f"the date {value}"
    return "bytes (!!binary)" if isinstance(value, bytes) else f"a value of YAML's type {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def check_rewriting(path: Path) -> list[str]:
    """List the values of params.yaml that `dvc exp run -S` would make unreadable, each with what to write instead.

    DVC writes text without quotes where YAML 1.2 allows it, but its own reader refuses some such texts between braces
    or brackets: `{root: s3://bucket}`.
    """
    with requires("pipeline", what="params.yaml"):
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

    try:
        raw = YAML().load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        return [f"`dvc exp run -S` cannot rewrite params.yaml. {_explain(error, path)}"]
    unreadable = dict.fromkeys(where for where, text in _in_flow(raw, (), inside=False) if not _survives(text))
    return [
        f"{where}: `dvc exp run -S` rewrites params.yaml without these quotes, and cannot read it then. Write the "
        "surrounding mapping or list without braces or brackets, one entry per line."
        for where in unreadable
    ]


def _in_flow(value: Any, path: tuple[str, ...], *, inside: bool) -> Iterator[tuple[str, str]]:
    """Yield the texts between braces or brackets, including keys, each with the path of its value."""
    if isinstance(value, dict | list):
        flow: Any = value
        inside = inside or bool(flow.fa.flow_style())
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            here = (*path, key_in_yaml(key))
            yield from _in_flow(key, here, inside=inside and isinstance(value, dict))
            yield from _in_flow(inner, here, inside=inside)
    elif inside and isinstance(value, str):
        yield ".".join(path), value


def _survives(text: str) -> bool:
    """Return whether DVC can read a text that it wrote between brackets."""
    with requires("pipeline", what="params.yaml"):
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

    written = io.StringIO()
    writer = YAML()
    writer.default_flow_style = True
    writer.dump({text: text}, written)
    try:
        return bool(YAML(typ="safe").load(written.getvalue()) == {text: text})
    except YAMLError:
        return False
