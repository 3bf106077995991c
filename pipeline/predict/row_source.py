"""A network up to its taps, which computes features of new images in this process or through the feature store."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import BATCH
from pipeline.errors import DataError
from pipeline.extract.config import ExtractConfig
from pipeline.inference.rows import InMemoryExtractor
from pipeline.loading.images import pixel_batches
from pipeline.loading.samples import read_parts
from pipeline.predict.cached_rows import PART_ROWS, CachedRows, extract_parts
from pipeline.runtime import Reporter


@dataclass(frozen=True)
class RowSource:
    """A backbone with its folder, the wanted taps, and the precision of the computation."""

    folder: Path
    backbone: Backbone
    taps: Mapping[str, TapSpec]
    precision: str

    def run(
        self, images: Iterable[bytes], count: int, unusable: dict[int, DataError]
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """Run the network in this process; return the numbers of the usable images and their features of each tap.

        images: at most `count` encoded images; `count` bounds the batch size. unusable: receives the number of each
        image that cannot be used, with the reason.
        """
        size = max(1, ceil(count / ceil(max(1, count) / BATCH)))
        extractor = InMemoryExtractor(self.backbone, self.taps, batch_size=size, precision=self.precision)
        rows: dict[str, list[np.ndarray]] = {tap: [extractor.empty(tap)] for tap in self.taps}
        usable: list[int] = []
        decoded = usable_numbers(unusable)
        for pixels in pixel_batches(images, extractor.reader, batch_size=size, unusable=unusable, max_pixels=None):
            for numbers, batch in _storable(extractor, pixels, [next(decoded) for _ in pixels], unusable):
                usable += numbers
                for tap, values in batch.items():
                    rows[tap].append(values)
        return usable, {tap: np.concatenate(parts) for tap, parts in rows.items()}

    def extract(
        self,
        dataset: str,
        samples: int,
        *,
        manifests: Path,
        out: Path,
        cache_root: Path,
        settings: Mapping[str, Any],
        reporter: Reporter,
    ) -> CachedRows:
        """Return the cached rows of a data set, computing only those that the feature cache lacks.

        samples: the number of samples of the data set. settings: settings of the extraction, such as `engine`.
        Raises the errors of an extraction.
        """
        taps = {tap: spec.model_dump() for tap, spec in self.taps.items()}
        required = {"datasets": (dataset,), "taps": taps, "precision": self.precision, "max_rejected": 1.0}
        return extract_parts(
            ExtractConfig.model_validate(required | dict(settings)),
            partial(read_parts, manifests, dataset, PART_ROWS),
            samples=samples,
            backbone=self.folder,
            out=out,
            cache_root=cache_root,
            reporter=reporter,
        )


def usable_numbers(unusable: Mapping[int, DataError]) -> Iterator[int]:
    """Yield the numbers of usable images in order. Each batch must add its unusable images to `unusable` first."""
    number = 0
    while True:
        if number not in unusable:
            yield number
        number += 1


def _storable(
    extractor: InMemoryExtractor, pixels: np.ndarray, numbers: list[int], unusable: dict[int, DataError]
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield the features of a batch; if some values exceed the stored dtype, the storable rows one at a time."""
    try:
        yield numbers, extractor.run(pixels)
    except DataError:
        for index, number in enumerate(numbers):
            try:
                yield [number], extractor.run(pixels[index : index + 1])
            except DataError as error:
                unusable[number] = error
