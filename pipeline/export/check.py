"""Compare an exported model with what the pipeline predicts of the same images, before anybody is given it."""

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
"""By the precision in which the features of the head were made, the mean deviation above which a file is refused.

A row that the head saw was rounded to float16. An engine rounds otherwise by 1e-7, so that now and then a value falls
upon the next float16, and a tree may take another branch there: single images deviate by more than the mean.
"""


@dataclass(frozen=True)
class Deviation:
    """How far an output is from what the pipeline gives.

    In probabilities; of decision values and of a regression over their largest magnitude and their deviation. `same`:
    the share of images with the same prediction.
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
    """Run an exported file on images, in batches of another size than an extraction's, and compare each output.

    Raises EngineError where an output is further off than rounding explains, if it is `limited`.
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
        apart = np.abs(values - reference).max(axis=1) / unit
        same = apart <= limit if output.kind == "regression" else predicted == answer.predicted
        if np.isnan(reference).all():  # the head has no scores that can be used: its predictions are compared
            apart = (~same).astype(np.float64)
        rows = same.all(axis=1) if same.ndim == 2 else same
        result.append(Deviation(output.name, len(rows), float(apart.max()), float(apart.mean()), float(rows.mean())))
    if limited and (wrong := [one for one in result if not one.mean <= limit]):
        raise EngineError(
            f"{model.folder}: the exported {wrong[0].output} are not those of the pipeline: expected a mean deviation "
            f"of at most {limit:g} on {wrong[0].images} images, got {wrong[0].mean:.2g} (largest "
            f"{wrong[0].largest:.2g}). "
            "Nothing was written. Take another `--format`, or use `icecore predict`."
        )
    return result


def to_json(deviations: Sequence[Deviation], made_of: str) -> dict[str, Any]:
    """Return what model.json says of the comparison. `made_of`: which images were compared."""
    return {"images": made_of, "outputs": [asdict(one) for one in deviations]}
