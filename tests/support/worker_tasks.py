"""Functions for workers, which import this module: a test's own module would take them seconds."""

import os
from pathlib import Path

import numpy as np

from pipeline.errors import HeadError
from pipeline.store.features import Features


def square(number: int) -> int:
    """Return the square."""
    return number**2


def deadly(number: int) -> int:
    """Return the number; 3 ends the worker."""
    if number == 3:
        os._exit(1)
    return number


def refusing(number: int) -> int:
    """Refuse every number."""
    raise HeadError(f"number {number}: expected another, got this. Give another.")


class Rows:
    """A map-style data set for torch's DataLoader: one stored row at a time."""

    def __init__(self, features: Features) -> None:
        self.features, self.keys = features, features.keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> np.ndarray:
        return self.features.load([self.keys[place]])[0]


def read_by_data_loader(folder: Path, start: str, workers: int) -> np.ndarray:
    """Return all rows of features, as workers of torch's DataLoader read them."""
    from torch.utils.data import DataLoader

    features = Rows(Features.open(folder))
    loader = DataLoader(features, batch_size=5, num_workers=workers, multiprocessing_context=start)  # type: ignore[arg-type]
    return np.concatenate([batch.numpy() for batch in loader])
