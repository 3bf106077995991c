"""A network up to some taps, and two ways to get their rows of new images: in this process, or through the store."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import BATCH
from pipeline.errors import DataError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.inference.rows import InMemoryExtractor
from pipeline.loading.images import pixel_batches
from pipeline.runtime import Reporter
from pipeline.store.features import Features


@dataclass(frozen=True)
class RowSource:
    """A backbone, its folder, the taps that are wanted of it and the precision it runs in."""

    folder: Path
    backbone: Backbone
    taps: Mapping[str, TapSpec]
    precision: str

    def run(
        self, images: Iterable[bytes], count: int, unusable: dict[int, DataError]
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """Return the numbers of the usable images, of at most `count` encoded ones, and their rows of each tap.

        The network runs in this process, in batches no larger than `count` needs. The numbers of images that cannot be
        used get the reasons in `unusable`.
        """
        size = max(1, ceil(count / ceil(max(1, count) / BATCH)))
        extractor = InMemoryExtractor(self.backbone, self.taps, batch_size=size, precision=self.precision)
        rows: dict[str, list[np.ndarray]] = {tap: [extractor.empty(tap)] for tap in self.taps}
        usable: list[int] = []
        decoded = numbers_without(unusable)
        for pixels in pixel_batches(images, extractor.reader, batch_size=size, unusable=unusable):
            for numbers, batch in _storable(extractor, pixels, [next(decoded) for _ in pixels], unusable):
                usable += numbers
                for tap, values in batch.items():
                    rows[tap].append(values)
        return usable, {tap: np.concatenate(parts) for tap, parts in rows.items()}

    def extract(
        self,
        dataset: str,
        *,
        manifests: Path,
        out: Path,
        cache_root: Path,
        settings: Mapping[str, Any],
        reporter: Reporter,
    ) -> list[Features]:
        """Return the features of a data set by the feature cache: only what the cache lacks is computed.

        settings: of the extraction, such as `engine`. Raises what `extract` raises.
        """
        taps = {tap: spec.model_dump() for tap, spec in self.taps.items()}
        asked = {"datasets": (dataset,), "taps": taps, "precision": self.precision, "max_rejected": 1.0}
        extract(
            ExtractConfig.model_validate(asked | dict(settings)),
            backbone=self.folder,
            manifests=manifests,
            out=out,
            cache_root=cache_root,
            reporter=reporter,
        )
        return [Features.open(out / tap) for tap in self.taps]


def numbers_without(unusable: Mapping[int, DataError]) -> Iterator[int]:
    """Yield the numbers of the images that batches hold; `unusable` has what a batch leaves out before it comes."""
    number = 0
    while True:
        if number not in unusable:
            yield number
        number += 1


def _storable(
    extractor: InMemoryExtractor, pixels: np.ndarray, numbers: list[int], unusable: dict[int, DataError]
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield the rows of a batch; where some have values that the taps cannot hold, the rows that can, one by one."""
    try:
        yield numbers, extractor.run(pixels)
    except DataError:
        for place, number in enumerate(numbers):
            try:
                yield [number], extractor.run(pixels[place : place + 1])
            except DataError as error:
                unusable[number] = error
