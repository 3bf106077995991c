"""Read the images of a folder, a list, archives, Parquet or a URL as bytes, one by one, without storing anything."""

import itertools
from collections.abc import Iterator

from pipeline import sources
from pipeline.errors import DataError, bullets, counted
from pipeline.prepare.check_images import check_samples
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.roots import inspect_roots
from pipeline.sources import UNKNOWN, SampleLocation

SHOWN = 5
"""Most images that an error names."""


def find_images(config: PrepareConfig) -> list[FoundSample]:
    """Return the images: files of a folder sorted by path, images of lists and containers in their order.

    Hidden files and other kinds of files are left out, as in an extraction; duplicates are not. Raises DataError if
    there are no images, with the paths of unusable images, and as `prepare` does for an unreadable root.
    """
    roots = inspect_roots(config)
    found = [sample for sample in find(config, roots) if sample.refused[0] in (None, "unreadable")]
    refused: dict[int, tuple[str | None, str | None]] = {
        number: sample.refused for number, sample in enumerate(found) if sample.refused[0] is not None
    }
    places = ((number, _location(sample)) for number, sample in enumerate(found) if number not in refused)
    is_list = roots[0].kind == "list"
    for number, (_, _, kind, reason) in check_samples(
        places, "header", where=config.root, max_pixels=config.max_pixels, all_are_samples=is_list
    ):
        if kind is not None:
            refused[number] = (kind, reason)
    lines = [f"{found[number].path}: {reason}" for number, (kind, reason) in sorted(refused.items()) if kind != "other"]
    if lines:
        raise DataError(bullets(f"{config.root}: {counted(len(lines), 'image')} cannot be used", lines[:SHOWN]))
    images = [sample for number, sample in enumerate(found) if number not in refused]
    if not images:
        raise DataError(f"{config.root}: expected images, got none. Name the folder, list or archive that has them.")
    return images


def read_images(images: list[FoundSample]) -> Iterator[bytes]:
    """Yield the bytes of images in their order; raises DataError with the path of an unreadable image."""
    for container, group in itertools.groupby(images, key=lambda image: image.container):
        here = list(group)
        if container is not None:
            pieces: Iterator[bytes | OSError] = sources.read_many(container, [_location(image) for image in here])
        else:
            pieces = (_read(image.path) for image in here)
        for image, data in zip(here, pieces, strict=True):
            if isinstance(data, OSError):
                raise DataError(f"{image.path}: cannot be read: {data.strerror or data}")
            yield data


def _location(image: FoundSample) -> SampleLocation:
    size = UNKNOWN if image.size is None else image.size
    return SampleLocation(image.path, image.container, image.offset, size)


def _read(path: str) -> bytes | OSError:
    try:
        return sources.read(path)
    except OSError as error:
        return error
