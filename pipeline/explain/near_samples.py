"""Find the training samples of a run that are nearest to images, with thumbnails where the samples can be read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.explain.heat_map import thumbnail
from pipeline.inference.trained_model import TrainedModel
from pipeline.loading.samples import Reject, find_samples, items, read_content
from pipeline.predict.near import open_training_rows
from pipeline.readers.image import decode


@dataclass(frozen=True)
class NearSample:
    """A training sample: its path, its target as text, its cosine with the image, its thumbnail as a data URI."""

    path: str
    label: str
    cosine: float
    picture: str | None


FindNear = Callable[[Sequence[bytes], Mapping[str, np.ndarray]], list[list[NearSample]]]
"""A function of the bytes of some images and their features, (images, ...) for each tap of the model."""


def near_samples(model: TrainedModel, count: int) -> FindNear:
    """Return a function that finds the nearest training samples of images.

    Raises the errors of `open_training_rows`.
    """
    training, source = open_training_rows(model)
    data = model.folder.absolute().parent.parent

    def find(images: Sequence[bytes], rows: Mapping[str, np.ndarray]) -> list[list[NearSample]]:
        taps, usable = list(model.taps), list(range(len(images)))
        if source is not None:
            usable, rows = source.run(images, len(images), {})
            taps = list(source.taps)
        result: list[list[NearSample]] = [[] for _ in images]
        if not usable:
            return result
        query = np.concatenate([np.asarray(rows[tap], np.float32).reshape(len(usable), -1) for tap in taps], axis=1)
        numbers, cosines = training.nearest(query, count)
        keys = training.keys(numbers.ravel())
        paths, labels = training.paths(numbers.ravel()), training.labels(numbers.ravel())
        pictures = thumbnails(dict(zip(keys, paths, strict=True)), data=data)
        images_of = np.repeat(usable, numbers.shape[1])
        for image, key, path, label, cosine in zip(images_of, keys, paths, labels, cosines.ravel(), strict=True):
            result[image].append(NearSample(path, label, float(cosine), pictures.get(key)))
        return result

    return find


def thumbnails(paths: Mapping[str, str], *, data: Path) -> dict[str, str]:
    """Return thumbnails of samples of a project by key, wherever the samples are stored, without unreadable samples.

    paths: the path of each sample by its key, from the task. data: the folder `data` of the project.
    """
    pictures = {}
    for item in items(find_samples(paths, manifests=data / "manifests", root=str(data.parent))):
        content = read_content(item)
        if isinstance(content, Reject):
            continue
        try:
            pictures[item.key] = thumbnail(decode(content, mode="RGB"))
        except DataError:
            continue
    return pictures
