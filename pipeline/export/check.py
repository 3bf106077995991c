"""Compare an exported model with the pipeline's predictions of the same images, before the export is published."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.errors import EngineError
from pipeline.export.graph import Run
from pipeline.export.model import Output
from pipeline.export.samples import TaskImages
from pipeline.inference.trained_model import TrainedModel
from pipeline.readers.image import ImageReader

LIMITS = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
"""The largest accepted mean deviation, by the precision of the features that the head was fitted on.

Stored features are rounded to float16. Another engine differs by about 1e-7, so that a value occasionally rounds to the
next float16, and a tree may take another branch: single images deviate by more than the mean.
"""


@dataclass(frozen=True)
class Deviation:
    """The deviation of an output from the pipeline.

    images: number of compared images.
    largest, mean: absolute deviation: of probabilities; of decision values, relative to their largest magnitude; of a
        regression, relative to the standard deviation of its predictions.
    same: share of images with the same prediction.
    """

    output: str
    images: int
    largest: float
    mean: float
    same: float


def compare(
    model: TrainedModel,
    run: Run,
    outputs: Sequence[Output],
    images: TaskImages,
    *,
    limited: bool = True,
    batch_size: int = 16,
) -> list[Deviation]:
    """Run an exported file on images, with another batch size than the extraction, and compare each output.

    limited: whether to raise EngineError for an output that deviates more than rounding explains.
    """
    reader = ImageReader(model.backbone.spec.input.image)
    starts = range(0, len(images.images), batch_size)
    batches = [run(images.pixels(reader, slice(start, start + batch_size))) for start in starts]
    got = [np.concatenate([batch[number] for batch in batches]) for number in range(len(outputs))]
    answers = model.answer_rows(model.rows(images.images))
    result, limit = [], LIMITS[model.precision]
    for output, values, answer, task in zip(outputs, got, answers, model.tasks, strict=True):
        order = [task.classes.index(name) for name in output.classes]
        predicted = output.predictions(values)
        if output.kind == "regression":
            reference, unit = answer.predicted[:, None], float(np.std(answer.predicted)) or 1.0
        else:
            reference = answer.scores[:, order]
            unit = 1.0 if output.scores == "probability" else float(np.abs(reference).max()) or 1.0
        deviations = np.abs(values - reference).max(axis=1) / unit
        same = deviations <= limit if output.kind == "regression" else predicted == answer.predicted
        if np.isnan(reference).all():  # the head has no usable scores: compare its predictions
            deviations = (~same).astype(np.float64)
        rows = same.all(axis=1) if same.ndim == 2 else same
        result.append(
            Deviation(output.name, len(rows), float(deviations.max()), float(deviations.mean()), float(rows.mean()))
        )
    if limited and (wrong := [deviation for deviation in result if not deviation.mean <= limit]):
        raise EngineError(
            f"{model.folder}: the exported {wrong[0].output} differ from the pipeline: expected a mean deviation "
            f"of at most {limit:g} on {wrong[0].images} images, got {wrong[0].mean:.2g} (largest "
            f"{wrong[0].largest:.2g}). "
            "Nothing was written. Take another `--format`, or use `icecore predict`."
        )
    return result


def to_json(deviations: Sequence[Deviation], made_of: str) -> dict[str, Any]:
    """Return the comparison for model.json. made_of: the compared images, in words."""
    return {"images": made_of, "outputs": [asdict(deviation) for deviation in deviations]}
