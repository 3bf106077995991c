"""Static quantisation of an exported backbone to int8, and what it costs on test rows against float32.

Weights get a scale per output channel, activations the range that training images have: ONNX Runtime's
`quantize_static` with Quantize and Dequantize nodes. What stands behind the taps stays float32: it is small.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.compare.run import mcnemar, p_of
from pipeline.engines.onnx_export import INPUT
from pipeline.errors import EngineError
from pipeline.evaluate import bootstrap
from pipeline.export import graph
from pipeline.export.graph import Run
from pipeline.export.model import Output
from pipeline.export.samples import TaskImages, read_task_images
from pipeline.inference.trained_model import TrainedModel
from pipeline.predictions import Predictions
from pipeline.readers.image import ImageReader

CALIBRATION, TESTED = 128, 2000
"""Training images that give the ranges, and test images that are compared, at most."""
BATCH = 16
RESAMPLES, LEVEL, SEED = 2000, 0.95, 0
ROUNDS = 20  # of timing, of one image each


@dataclass(frozen=True)
class Cost:
    """The metric of float32 and of int8 on the same test rows, and the test of their difference.

    `drop`: what int8 loses, above 0 where it is worse; of an error that has no end, its growth over float32's.
    `low` and `high`: its bootstrap interval. `p`: of the paired bootstrap; `mcnemar`: of accuracy only.
    """

    metric: str
    rows: int
    float32: float
    int8: float
    drop: float
    low: float
    high: float
    p: float
    mcnemar: dict[str, Any] | None

    def __str__(self) -> str:
        word = "float32" if self.drop >= 0 else "int8"
        test = f", McNemar p {self.mcnemar['p']:.2g}" if self.mcnemar is not None else ""
        return (
            f"{self.metric} {self.float32:.4f} in float32, {self.int8:.4f} in int8 on {self.rows:,} test rows; drop "
            f"{self.drop:.4f} ({LEVEL:.0%} interval {self.low:.4f} to {self.high:.4f}; paired bootstrap p {self.p:.2g}"
            f"{test}; {word} is ahead)"
        )


@dataclass(frozen=True)
class Quantised:
    """An int8 model, what model.json says of it, and a line for each thing that was measured."""

    data: bytes
    about: dict[str, Any]
    lines: list[str]


def quantise(
    model: TrainedModel, outputs: Sequence[Output], parts: tuple[bytes, bytes], *, metric: str, max_drop: float
) -> Quantised:
    """Quantise the backbone of a model, and measure on test rows of its first task what that costs.

    parts: the graphs of the backbone and of what stands behind it. metric: that decides the task. Raises EngineError
    with the numbers where the metric drops by more than `max_drop`, and DataError where there are no images.
    """
    reader = ImageReader(model.backbone.spec.input.image)
    calibration = read_task_images(model, "train", most=CALIBRATION)
    tested = read_task_images(model, "test", most=TESTED)
    before = graph.join_graphs(*parts, outputs)
    after = graph.join_graphs(quantise_graph(parts[0], calibration, reader), parts[1], outputs)
    float32, int8 = (graph.run_onnx(data, outputs) for data in (before, after))
    cost = measure_cost(float32, int8, outputs[0], tested, reader, metric=metric)
    seconds = measure_latencies([float32, int8], tested.pixels(reader, slice(0, 1)))
    lines = [
        f"int8: {cost}",
        f"int8: {len(after):,} bytes against {len(before):,} ({len(after) / len(before):.0%})",
        f"int8: {1000 * seconds[1]:.1f} ms for one image against {1000 * seconds[0]:.1f} ms "
        f"({seconds[0] / seconds[1]:.2f} times as fast)",
    ]
    if not cost.drop <= max_drop:
        title = (
            f"{model.folder}: int8 loses {cost.drop:.4f} of {cost.metric}, more than `--max-drop` {max_drop:g}. "
            "Nothing was written. Leave `--int8` out, or allow more."
        )
        raise EngineError("\n".join([title, *lines]))
    about = {
        **asdict(cost),
        "task": outputs[0].task,
        "calibration_images": len(calibration.images),
        "bytes": len(after),
        "float32_bytes": len(before),
        "seconds_per_image": {"float32": seconds[0], "int8": seconds[1]},
    }
    return Quantised(after, about, lines)


def quantise_graph(backbone: bytes, images: TaskImages, reader: ImageReader) -> bytes:
    """Return the backbone's graph with int8 weights and activations; raises EngineError where that cannot be made."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[int] = iter(range(0, len(images.images), BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.left, None)
            if start is None:
                return None
            return {INPUT: images.pixels(reader, slice(start, start + BATCH))}

    with tempfile.TemporaryDirectory() as name, _quiet_logging():
        folder = Path(name)
        whole, folded, result = (folder / f"{part}.onnx" for part in ("whole", "folded", "int8"))
        whole.write_bytes(backbone)
        try:
            quant_pre_process(str(whole), str(folded), skip_symbolic_shape=True)
            quantize_static(
                str(folded),
                str(result),
                Batches(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # 7 bits: sums of products of 8 bits overflow on processors without VNNI, and the file may run on any.
                reduce_range=True,
            )
        except Exception as error:  # noqa: BLE001 - the quantiser raises whatever stops it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise EngineError(
                f"int8: ONNX Runtime cannot quantise the network: {reason}. Leave `--int8` out."
            ) from None
        return result.read_bytes()


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep the quantiser's advice, which is followed already, out of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def measure_cost(
    float32: Run, int8: Run, output: Output, images: TaskImages, reader: ImageReader, *, metric: str
) -> Cost:
    """Measure both on the same test rows, by the tests that `compare` makes between methods."""
    scores: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(images.images), BATCH):
        pixels = images.pixels(reader, slice(start, start + BATCH))
        for run, parts in zip((float32, int8), scores, strict=True):
            parts.append(run(pixels)[0])
    one, other = (_as_predictions(np.concatenate(parts), output, images) for parts in scores)
    classes = list(output.classes)
    values = bootstrap.resampled(metric, [[one], [other]], classes, resamples=RESAMPLES, seed=SEED)
    first, second = (bootstrap.value(metric, fit, classes) for fit in (one, other))
    if first is None or second is None:
        raise EngineError(f"int8: {metric} cannot be measured on {len(images.keys):,} test rows. Leave `--int8` out.")
    lower = metric in metrics.LOWER_IS_BETTER
    drops = (values[1] - values[0]) / max(first, 1e-12) if lower else values[0] - values[1]
    ends = bootstrap.interval(drops, LEVEL) or (0.0, 0.0)
    test = mcnemar(one.targets == one.predicted, other.targets == other.predicted) if metric == "accuracy" else None
    drop = (second - first) / max(first, 1e-12) if lower else first - second
    return Cost(metric, len(images.keys), first, second, drop, ends[0], ends[1], p_of(drops), test)


def _as_predictions(values: np.ndarray, output: Output, images: TaskImages) -> Predictions:
    nothing = np.full((len(values), len(output.classes)), np.nan, np.float32)
    return Predictions(
        head="export",
        input=INPUT,
        labels=None,
        draw=None,
        keys=images.keys,
        splits=np.full(len(values), "test", dtype=object),
        targets=images.targets,
        predicted=output.predictions(values),
        scores=nothing if output.kind == "regression" else values,
    )


def measure_latencies(runs: Sequence[Run], pixels: np.ndarray) -> list[float]:
    """Return the median seconds of each for one image; they take turns, so that all have the same conditions."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, own in zip(runs, times, strict=True):
            own.append(_seconds(lambda run=run: run(pixels[:1])))  # type: ignore[misc]
    return [float(np.median(own[1:])) for own in times]


def _seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
