"""Images from Python (paths, bytes, PIL images, arrays, tensors) as the pixels that a backbone takes.

The pixels equal those that an extraction of the same file reads. Float images are used unchanged: they are expected to
be normalised.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import DataError
from pipeline.readers.image import ImageReader, read_size
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.runtime import cores

AHEAD = 2  # batches that are decoded while the network runs on the one before


def pixel_batches(
    images: Any,
    reader: ImageReader,
    *,
    batch_size: int,
    unusable: dict[int, DataError] | None = None,
    names: Sequence[str] | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Iterator[np.ndarray]:
    """Yield batches of at most `batch_size` images in the given order.

    `images`: an iterable of paths, encoded bytes, PIL images, uint8 arrays (height, width[, channels]) or tensors
    (channels, height, width); an array (n, height, width, channels); a tensor (n, channels, height, width); or a
    DataLoader, of whose batches the first element is used. A batch is uint8 (n, height, width, channels) after resize
    and crop; float images give float32 (n, channels, height, width), unchanged. `unusable`: if given, images that
    cannot be used are skipped, and their numbers are added with the reasons before their batch is yielded.
    `names`: what errors call the images. `max_pixels`: larger files are refused; None where the caller checked them.

    Raises DataError with the number of an image that cannot be used, and TypeError for values that are not images.
    """
    with ThreadPoolExecutor(cores()) as threads:
        pending: deque[list[tuple[int, Any, Future[np.ndarray]]]] = deque()
        numbered = enumerate(_iter_images(images))
        try:
            while True:
                batch = list(islice(numbered, batch_size))
                if batch:
                    pending.append(
                        [
                            (number, image, threads.submit(_read_image, image, number, reader, max_pixels))
                            for number, image in batch
                        ]
                    )
                if pending and (not batch or len(pending) > AHEAD):
                    results = [_result(future, unusable, names) for future in pending.popleft()]
                    usable = [pixels for pixels in results if pixels is not None]
                    if usable:
                        yield _stack(usable)
                if not batch and not pending:
                    return
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _result(
    decoding: tuple[int, Any, Future[np.ndarray]], unusable: dict[int, DataError] | None, names: Sequence[str] | None
) -> np.ndarray | None:
    """Return the pixels of an image; None if it cannot be used and `unusable` takes the reason."""
    number, image, future = decoding
    try:
        return future.result()
    except DataError as error:
        if unusable is not None:
            unusable[number] = error
            return None
        where = image if isinstance(image, str | Path) else f"image {number}" if names is None else names[number]
        raise DataError(f"{where}: {error}") from None


def _iter_images(images: Any) -> Iterator[Any]:
    """Yield the images one by one."""
    if isinstance(images, str | Path | bytes | Image.Image):
        raise TypeError(f"expected a list of images, got a single {type(images).__name__}: put it into a list.")
    if not isinstance(images, Iterable):
        raise TypeError(f"expected images, got {type(images).__name__}.")
    if isinstance(images, np.ndarray) or _is_tensor(images):
        if getattr(images, "ndim", 4) == 3:
            raise TypeError("expected a list or a batch of images, got an array with three axes: put it into a list.")
        yield from images
    elif _is_loader(images):
        for batch in images:
            yield from batch[0] if isinstance(batch, list | tuple) else batch
    else:
        yield from images


def _read_image(image: Any, number: int, reader: ImageReader, max_pixels: int | None) -> np.ndarray:
    """Return an image as uint8 (height, width, channels), or a float image as float32 (channels, height, width)."""
    if isinstance(image, str | Path):
        return _read_file(Path(image), reader, max_pixels)
    if isinstance(image, bytes):
        return _decode(image, reader, max_pixels)
    if isinstance(image, Image.Image):
        return reader.from_image(image)["pixels"]
    if _is_tensor(image):
        values = image.detach().cpu().numpy()
        if values.ndim != 3:
            raise DataError(f"expected a tensor (channels, height, width), got the shape {values.shape}")
        return values.astype(np.float32) if values.dtype.kind == "f" else _from_array(values.transpose(1, 2, 0), reader)
    if isinstance(image, np.ndarray):
        return _from_array(image, reader)
    raise TypeError(
        f"image {number}: expected a path, a PIL image, a uint8 array or a tensor, got {type(image).__name__}."
    )


def _read_file(path: Path, reader: ImageReader, max_pixels: int | None) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
    return _decode(data, reader, max_pixels)


def _decode(data: bytes, reader: ImageReader, max_pixels: int | None) -> np.ndarray:
    """Decode an encoded image; raises DataError for one of more than `max_pixels`."""
    if max_pixels is not None:
        width, height = read_size(data)
        if width * height > max_pixels:
            raise DataError(
                f"{width} × {height}, more than {max_pixels:,} pixels: refused as a decompression bomb. Make it "
                "smaller, or open it with Pillow and give the opened image"
            )
    return reader(data)["pixels"]


def _from_array(values: np.ndarray, reader: ImageReader) -> np.ndarray:
    if values.dtype != np.uint8:
        raise DataError(
            f"expected uint8 pixels (height, width, channels), got {values.dtype}. Give pixels from 0 to 255, or a "
            "normalised float tensor (channels, height, width)"
        )
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[2] in (3, 4)):
        raise DataError(f"expected pixels (height, width) or (height, width, 1, 3 or 4), got the shape {values.shape}")
    if 0 in values.shape:
        raise DataError(f"expected an image with pixels, got the shape {values.shape}")
    return reader.from_image(Image.fromarray(np.ascontiguousarray(values)))["pixels"]


def _stack(batch: list[np.ndarray]) -> np.ndarray:
    kinds = {(pixels.dtype.kind, pixels.shape) for pixels in batch}
    if len(kinds) > 1:
        shapes = ", ".join(sorted(f"{'float' if kind == 'f' else 'uint8'} {shape}" for kind, shape in kinds))
        raise DataError(
            f"expected images of equal shape after preprocessing, got {shapes}: give uint8 images, or normalise all of "
            "them."
        )
    return np.stack(batch)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_loader(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.utils.data.DataLoader)
