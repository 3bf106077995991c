"""The labels in the .json and .cls members of a sample in a tar archive."""

import json
import math
from collections import Counter
from typing import Any

from pipeline.manifest import label_column
from pipeline.prepare.config import PrepareConfig
from pipeline.sources import filesystem


def read_class(text: str) -> int | str:
    """Return the class in a .cls member: an integer where the text is one, else the text without its line end."""
    text = text.rstrip("\r\n")
    return int(text) if len(text) < 19 and _is_number(text) else text


def read_json(text: str, config: PrepareConfig) -> dict[str, Any]:
    """Return the labels in a JSON object: its top-level scalars and lists of labels.

    A list of strings is a list of labels. A list of integers or booleans is a list of labels if `columns` names it.
    Other values that `columns` names, and numbers that a manifest cannot store, are returned as JSON text.
    Raises ValueError with the reason for text that is not a JSON object, and for a name that occurs twice.
    """
    try:
        # NaN and Infinity are not JSON, but Python writes them; NaN stands for a missing value.
        values = json.loads(text, parse_constant=lambda name: None if name == "NaN" else name, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise ValueError("its .json is damaged") from None
    if not isinstance(values, _Pairs):
        raise ValueError("its .json holds no object")
    if repeated := sorted(name for name in values.repeated if config.columns is None or name in config.columns):
        raise ValueError(f"its .json has {repeated[0]!r} twice")
    result: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or (config.columns is not None and name not in (*config.columns, "label")):
            continue
        if isinstance(value, dict | list):
            wanted = name == "label" or (config.columns is not None and name in config.columns)
            if isinstance(value, list) and all(isinstance(label, str | int if wanted else str) for label in value):
                result[label_column(filesystem.text(name))] = [
                    filesystem.text(label) if isinstance(label, str) else label for label in value
                ]
                continue
            if config.columns is None or name not in config.columns:
                continue
            value = json.dumps(value, ensure_ascii=False)
        if (type(value) is int and not -(2**63) <= value < 2**63) or (type(value) is float and math.isinf(value)):
            value = json.dumps(value)
        result[label_column(filesystem.text(name))] = filesystem.text(value) if isinstance(value, str) else value
    return result


def as_text(value: Any) -> str:
    """Return a JSON scalar as text: true and 2.5 as JSON writes them, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


class _Pairs(dict[str, Any]):
    """A JSON object, and the names that occur in it more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs) if len(self) < len(pairs) else {}
        self.repeated = {name for name, count in counts.items() if count > 1}


def _is_number(text: str) -> bool:
    """Return whether a text is an integer in canonical form: 7, but not 007."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text
