"""Read the images of a folder, a list, archives, Parquet or a URL as bytes, one by one, without storing anything."""

from collections.abc import Iterator

from pipeline import sources
from pipeline.errors import DataError, bullets, counted
from pipeline.prepare.check_images import check_samples
from pipeline.prepare.config import FoundSample, PrepareConfig
from pipeline.prepare.find import find
from pipeline.prepare.roots import inspect_roots

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
    places = ((number, sample.location) for number, sample in enumerate(found) if number not in refused)
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
    contents = sources.read_in_order([image.location for image in images])
    for image, data in zip(images, contents, strict=True):
        if isinstance(data, OSError):
            raise DataError(f"{image.path}: cannot be read: {data.strerror or data}")
        yield data
