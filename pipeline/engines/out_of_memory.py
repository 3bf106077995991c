"""Batches and device memory: run a batch that does not fit in halves, and measure the best batch size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import EngineError

SIZES = (32, 64, 128, 256, 512, 1024)  # that are measured
SHARE = 0.8  # of the device's memory that a batch may take
GAIN = 1.05  # smallest gain in samples per second that justifies a batch of twice the size


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or this process ran out of memory."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch on the CPU, ONNX Runtime and OpenVINO have no error class for this.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("can't allocate memory", "out of memory", "failed to allocate", "bad_alloc")
    )


def run_halving_on_oom(
    run: Callable[[np.ndarray], list[np.ndarray]], pixels: np.ndarray, *, smallest: int = 1
) -> list[np.ndarray]:
    """Run a batch (n, ...) and return its outputs, (n, ...) each; if memory runs out, run it in halves.

    Raises EngineError if `smallest` samples, which are not divided further, do not fit.
    """
    try:
        return run(pixels)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(pixels) <= smallest:
            raise EngineError(
                f"expected memory for {len(pixels)} × {pixels.shape[1]} × {pixels.shape[2]} pixels at once, got too "
                f"little: {first_line(error)}. Set a smaller batch_size, request fewer taps, pool the maps, or end "
                "other programs that use the memory."
            ) from None
    # Outside of the handler, where the error would keep the tensors of its frames alive.
    _release()
    halves = [run_halving_on_oom(run, half, smallest=smallest) for half in np.array_split(pixels, 2)]
    return [np.concatenate(parts) for parts in zip(*halves, strict=True)]


def first_line(error: BaseException) -> str:
    """Return the first line of an error that is not blank, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _release() -> None:
    """Free the memory that torch caches: its blocks may be too small for the next request."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class SizeTiming:
    """The timing of a batch size: seconds per sample, and bytes of device memory if known."""

    size: int
    seconds: float
    memory: int | None = None


def grow_sizes(measure: Callable[[int], SizeTiming], *, memory: int | None) -> Iterator[SizeTiming]:
    """Yield timings of growing batches, until memory runs out, `SHARE` of it is used, or larger batches gain nothing.

    measure: times a size; raises the engine's errors. memory: bytes of the device. `choose_size` picks the size.
    """
    before: SizeTiming | None = None
    for size in SIZES:
        try:
            timing = measure(size)
        except Exception as error:
            if not (is_out_of_memory(error) or isinstance(error, EngineError)) or before is None:
                raise
            return
        if memory is not None and timing.memory is not None and timing.memory > SHARE * memory:
            if before is None:
                yield timing
            return
        yield timing
        if before is not None and before.seconds / timing.seconds < GAIN:
            return
        before = timing


def choose_size(measured: list[SizeTiming]) -> int:
    """Return the smallest size that is as fast as the fastest within `GAIN`."""
    fastest = min(timing.seconds for timing in measured)
    return next(timing.size for timing in measured if timing.seconds <= GAIN * fastest)
