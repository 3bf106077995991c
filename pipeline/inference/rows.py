"""Run a backbone on images in memory, and return the rows that an extraction would store."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec, resolve, row_shape
from pipeline.engines import BATCH
from pipeline.engines.torch_engine import TorchEngine
from pipeline.errors import BackboneError, DataError
from pipeline.loading.images import pixel_batches
from pipeline.readers.image import ImageReader
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.store import dtypes


class InMemoryExtractor:
    """Taps of a backbone that can run on images repeatedly; nothing is stored.

    backbone: as returned by `serialization.read`.
    specs: the taps; aliases of nodes are allowed.
    batch_size: images per batch; smaller batches are padded. With 64, the size of extractions, and the engine `torch`,
    rows equal stored rows bit for bit; other sizes may round differently.
    precision: as of an extraction.

    Raises BackboneError for taps that the backbone does not have, and for poolings that do not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        specs: Mapping[str, TapSpec],
        *,
        batch_size: int = BATCH,
        precision: str = "float32",
        reader: ImageReader | None = None,
    ) -> None:
        self.specs = resolve(specs, backbone.spec, where="taps")
        try:
            self.shapes = {tap: row_shape(backbone.spec.taps[spec.node], spec) for tap, spec in self.specs.items()}
        except ValueError as error:
            raise BackboneError(f"taps: {error}") from None
        self.reader, self.batch_size = reader or ImageReader(backbone.spec.input.image), batch_size
        self._engine = TorchEngine(backbone, self.specs, batch_size=batch_size, precision=precision)
        self._shape = backbone.spec.input.shape

    def __call__(
        self, images: Any, *, names: Sequence[str] | None = None, max_pixels: int | None = MAX_PIXELS
    ) -> dict[str, np.ndarray]:
        """Return the rows (images, ...) of each tap in the order of the images, as float16 or float32.

        images, names, max_pixels: as for `pipeline.loading.images.pixel_batches`.

        Values are rounded to the dtype of the tap as in the store; bfloat16 is returned as float32. Raises DataError
        for an unusable image, and for an image whose values cannot be stored.
        """
        parts: dict[str, list[np.ndarray]] = {tap: [] for tap in self.specs}
        for pixels in pixel_batches(
            images, self.reader, batch_size=self.batch_size, names=names, max_pixels=max_pixels
        ):
            for tap, rows in self.run(pixels).items():
                parts[tap].append(rows)
        return {tap: np.concatenate(parts[tap]) if parts[tap] else self.empty(tap) for tap in self.specs}

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows of each tap for one batch of pixels, as `pixel_batches` yields them; raises DataError."""
        if pixels.dtype == np.float32 and pixels.shape[1:] != self._shape:
            raise DataError(
                f"expected normalised images of the shape {self._shape}, which the backbone takes, got "
                f"{pixels.shape[1:]}."
            )
        return {tap: _round(rows, self.specs[tap], tap) for tap, rows in self._engine.run({"pixels": pixels}).items()}

    def empty(self, tap: str, rows: int = 0) -> np.ndarray:
        """Return an uninitialised array for some rows of a tap."""
        return np.empty((rows, *self.shapes[tap]), _dtype(self.specs[tap]))


def _dtype(spec: TapSpec) -> str:
    return "float16" if spec.dtype == "float16" else "float32"


def _round(rows: np.ndarray, spec: TapSpec, tap: str) -> np.ndarray:
    """Round rows as in the store; int8 rows stay float32, since their scale depends on the whole shard."""
    if spec.dtype == "int8":
        return rows
    encoded = dtypes.encode(rows, spec.dtype)
    if not encoded.finite.all():
        raise DataError(
            f"tap {tap!r}: image {int(np.argmin(encoded.finite))} of a batch has values that {spec.dtype} cannot hold. "
            "Take the dtype float32."
        )
    return dtypes.decode(encoded.values, spec.dtype)
