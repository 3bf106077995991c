"""Stored dtypes: convert float32 values to the dtype of a shard, and back.

float32    unchanged
float16    rounded; a value out of range is an error
bfloat16   rounded to nearest even, stored as its 16 bits (uint16): HDF5 has no such type
int8       value / scale, rounded; a float32 scale per channel of a shard: its largest magnitude / 127
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Stored = Literal["float16", "bfloat16", "float32", "int8"]
Unscaled = Literal["float16", "bfloat16", "float32"]

ON_DISK = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int8": "|i1"}
"""{stored dtype: NumPy dtype in the file}."""

PIECE_BYTES = 2**20  # of rows that are checked at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Encoded:
    """Rows in their stored dtype, and which rows have only finite values, bool (rows,)."""

    values: np.ndarray
    finite: np.ndarray


def encode(values: np.ndarray, stored: Unscaled) -> Encoded:
    """Convert float values (rows, channels, ...) to their stored dtype. Values out of range become infinite."""
    if stored == "bfloat16":
        converted = _to_bfloat16(np.ascontiguousarray(values, dtype=np.float32))
    else:
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(values, dtype=ON_DISK[stored])
    return Encoded(converted, _finite_rows(converted, stored))


def largest_magnitudes(values: np.ndarray) -> np.ndarray:
    """Return the largest magnitude per channel of rows (n, channels, ...), float32 (channels,); 0 without rows."""
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    result: np.ndarray = np.abs(values).max(axis=axes, initial=0).astype(np.float32)
    return result


def int8_scale(largest: np.ndarray) -> np.ndarray:
    """Return the int8 scale per channel, float32 (channels,), from the largest magnitudes over all rows of a shard."""
    scale: np.ndarray = np.maximum(largest, np.finfo(np.float32).tiny) / np.float32(127)
    return scale


def quantise(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Convert finite float32 rows (n, channels, ...) to int8. Overwrites `values`, to save memory."""
    np.divide(values, scale.reshape(1, -1, *[1] * (values.ndim - 2)), out=values)
    np.rint(values, out=values)
    return values.astype(np.int8)


def decode(values: np.ndarray, stored: Stored, scale: np.ndarray | None = None) -> np.ndarray:
    """Convert stored rows to numbers: float16 and float32 unchanged, bfloat16 and int8 to float32."""
    if stored == "bfloat16":
        bits: np.ndarray = values.astype(np.uint32) << 16
        return bits.view(np.float32)
    if stored == "int8":
        assert scale is not None, "an int8 shard has scales"
        numbers: np.ndarray = values * scale.reshape(1, -1, *[1] * (values.ndim - 2))
        return numbers
    return values


def _finite_rows(values: np.ndarray, stored: Stored) -> np.ndarray:
    """Return which stored rows have only finite values, bool (rows,)."""
    # Infinity and NaN have all exponent bits set. Read as integers, they are the largest values: as unsigned integers
    # those with the sign bit, as signed integers those without. Two maxima per piece need no memory, and NumPy has no
    # faster test for float16.
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}[stored]
    kind = "4" if stored == "float32" else "2"
    bits = values.view(f"<u{kind}").reshape(len(values), -1)
    negative = exponent | 1 << (8 * int(kind) - 1)
    step = max(1, PIECE_BYTES // max(1, bits[:1].nbytes))
    finite = np.ones(len(bits), dtype=bool)
    for start in range(0, len(bits), step):
        piece = bits[start : start + step]
        if piece.max(initial=0) >= negative or piece.view(f"<i{kind}").max(initial=0) >= exponent:
            finite[start : start + step] = ((piece & exponent) != exponent).all(axis=1)
    return finite


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # Rounding must not turn a NaN whose upper bits are clear into infinity.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
