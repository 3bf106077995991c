"""The largest logits of each row, and one logit for all others: less to store where there are many classes.

A packed row is float32 (2k + 1,): the k largest logits in falling order, their columns, and the logit that stands for
each of the others, T log(mean of exp(z / T)) over their logits z. So at the temperature T the others have the mass that
they had, uniformly, the probabilities of the kept classes are exact, and the total variation to the full softmax is at
most the mass of the others. At a temperature above T they have more mass than they had, below it less (Jensen's
inequality), and the larger of the two masses is the bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import DataError

MOST_CLASSES = 2**24
"""Columns up to here are whole numbers of float32."""

TEMPERATURES = (1.0, 4.0)
"""At which the error is stated."""


@dataclass(frozen=True)
class TopK:
    """How many logits are kept, and the temperature at which the mass of the others is exact."""

    k: int
    temperature: float = 1.0

    @property
    def width(self) -> int:
        """Return the length of a packed row."""
        return 2 * self.k + 1

    def pack(self, logits: np.ndarray) -> np.ndarray:
        """Pack logits (n, classes) to rows float32 (n, width), of all classes where there are no more than k.

        Of equal logits the first columns are kept. Raises DataError for more classes than float32 can number.
        """
        classes = logits.shape[1]
        if classes > MOST_CLASSES:
            raise DataError(f"top_k: expected at most {MOST_CLASSES:,} classes, got {classes:,}. Leave `top_k` out.")
        order = np.argsort(-logits, axis=1, kind="stable")
        columns_kept, others = order[:, : self.k], order[:, self.k :]
        values = np.take_along_axis(logits, columns_kept, axis=1)
        rest = self.level(np.take_along_axis(logits, others, axis=1))
        return np.concatenate([values, columns_kept, rest[:, None]], axis=1).astype(np.float32)

    def level(self, others: np.ndarray) -> np.ndarray:
        """Return the one logit that stands for all others, (n,); 0 where there are none."""
        if not others.shape[1]:
            return np.zeros(len(others))
        scaled = others.astype(np.float64) / self.temperature
        level: np.ndarray = self.temperature * (np.logaddexp.reduce(scaled, axis=1) - np.log(others.shape[1]))
        return level


def unpack(packed: np.ndarray, classes: int) -> np.ndarray:
    """Unpack rows to dense logits float32 (n, classes); all classes that are not kept get one logit."""
    dense = np.repeat(packed[:, -1:].astype(np.float32), classes, axis=1)
    columns_kept = columns(packed)
    np.put_along_axis(dense, columns_kept, packed[:, : columns_kept.shape[1]], axis=1)
    return dense


def columns(packed: np.ndarray) -> np.ndarray:
    """Return the columns of the kept logits, int64 (n, k)."""
    k = (packed.shape[1] - 1) // 2
    return packed[:, k : 2 * k].astype(np.int64)


def total_variation(logits: np.ndarray, packed: np.ndarray, temperature: float) -> np.ndarray:
    """Return half the sum of the absolute differences of the two softmaxes of each row, at a temperature: (n,)."""
    full, packed_probabilities = (_softmax(table, temperature) for table in (logits, unpack(packed, logits.shape[1])))
    distances: np.ndarray = np.abs(full - packed_probabilities).sum(axis=1) / 2
    return distances


class TruncationError:
    """How far packed rows are off the full softmax, over all rows: total variation, mean and largest."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums = dict.fromkeys(TEMPERATURES, 0.0)
        self._most = dict.fromkeys(TEMPERATURES, 0.0)

    def add(self, logits: np.ndarray, packed: np.ndarray) -> None:
        """Count in some rows."""
        self.rows += len(logits)
        for temperature in TEMPERATURES if len(logits) else ():
            distances = total_variation(logits, packed, temperature)
            self._sums[temperature] += float(distances.sum())
            self._most[temperature] = max(self._most[temperature], float(distances.max()))

    def merge(self, note: Mapping[str, Any]) -> None:
        """Count in what `note` said of other rows."""
        self.rows += note["rows"]
        for temperature, values in zip(TEMPERATURES, note["total_variation"], strict=True):
            self._sums[temperature] += values["mean"] * note["rows"]
            self._most[temperature] = max(self._most[temperature], values["max"])

    @property
    def note(self) -> dict[str, Any]:
        """Return the error as plain values."""
        values = [
            {
                "temperature": temperature,
                "mean": self._sums[temperature] / max(1, self.rows),
                "max": self._most[temperature],
            }
            for temperature in TEMPERATURES
        ]
        return {"rows": self.rows, "total_variation": values}


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: np.ndarray = scaled / scaled.sum(axis=1, keepdims=True)
    return probabilities
