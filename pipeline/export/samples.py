"""Images of a run's task, to check and to quantise an exported model with: their bytes, their targets."""

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
"""Width and height of drawn images."""


@dataclass(frozen=True)
class TaskImages:
    """Images of one split of a task: encoded bytes or PIL images, with their keys and their targets, in one order."""

    images: list[Any]
    keys: np.ndarray
    targets: np.ndarray

    def pixels(self, reader: ImageReader, rows: slice = slice(None)) -> np.ndarray:
        """Return the pixels of some of the images, uint8 (n, height, width, channels)."""
        result = [reader(one) if isinstance(one, bytes) else reader.from_image(one) for one in self.images[rows]]
        return np.stack([one["pixels"] for one in result])


def read_task_images(model: TrainedModel, split: str, *, most: int) -> TaskImages:
    """Return at most so many images of a split of the run's task, evenly spaced; unreadable ones are left out.

    Reads the task and the manifests of the project that the run is in. Raises DataError where there is no such row, and
    where the files are gone.
    """
    data = find_project_data(model)
    path = data / "tasks" / f"{model.tasks[0].name}.parquet"
    task = Task.read(path)
    rows = task.rows(split)
    if not len(rows):
        raise DataError(f"{path}: expected {split} rows, got none. Change the task's `sizes`.")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    manifests = data / "manifests"
    datasets = sorted(one.stem for one in manifests.glob("*.parquet"))
    if not datasets:
        raise DataError(f"{manifests}: expected the manifests of the task's data sets, got none. Run `dvc repro`.")
    keys = task.keys[rows]
    read = [
        (item.key, _bytes_of(item))
        for item in items(locate_samples(manifests, datasets, key_arrays.from_hex(list(keys))))
    ]
    there = {key: data for key, data in read if data is not None}
    kept = np.array([key in there for key in keys])
    if not kept.any():
        raise DataError(f"{path}: expected the files of its {split} rows, got none of {len(rows):,} where they were.")
    return TaskImages([there[key] for key in keys[kept]], keys[kept], task.targets[rows[kept]])


def _bytes_of(item: Item) -> bytes | None:
    try:
        data = sources.read(item.place.path) if item.data is None else item.data
    except OSError:
        return None
    return None if isinstance(data, OSError) else data


def choose_images(model: TrainedModel, most: int) -> tuple[TaskImages, str, list[str]]:
    """Return images to compare an export on, what they are, and a note where they are not those of the task."""
    reasons = []
    for split in ("test", "validation", "train"):
        try:
            images = read_task_images(model, split, most=most)
        except (PipelineError, OSError) as error:
            reasons.append(str(error))
        else:
            return images, f"{len(images.images)} {split} images", []
    note = f"note: it was compared on drawn images, since those of the task cannot be read: {reasons[0]}"
    return draw_images(most), f"{most} drawn images", [note]


def draw_images(count: int) -> TaskImages:
    """Return images of smooth noise, the same each time: for a run whose images are not there."""
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        images.append(Image.fromarray(small).resize(SIDES[number % len(SIDES)], Image.Resampling.BICUBIC))
    nothing = np.array([""] * count, dtype=object)
    return TaskImages(images, nothing, nothing)


def find_project_data(model: TrainedModel) -> Path:
    """Return the folder `data` of the project that a run is in."""
    return model.folder.absolute().parent.parent
