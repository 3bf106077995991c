"""Batches and the memory they need: one that does not fit is run in halves; the size that suits a device is found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import EngineError

SIZES = (32, 64, 128, 256, 512, 1024)  # that are tried
SHARE = 0.8  # of the device's memory that a batch may take
GAIN = 1.05  # in samples per second for twice the batch, below which more is of no use


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was lacking, of the device or of this process."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch on a CPU, ONNX Runtime and OpenVINO have no class of their own for it.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("can't allocate memory", "out of memory", "failed to allocate", "bad_alloc")
    )


def run_halving_on_oom(
    run: Callable[[np.ndarray], list[np.ndarray]], pixels: np.ndarray, *, smallest: int = 1
) -> list[np.ndarray]:
    """Run a batch (n, ...) and return its outputs, (n, ...) each; where memory is lacking, in halves.

    Raises EngineError if `smallest` samples, which cannot be divided, do not fit.
    """
    try:
        return run(pixels)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(pixels) <= smallest:
            raise EngineError(
                f"expected memory for {len(pixels)} × {pixels.shape[1]} × {pixels.shape[2]} pixels at once, got too "
                f"little: {first_line(error)}. Set a smaller batch_size, ask for fewer taps, pool the maps, or end "
                "what else uses the memory."
            ) from None
    # Outside of the handler: the error would keep the tensors of its frames alive.
    _release()
    halves = [run_halving_on_oom(run, half, smallest=smallest) for half in np.array_split(pixels, 2)]
    return [np.concatenate(parts) for parts in zip(*halves, strict=True)]


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _release() -> None:
    """Give back what torch keeps for later: the pieces may be too small for what is asked next."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Measured:
    """What a batch of a size took: seconds a sample, and bytes of the device's memory where they are known."""

    size: int
    seconds: float
    memory: int | None = None


def sizes(measure: Callable[[int], Measured], *, memory: int | None) -> Iterator[Measured]:
    """Measure ever larger batches: until memory is lacking or `SHARE` of it is used, or they gain nothing more.

    `memory`: bytes of the device. `measure` raises what the engine does. The last one may be too large: see `best`.
    """
    before: Measured | None = None
    for size in SIZES:
        try:
            found = measure(size)
        except Exception as error:
            if not (is_out_of_memory(error) or isinstance(error, EngineError)) or before is None:
                raise
            return
        if memory is not None and found.memory is not None and found.memory > SHARE * memory:
            if before is None:
                yield found
            return
        yield found
        if before is not None and before.seconds / found.seconds < GAIN:
            return
        before = found


def best(measured: list[Measured]) -> int:
    """Return the smallest size that is as fast as the fastest, within `GAIN`."""
    fastest = min(one.seconds for one in measured)
    return next(one.size for one in measured if one.seconds <= GAIN * fastest)
