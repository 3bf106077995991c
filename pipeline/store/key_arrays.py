"""Sample keys as NumPy arrays of 16 bytes (dtype S16), which sort and compare like their hex strings.

Get the bytes of a key with `tobytes`, never by indexing: NumPy drops trailing zero bytes of an S16 element.
"""

import re
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.readers.sample_key import KEY_BYTES

DTYPE = np.dtype(f"S{KEY_BYTES}")
BLOCK = 65_536
LOOKUP_BLOCK = 16_384  # keys that are looked up at a time, which bounds temporary memory
VALUE_OF_DIGIT = np.full(256, 255, np.uint8)
"""The value of each hex digit, by its ASCII code; 255 for other bytes."""
for _value, _digit in enumerate("0123456789abcdef"):
    VALUE_OF_DIGIT[[ord(_digit), ord(_digit.upper())]] = _value


def from_hex(keys: Iterable[str]) -> np.ndarray:
    """Convert strings of 32 hex digits to an array of dtype S16; raises TypeError or DataError for other values."""
    values = list(keys) if isinstance(keys, Iterable) and not isinstance(keys, str) else None
    try:
        if values is not None and set(map(len, values)) <= {2 * KEY_BYTES}:
            result = np.frombuffer(bytes.fromhex("".join(values)), dtype=DTYPE)
            if len(result) == len(values):  # fromhex skips blanks
                return result
    except (TypeError, ValueError):
        pass
    digits = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")
    wrong: Any = keys if values is None else next(value for value in values if not _is_key(value, digits))
    message = (
        f"keys: expected a list of strings of {2 * KEY_BYTES} hex digits each, or an array of dtype {DTYPE.str[1:]}, "
        f"got {type(wrong).__name__} {reprlib.repr(wrong)}."
    )
    raise DataError(message) if values is not None and isinstance(wrong, str) else TypeError(message)


def _is_key(value: Any, digits: re.Pattern[str]) -> bool:
    return isinstance(value, str) and digits.fullmatch(value) is not None


def from_arrow(column: pa.Array) -> np.ndarray:
    """Convert an Arrow array of strings of 32 hex digits to dtype S16, in blocks, without a Python object per key.

    Raises DataError for missing or malformed keys.
    """
    if column.null_count:
        raise DataError(f"keys: expected {2 * KEY_BYTES} hex digits each, got a row without a key. Run prepare again.")
    parts = [_parse_block(column.slice(start, BLOCK)) for start in range(0, len(column), BLOCK)]
    return np.concatenate(parts) if parts else np.empty(0, DTYPE)


def _parse_block(column: pa.Array) -> np.ndarray:
    texts = column.cast(pa.large_string())
    _, starts, text = texts.buffers()
    at = np.frombuffer(starts, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    width = 2 * KEY_BYTES
    wrong = np.diff(at) != width
    if not wrong.any():
        digits = np.frombuffer(text, np.uint8)[at[0] : at[-1]].reshape(-1, width)
        values = VALUE_OF_DIGIT[digits]
        wrong = (values > 15).any(axis=1)
    if wrong.any():
        got = texts[int(wrong.argmax())].as_py()
        raise DataError(f"keys: expected {width} hex digits each, got {got!r}. Run prepare again.")
    return np.ascontiguousarray(values[:, ::2] << 4 | values[:, 1::2]).view(DTYPE).reshape(-1)


def to_hex(keys: np.ndarray) -> list[str]:
    """Convert an array of keys to strings of 32 hex digits."""
    text = np.ascontiguousarray(keys).tobytes().hex()
    width = 2 * KEY_BYTES
    return [text[start : start + width] for start in range(0, len(text), width)]


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct keys and the position of the first of each, as `np.unique`, but faster."""
    upper, _ = split_uint64(keys)
    order = np.argsort(upper, kind="stable")
    upper = upper[order]
    if (upper[1:] == upper[:-1]).any():  # a duplicate, or two keys with equal upper halves: one in billions
        return np.unique(keys, return_index=True)
    return keys[order], order


def split_uint64(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper and the lower 64 bits of each key, uint64, which sort like the keys, but faster."""
    pairs = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    return pairs[:, 0].astype("<u8"), pairs[:, 1].astype("<u8")


def join(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return keys S16 from their halves."""
    return np.stack([upper, lower], axis=1).astype(">u8").reshape(-1).view(DTYPE)


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the position of each wanted key in `sorted_keys`, int64 (len(wanted),); -1 for a missing key."""
    return find_halves(*split_uint64(sorted_keys), wanted)


def find_halves(upper: np.ndarray, lower: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the same as `find`, for sorted keys given by their halves."""
    result = np.full(len(wanted), -1, dtype=np.int64)
    if len(upper):
        for start in range(0, len(wanted), LOOKUP_BLOCK):
            result[start : start + LOOKUP_BLOCK] = _search(upper, lower, wanted[start : start + LOOKUP_BLOCK])
    return result


def _search(upper: np.ndarray, lower: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    high, low = split_uint64(wanted)
    order = np.argsort(high, kind="stable")  # so that consecutive lookups touch neighbouring memory
    places = np.empty(len(wanted), dtype=np.int64)
    places[order] = np.searchsorted(upper, high[order])
    # Equal upper halves occur once in billions: step forward while they last.
    while True:
        inside = places < len(upper)
        at = np.where(inside, places, 0)
        same = inside & (upper[at] == high)
        step = same & (lower[at] < low)
        if not step.any():
            return np.where(same & (lower[at] == low), places, -1)
        places[step] += 1
