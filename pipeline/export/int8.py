"""Quantise an exported backbone to int8, and measure the cost on test rows against float32.

ONNX Runtime's `quantize_static` inserts Quantize and Dequantize nodes: weights get a scale per output channel,
activations the range that they have on training images. The head stays in float32, since it is small.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.compare.significance import bootstrap_p_value, mcnemar
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
"""The most training images for the ranges of activations, and the most test images for the comparison."""
BATCH = 16
RESAMPLES, LEVEL, SEED = 2000, 0.95, 0
ROUNDS, ROUND_SECONDS = 24, 0.05
"""Timed rounds, in which both models predict a single image again and again, for about so many seconds each."""


@dataclass(frozen=True)
class Cost:
    """The metric of float32 and of int8 on the same test rows, and the test of their difference.

    drop: the loss of int8, positive if int8 is worse; for an error metric, the relative increase of the error.
    low, high: bootstrap interval of the drop.
    p: p-value of the paired bootstrap.
    mcnemar: McNemar's test, only for accuracy.
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
class Speed:
    """Median seconds of one image in float32 and in int8.

    ratio: the median over the rounds of float32 over int8. low, high: the quartiles of the rounds.
    """

    float32: float
    int8: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        slow = "" if self.low > 1 else "; not faster on this machine"
        return (
            f"{1000 * self.int8:.1f} ms for one image against {1000 * self.float32:.1f} ms ({self.ratio:.2f} times as "
            f"fast, half of {ROUNDS} rounds {self.low:.2f} to {self.high:.2f}{slow})"
        )


@dataclass(frozen=True)
class QuantisedModel:
    """An int8 model, its entry for model.json, and the measurements as lines of text."""

    data: bytes
    about: dict[str, Any]
    lines: list[str]


def quantise_model(
    model: TrainedModel, outputs: Sequence[Output], parts: tuple[bytes, bytes], *, metric: str, max_drop: float
) -> QuantisedModel:
    """Quantise the backbone of a model, and measure the cost on test rows of the model's first task.

    parts: the ONNX graphs of the backbone and of the head. metric: the deciding metric of the task.

    Raises EngineError with the numbers if the metric drops by more than `max_drop`, DataError if images are missing.
    """
    reader = ImageReader(model.backbone.spec.input.image)
    calibration = read_task_images(model, "train", most=CALIBRATION)
    tested = read_task_images(model, "test", most=TESTED)
    before = graph.join_graphs(*parts, outputs)
    after = graph.join_graphs(quantise_graph(parts[0], calibration, reader), parts[1], outputs)
    float32, int8 = (graph.run_onnx(data, outputs) for data in (before, after))
    cost = measure_cost(float32, int8, outputs[0], tested, reader, metric=metric)
    speed = measure_speed(float32, int8, tested.pixels(reader, slice(0, 1)))
    lines = [
        f"int8: {cost}",
        f"int8: {len(after):,} bytes against {len(before):,} ({len(after) / len(before):.0%})",
        f"int8: {speed}",
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
        "seconds_per_image": {"float32": speed.float32, "int8": speed.int8},
        "times_as_fast": {"median": speed.ratio, "low": speed.low, "high": speed.high},
    }
    return QuantisedModel(after, about, lines)


def quantise_graph(backbone: bytes, images: TaskImages, reader: ImageReader) -> bytes:
    """Return the backbone's graph with int8 weights and activations; raises EngineError if quantisation fails."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.starts: Iterator[int] = iter(range(0, len(images.images), BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
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
                # 7 bits: sums of 8-bit products overflow on processors without VNNI, and the file may run anywhere.
                reduce_range=True,
            )
        except Exception as error:  # noqa: BLE001 - the quantiser can raise nearly anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise EngineError(
                f"int8: ONNX Runtime cannot quantise the network: {reason}. Leave `--int8` out."
            ) from None
        return result.read_bytes()


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Suppress the quantiser's warnings, whose advice is followed already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def measure_cost(
    float32: Run, int8: Run, output: Output, images: TaskImages, reader: ImageReader, *, metric: str
) -> Cost:
    """Measure both models on the same test rows, with the tests that `compare` uses between methods."""
    scores: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(images.images), BATCH):
        pixels = images.pixels(reader, slice(start, start + BATCH))
        for run, parts in zip((float32, int8), scores, strict=True):
            parts.append(run(pixels)[0])
    before, after = (_as_predictions(np.concatenate(parts), output, images) for parts in scores)
    classes = list(output.classes)
    values = bootstrap.resample_metric(metric, [[before], [after]], classes, resamples=RESAMPLES, seed=SEED)
    first, second = (bootstrap.metric_value(metric, fit, classes) for fit in (before, after))
    if first is None or second is None:
        raise EngineError(f"int8: {metric} cannot be measured on {len(images.keys):,} test rows. Leave `--int8` out.")
    lower = metric in metrics.LOWER_IS_BETTER
    drops = (values[1] - values[0]) / max(first, 1e-12) if lower else values[0] - values[1]
    ends = bootstrap.interval(drops, LEVEL) or (0.0, 0.0)
    test = None
    if metric == "accuracy":
        test = mcnemar(before.targets == before.predicted, after.targets == after.predicted)
    drop = (second - first) / max(first, 1e-12) if lower else first - second
    return Cost(metric, len(images.keys), first, second, drop, ends[0], ends[1], bootstrap_p_value(drops), test)


def _as_predictions(values: np.ndarray, output: Output, images: TaskImages) -> Predictions:
    no_scores = np.full((len(values), len(output.classes)), np.nan, np.float32)
    return Predictions(
        head="export",
        input=INPUT,
        labels=None,
        draw=None,
        keys=images.keys,
        splits=np.full(len(values), "test", dtype=object),
        targets=images.targets,
        predicted=output.predictions(values),
        scores=no_scores if output.kind == "regression" else values,
    )


def measure_speed(float32: Run, int8: Run, pixels: np.ndarray) -> Speed:
    """Measure both models on a single image.

    The load of a machine changes from second to second: both models run in each round, in alternating order, and the
    ratio is that of a round.
    """
    runs, times = (float32, int8), np.empty((ROUNDS, 2))
    counts = [max(1, round(ROUND_SECONDS / min(_seconds(run, pixels, 1) for _ in range(3)))) for run in runs]
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            times[number, which] = _seconds(runs[which], pixels, counts[which])
    ratios = times[:, 0] / times[:, 1]
    low, ratio, high = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    before, after = (float(value) for value in np.median(times, axis=0))
    return Speed(before, after, ratio, low, high)


def _seconds(run: Run, pixels: np.ndarray, count: int) -> float:
    """Return the seconds of one image, the mean of `count` runs."""
    start = time.perf_counter()
    for _ in range(count):
        run(pixels[:1])
    return (time.perf_counter() - start) / count
