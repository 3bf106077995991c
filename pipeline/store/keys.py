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


def halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower 64 bits of each key, uint64: they sort as the keys do, and faster."""
    pairs = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    return pairs[:, 0].astype("<u8"), pairs[:, 1].astype("<u8")


def join(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Keys from their halves, S16."""
    return np.stack([upper, lower], axis=1).astype(">u8").reshape(-1).view(DTYPE)


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key among sorted ones, -1 where it is not there; int64, of the length of `wanted`."""
    return find_halves(*halves(sorted_keys), wanted)


def find_halves(upper: np.ndarray, lower: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`find` among keys that are given by their halves."""
    high, low = halves(wanted)
    if len(upper) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(high, kind="stable")  # neighbours among the wanted then touch neighbouring memory
    places = np.empty(len(wanted), dtype=np.int64)
    places[order] = np.searchsorted(upper, high[order])
    # Two keys share their upper half once in billions: walk on while they do.
    while True:
        inside = places < len(upper)
        at = np.where(inside, places, 0)
        same = inside & (upper[at] == high)
        walk = same & (lower[at] < low)
        if not walk.any():
            return np.where(same & (lower[at] == low), places, -1)
        places[walk] += 1
