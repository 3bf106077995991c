"""Images of a run's task with their targets, to check and to quantise an exported model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import sources
from pipeline.errors import DataError, PipelineError
from pipeline.inference.trained_model import TrainedModel
from pipeline.loading.samples import Item, items, locate_samples
from pipeline.readers.image import ImageReader
from pipeline.store import key_arrays
from pipeline.task import Task

SIDES = ((320, 240), (240, 240), (240, 320))
"""Width and height of generated images."""


@dataclass(frozen=True)
class TaskImages:
    """Images of a split of a task, as encoded bytes or PIL images, with keys and targets in the same order."""

    images: list[Any]
    keys: np.ndarray
    targets: np.ndarray

    def pixels(self, reader: ImageReader, rows: slice = slice(None)) -> np.ndarray:
        """Return the pixels of some of the images, uint8 (n, height, width, channels)."""
        arrays = [
            reader(image) if isinstance(image, bytes) else reader.from_image(image) for image in self.images[rows]
        ]
        return np.stack([array["pixels"] for array in arrays])


def read_task_images(model: TrainedModel, split: str, *, most: int) -> TaskImages:
    """Return up to `most` images of a split of the run's task, evenly spaced, without unreadable images.

    Reads the task and the manifests of the run's project. Raises DataError if the split has no rows, or if no file can
    be read.
    """
    data = find_project_data(model)
    path = data / "tasks" / f"{model.tasks[0].name}.parquet"
    task = Task.read(path)
    rows = task.rows(split)
    if not len(rows):
        raise DataError(f"{path}: expected {split} rows, got none. Change the task's `sizes`.")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    manifests = data / "manifests"
    datasets = sorted(path.stem for path in manifests.glob("*.parquet"))
    if not datasets:
        raise DataError(f"{manifests}: expected the manifests of the task's data sets, got none. Run `icecore repro`.")
    keys = task.keys[rows]
    wanted = locate_samples(manifests, datasets, key_arrays.from_hex(list(keys)))
    contents = {item.key: content for item in items(wanted) if (content := _read(item)) is not None}
    is_readable = np.array([key in contents for key in keys])
    if not is_readable.any():
        raise DataError(f"{path}: expected the files of its {split} rows, got none of {len(rows):,} at their paths.")
    return TaskImages([contents[key] for key in keys[is_readable]], keys[is_readable], task.targets[rows[is_readable]])


def _read(item: Item) -> bytes | None:
    try:
        data = sources.read(item.place.path) if item.data is None else item.data
    except OSError:
        return None
    return None if isinstance(data, OSError) else data


def choose_images(model: TrainedModel, most: int) -> tuple[TaskImages, str, list[str]]:
    """Return images for the comparison, a description of them, and a note if they are not images of the task."""
    reasons = []
    for split in ("test", "validation", "train"):
        try:
            images = read_task_images(model, split, most=most)
        except (PipelineError, OSError) as error:
            reasons.append(str(error))
        else:
            return images, f"{len(images.images)} {split} images", []
    note = f"note: compared on generated images, since those of the task cannot be read: {reasons[0]}"
    return generate_images(most), f"{most} generated images", [note]


def generate_images(count: int) -> TaskImages:
    """Generate images of smooth noise, the same in every call, for a run whose images are missing."""
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        images.append(Image.fromarray(small).resize(SIDES[number % len(SIDES)], Image.Resampling.BICUBIC))
    empty = np.array([""] * count, dtype=object)
    return TaskImages(images, empty, empty)


def find_project_data(model: TrainedModel) -> Path:
    """Return the folder `data` of the run's project."""
    return model.folder.absolute().parent.parent
