"""Sample keys as NumPy arrays of 16 bytes (dtype S16), which sort and compare as the hex text does.

Take the bytes of a key with `tobytes`, never by indexing: NumPy drops trailing zero bytes of a single S16 element.
"""

from collections.abc import Iterable

import numpy as np

from pipeline.files import KEY_BYTES

DTYPE = np.dtype(f"S{KEY_BYTES}")


def from_hex(keys: Iterable[str]) -> np.ndarray:
    """Keys of 32 hex digits to an array of dtype S16."""
    return np.frombuffer(bytes.fromhex("".join(keys)), dtype=DTYPE)


def to_hex(keys: np.ndarray) -> list[str]:
    """An array of keys to text of 32 hex digits each."""
    text = np.ascontiguousarray(keys).tobytes().hex()
    width = 2 * KEY_BYTES
    return [text[start : start + width] for start in range(0, len(text), width)]


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key among sorted ones, -1 where it is not there; int64, of the length of `wanted`."""
    if len(sorted_keys) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    places = np.searchsorted(sorted_keys, wanted)
    places[places == len(sorted_keys)] = 0
    return np.where(sorted_keys[places] == wanted, places, -1)
