"""The images of a folder, a list, archives, Parquet or a URL, one after another, as their bytes; nothing is stored."""

import itertools
from collections.abc import Iterator

from pipeline import sources
from pipeline.errors import DataError
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.find import find
from pipeline.sources import UNKNOWN, SampleLocation


def find_images(config: PrepareConfig) -> list[FoundSample]:
    """Return the images: files of a folder sorted by path, those of lists and containers in the order that these have.

    Hidden files and files that are no images by their extension are left out, copies are not. Raises DataError where
    nothing is left, and as `prepare` does for a place that it cannot read.
    """
    images = [sample for sample in find(config) if sample.refused == (None, None)]
    if not images:
        raise DataError(f"{config.root}: expected images, got none. Name the folder, list or archive that has them.")
    return images


def read_images(images: list[FoundSample]) -> Iterator[bytes]:
    """Yield the bytes of images, in their order; raises DataError with the path of one that cannot be read."""
    for container, group in itertools.groupby(images, key=lambda image: image.container):
        here = list(group)
        if container is not None:
            places = [
                SampleLocation(image.path, container, image.offset, UNKNOWN if image.size is None else image.size)
                for image in here
            ]
            pieces: Iterator[bytes | OSError] = sources.read_many(container, places)
        else:
            pieces = (_read(image.path) for image in here)
        for image, data in zip(here, pieces, strict=True):
            if isinstance(data, OSError):
                raise DataError(f"{image.path}: cannot be read: {data.strerror or data}")
            yield data


def _read(path: str) -> bytes | OSError:
    try:
        return sources.read(path)
    except OSError as error:
        return error
