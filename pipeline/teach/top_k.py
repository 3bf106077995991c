"""The largest logits of each row, and the mass of the rest: less to store where there are many classes.

A packed row is float32 (2k + 1,): the k largest logits in falling order, their columns, and the log of the sum of the
exponentials of all other logits (-inf where there is none is stored as the smallest number of float32). Unpacked, the
others share that mass alike. At temperature 1 the probabilities of the kept classes are exact, and the total variation
to the full softmax is at most the mass of the rest. Above 1 a uniform rest has more mass than the rest had (Jensen's
inequality), and that mass is the bound.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import DataError

LOWEST = float(np.finfo(np.float32).min)
MOST_CLASSES = 2**24
"""Columns up to here are whole numbers of float32."""

TEMPERATURES = (1.0, 4.0)
"""At which the error is stated."""


def width(k: int) -> int:
    """Numbers of a packed row."""
    return 2 * k + 1


def pack(logits: np.ndarray, k: int) -> np.ndarray:
    """Logits (n, classes) to packed rows float32 (n, 2 * min(k, classes) + 1).

    Of equal logits the first columns are kept. Raises DataError for more classes than float32 can number.
    """
    classes = logits.shape[1]
    if classes > MOST_CLASSES:
        raise DataError(f"top_k: expected at most {MOST_CLASSES:,} classes, got {classes:,}. Leave `top_k` out.")
    order = np.argsort(-logits, axis=1, kind="stable")
    kept, others = order[:, :k], order[:, k:]
    values = np.take_along_axis(logits, kept, axis=1)
    if others.shape[1]:
        rest = np.logaddexp.reduce(np.take_along_axis(logits, others, axis=1).astype(np.float64), axis=1)
    else:
        rest = np.full(len(logits), LOWEST)
    return np.concatenate([values, kept, rest[:, None]], axis=1).astype(np.float32)


def unpack(packed: np.ndarray, classes: int) -> np.ndarray:
    """Packed rows to dense logits float32 (n, classes), the rest alike."""
    k = (packed.shape[1] - 1) // 2
    others = classes - k
    fill = packed[:, -1:].astype(np.float64) - np.log(others) if others else packed[:, -1:]
    found = np.repeat(fill.astype(np.float32), classes, axis=1)
    np.put_along_axis(found, columns(packed), packed[:, :k], axis=1)
    return found


def columns(packed: np.ndarray) -> np.ndarray:
    """The columns of the kept logits, int64 (n, k)."""
    k = (packed.shape[1] - 1) // 2
    return packed[:, k : 2 * k].astype(np.int64)


def total_variation(logits: np.ndarray, packed: np.ndarray, temperature: float) -> np.ndarray:
    """Half the sum of the absolute differences of the two softmaxes of each row, at a temperature: (n,)."""
    full, kept = (_softmax(one, temperature) for one in (logits, unpack(packed, logits.shape[1])))
    found: np.ndarray = np.abs(full - kept).sum(axis=1) / 2
    return found


def rest(logits: np.ndarray, packed: np.ndarray, temperature: float) -> np.ndarray:
    """The mass of each row's softmax that is not in the kept classes: (n,)."""
    full = _softmax(logits, temperature)
    found: np.ndarray = 1 - np.take_along_axis(full, columns(packed), axis=1).sum(axis=1)
    return found


class Deviation:
    """How far packed rows are off the full softmax, over all rows: total variation, mean and largest."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums = dict.fromkeys(TEMPERATURES, 0.0)
        self._most = dict.fromkeys(TEMPERATURES, 0.0)

    def add(self, logits: np.ndarray, packed: np.ndarray) -> None:
        """Count in some rows."""
        self.rows += len(logits)
        for temperature in TEMPERATURES if len(logits) else ():
            found = total_variation(logits, packed, temperature)
            self._sums[temperature] += float(found.sum())
            self._most[temperature] = max(self._most[temperature], float(found.max()))

    def merge(self, note: Mapping[str, Any]) -> None:
        """Count in what `note` said of other rows."""
        self.rows += note["rows"]
        for temperature, one in zip(TEMPERATURES, note["total_variation"], strict=True):
            self._sums[temperature] += one["mean"] * note["rows"]
            self._most[temperature] = max(self._most[temperature], one["max"])

    @property
    def note(self) -> dict[str, Any]:
        """As plain values."""
        found = [
            {"temperature": one, "mean": self._sums[one] / max(1, self.rows), "max": self._most[one]}
            for one in TEMPERATURES
        ]
        return {"rows": self.rows, "total_variation": found}


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: np.ndarray = scaled / scaled.sum(axis=1, keepdims=True)
    return found
