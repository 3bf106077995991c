"""Pack the k largest logits of each row and one logit for all other classes, to store less where classes are many.

A packed row is float32 (2k + 1,): the k largest logits in descending order, their columns, and one logit for each of
the other classes, T log(mean of exp(z / T)) over their logits z. At the temperature T the probability mass of the other
classes is preserved and spread uniformly, the probabilities of the top k are exact, and the total variation to the full
softmax is at most the mass of the other classes. Above T the packed row gives them more mass, below T less (Jensen's
inequality), and the larger of the two masses is the bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import DataError

MOST_CLASSES = 2**24
"""float32 represents column numbers up to this one exactly."""

TEMPERATURES = (1.0, 4.0)
"""The temperatures at which the error is measured."""


@dataclass(frozen=True)
class TopK:
    """The number of logits to keep, and the temperature at which the mass of the other classes is exact."""

    k: int
    temperature: float = 1.0

    @property
    def width(self) -> int:
        """Return the length of a packed row."""
        return 2 * self.k + 1

    def pack(self, logits: np.ndarray) -> np.ndarray:
        """Pack logits (n, classes) to rows float32 (n, width); with at most k classes all logits are kept.

        Ties keep the first columns. Raises DataError for more classes than float32 can number.
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
        """Return the logit that replaces those of all other classes, (n,); 0 if there are no others."""
        if not others.shape[1]:
            return np.zeros(len(others))
        scaled = others.astype(np.float64) / self.temperature
        level: np.ndarray = self.temperature * (np.logaddexp.reduce(scaled, axis=1) - np.log(others.shape[1]))
        return level


def unpack(packed: np.ndarray, classes: int) -> np.ndarray:
    """Unpack rows to dense logits float32 (n, classes); classes outside the top k share a logit."""
    dense = np.repeat(packed[:, -1:].astype(np.float32), classes, axis=1)
    columns_kept = columns(packed)
    np.put_along_axis(dense, columns_kept, packed[:, : columns_kept.shape[1]], axis=1)
    return dense


def columns(packed: np.ndarray) -> np.ndarray:
    """Return the columns of the k largest logits, int64 (n, k)."""
    k = (packed.shape[1] - 1) // 2
    return packed[:, k : 2 * k].astype(np.int64)


def total_variation(logits: np.ndarray, packed: np.ndarray, temperature: float) -> np.ndarray:
    """Return the total variation between the full and the packed softmax of each row, at a temperature: (n,)."""
    full, packed_probabilities = (_softmax(table, temperature) for table in (logits, unpack(packed, logits.shape[1])))
    distances: np.ndarray = np.abs(full - packed_probabilities).sum(axis=1) / 2
    return distances


class TruncationError:
    """The mean and the largest total variation between packed rows and the full softmax."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums = dict.fromkeys(TEMPERATURES, 0.0)
        self._most = dict.fromkeys(TEMPERATURES, 0.0)

    def add(self, logits: np.ndarray, packed: np.ndarray) -> None:
        """Add the error of some rows."""
        self.rows += len(logits)
        for temperature in TEMPERATURES if len(logits) else ():
            distances = total_variation(logits, packed, temperature)
            self._sums[temperature] += float(distances.sum())
            self._most[temperature] = max(self._most[temperature], float(distances.max()))

    def merge(self, note: Mapping[str, Any]) -> None:
        """Add the error of other rows, from their `note`."""
        self.rows += note["rows"]
        for temperature, values in zip(TEMPERATURES, note["total_variation"], strict=True):
            self._sums[temperature] += values["mean"] * note["rows"]
            self._most[temperature] = max(self._most[temperature], values["max"])

    @property
    def note(self) -> dict[str, Any]:
        """Return the error as JSON values."""
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
