"""The training samples of a run that are nearest to an image, with small pictures of those that can be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.explain.pictures import thumbnail
from pipeline.inference.trained_model import TrainedModel
from pipeline.predict.near import open_training_rows
from pipeline.readers.image import decode
from pipeline.sources import filesystem


@dataclass(frozen=True)
class NearSample:
    """A training sample: its path, its target as text, its cosine with the image, its picture as a data URI."""

    path: str
    label: str
    cosine: float
    picture: str | None


FindNear = Callable[[bytes, Mapping[str, np.ndarray]], list[NearSample]]
"""Called with the bytes of an image and its rows (1, ...) of each tap of the model."""


def near_samples(model: TrainedModel, count: int) -> FindNear:
    """Return what finds the nearest training samples of an image; raises what `open_training_rows` raises."""
    training, source = open_training_rows(model)
    project = str(model.folder.absolute().parent.parent.parent)

    def find(data: bytes, rows: Mapping[str, np.ndarray]) -> list[NearSample]:
        taps = list(model.taps)
        if source is not None:
            _, rows = source.run([data], 1, {})
            taps = list(source.taps)
        query = np.concatenate([np.asarray(rows[tap], np.float32).reshape(1, -1) for tap in taps], axis=1)
        numbers, cosines = training.nearest(query, count)
        paths, labels = training.paths(numbers[0]), training.labels(numbers[0])
        return [
            NearSample(path, label, float(cosine), _read_picture(filesystem.join(project, path)))
            for path, label, cosine in zip(paths, labels, cosines[0], strict=True)
        ]

    return find


def _read_picture(path: str) -> str | None:
    """Return the picture of a local file; None of a URL, of a member of an archive, and of a file that is gone."""
    where: Path | None = filesystem.local(path)
    if where is None or not where.is_file():
        return None
    try:
        return thumbnail(decode(filesystem.read(path), mode="RGB"))
    except (OSError, DataError):
        return None
