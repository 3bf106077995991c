"""Write values as YAML text, and insert entries into YAML text without changing any other line.

ruamel.yaml locates where each value of the text begins and ends. It is not used to write the text, since it would move
the comment in front of a section behind an entry that is added above.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError, requires

PLAIN = re.compile(r"[A-Za-zÀ-ɏ_/][\wÀ-ɏ./+ -]*")
"""Texts that need no quotes, unless YAML reads them as another type."""


def scalar(value: Any) -> str:
    """Return a scalar as YAML text."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = PLAIN.fullmatch(value) and value == value.strip() and _load(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def inline(value: Any) -> str:
    """Return a value as a single line of YAML, with braces and brackets."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def block(value: Mapping[str, Any], indent: int, levels: int = 1) -> list[str]:
    """Return a mapping as lines of YAML.

    indent: spaces in front of each line.
    levels: how deep mappings are written in block style; below, only mappings that contain mappings are.
    """
    lines = []
    for key, inner in value.items():
        start = f"{' ' * indent}{scalar(key)}:"
        is_mapping = isinstance(inner, Mapping) and bool(inner)
        if is_mapping and (levels > 0 or any(isinstance(item, Mapping) for item in inner.values())):
            lines += [start, *block(inner, indent + 2, levels - 1)]
        else:
            lines.append(f"{start} {inline(inner)}")
    return lines


def insert(text: str, path: Sequence[str], key: str, value: Mapping[str, Any]) -> str:
    """Return the text with `key: value` added as the last entry of the mapping at `path`, created if it is missing.

    Raises ConfigError if the value at `path` is not a mapping, or if the text cannot be edited.
    """
    wanted = _plain(_load(text)) or {}
    here = wanted
    for part in path:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            raise ConfigError(f"{'.'.join(path)}: expected a mapping, got {inline(here)}. Write it as a mapping.")
    here[key] = _plain(value)
    return _verified(_insert(text, path, key, value), wanted, [*path, key])


def append(text: str, path: Sequence[str], value: str) -> str:
    """Return the text with a value added at the end of the list at `path`; raises ConfigError if there is no list."""
    wanted = _plain(_load(text))
    here: Any = wanted
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None
    if not isinstance(here, list):
        raise ConfigError(f"{'.'.join(path)}: expected a list, got {inline(here)}. Write it as a list.")
    here.append(value)
    node = _node(text, path)
    last = node.value[-1] if node.value else None
    if node.flow_style or last is None:
        new = _into_flow(text, node, last, scalar(value))
    else:
        line = _line_start(text, last.start_mark.index)
        dash = text[line : last.start_mark.index]
        new = _after_line(text, _end(last), f"{dash}{scalar(value)}")
    return _verified(new, wanted, path)


def _insert(text: str, path: Sequence[str], key: str, value: Mapping[str, Any]) -> str:
    known = [part for count, part in enumerate(path, start=1) if _node(text, path[:count]) is not None]
    for part in reversed(path[len(known) :]):  # missing mappings
        key, value = part, {key: value}
    node = _node(text, known)
    if node is None or (not known and not node.value):
        return _at_end(text, "\n".join(block({key: value}, 0, 2)))
    if node.tag.endswith(":null"):
        above = _key(text, known)
        lines = "\n".join(block({key: value}, above.start_mark.column + 2))
        return _after_line(text, above.end_mark.index, lines)
    last = node.value[-1][1] if node.value else None
    if node.flow_style or last is None:
        return _into_flow(text, node, last, f"{scalar(key)}: {inline(value)}")
    if not known:
        return _at_end(text, "\n" + "\n".join(block({key: value}, 0, 2)))
    column = node.value[0][0].start_mark.column
    lines = "\n".join(block({key: value}, column))
    return _after_line(text, _end(last), lines, comments_from=column)


def _into_flow(text: str, node: Any, last: Any, new: str) -> str:
    """Return the text with an addition before the closing brace or bracket of a node."""
    close = node.end_mark.index - 1
    if last is None:
        return text[: node.start_mark.index + 1] + new + text[close:]
    rest = text[_end(last) : close]
    comma = "" if "," in re.sub(r"#[^\n]*", "", rest) else ","
    at = _end(last) if comma else _end(last) + rest.index(",") + 1
    return f"{text[:at]}{comma} {new}{text[at:]}"


def _after_line(text: str, index: int, new: str, *, comments_from: int | None = None) -> str:
    """Return the text with lines added below the line at `index` and the comments that continue it.

    comments_from: comment lines that begin at this column or later belong to the line above.
    """
    end = _line_end(text, index)
    while comments_from is not None and (match := re.compile(r" *#").match(text, end)):
        if match.end() - end - 1 < comments_from:
            break
        end = _line_end(text, end)
    newline = "\r\n" if "\r\n" in text else "\n"
    start = text[:end] if text[:end].endswith("\n") else text[:end] + newline
    return start + new.replace("\n", newline) + newline + text[end:]


def _at_end(text: str, new: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    start = text if not text or text.endswith("\n") else text + newline
    return start + new.replace("\n", newline) + newline


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    """Return the start of the line after the line at `index`."""
    newline = text.find("\n", index)
    return len(text) if newline < 0 else newline + 1


def _end(node: Any) -> int:
    """Return the end of a node: a block ends with its last value, not with the comments below."""
    if isinstance(node.value, list) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end - 1 if getattr(node, "style", None) in ("|", ">") else end  # block scalars end at the next line's start


def _node(text: str, path: Sequence[str]) -> Any:
    """Return ruamel.yaml's node at a path, or None."""
    with requires("pipeline", what="params.yaml"):
        from ruamel.yaml import YAML

    yaml: Any = YAML()
    node = yaml.compose(text)
    for part in path:
        if node is None or not isinstance(node.value, list):
            return None
        node = next((inner for name, inner in node.value if name.value == part), None)
    return node


def _key(text: str, path: Sequence[str]) -> Any:
    """Return the node of the last key of a path."""
    return next(name for name, _ in _node(text, path[:-1]).value if name.value == path[-1])


def _load(text: str) -> Any:
    with requires("pipeline", what="params.yaml"):
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """Return a copy of plain dictionaries and lists, without objects shared by YAML aliases."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _verified(text: str, wanted: Any, path: Sequence[str]) -> str:
    """Return the text; raises ConfigError if it does not parse to the wanted content."""
    if _load(text) != wanted:
        raise ConfigError(
            f"{'.'.join(path)}: the layout of params.yaml does not allow an insertion. Add the entry by hand:\n"
            + "\n".join(block(_at(wanted, path), 0, 2))
        )
    return text


def _at(value: Any, path: Sequence[str]) -> dict[str, Any]:
    """Return the value at a path, inside the mappings around it."""
    for part in path:
        value = value[part]
    for part in reversed(path):
        value = {part: value}
    return dict(value)
