"""An explained image: its prediction, where the evidence lies, and the nearest training samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.explain.evidence import EvidenceSet, find_evidence
from pipeline.explain.near_samples import FindNear, NearSample
from pipeline.inference.answers import Answers
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.trained_model import TrainedModel
from pipeline.loading.images import pixel_batches
from pipeline.predict.training_rows import describe_target
from pipeline.sources import filesystem

MAPS = 2
"""The number of classes whose evidence is shown by default."""


@dataclass(frozen=True)
class Explanation:
    """The explanation of an image: the prediction, its evidence, and the nearest training samples."""

    path: str
    pixels: np.ndarray
    prediction: str
    top: list[tuple[str, float]]
    explained: EvidenceSet
    near: list[NearSample]


def explain_image(
    model: TrainedModel,
    extractor: InMemoryExtractor,
    path: str,
    task: int,
    outputs: Sequence[int],
    *,
    top: int,
    find: FindNear | None,
) -> Explanation:
    """Explain the prediction of an image for one task; `outputs`: the classes to explain, by default the best.

    Raises DataError, with the path, for an image that cannot be used.
    """
    try:
        data = filesystem.read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. Expected an image file.") from None
    try:
        [pixels] = pixel_batches([data], extractor.reader, batch_size=1)
    except DataError as error:
        raise DataError(f"{path}: {str(error).removeprefix('image 0: ')}") from None
    rows = extractor.run(pixels)
    answers = model.answer_rows(rows)[task]
    output = model.tasks[task]
    best = _best_first(answers, output.classes)
    wanted = list(outputs) or [number for number, _ in best[:MAPS]] or [0]
    return Explanation(
        path=path,
        pixels=pixels[0],
        prediction=describe_target(answers.predicted[0], output.kind, output.classes),
        top=[(output.classes[number], score) for number, score in best[:top] if np.isfinite(score)],
        explained=find_evidence(model, pixels[0], rows, wanted, task=task),
        near=[] if find is None else find([data], rows)[0],
    )


def _best_first(answers: Answers, classes: Sequence[str]) -> list[tuple[int, float]]:
    """Return class numbers with scores, largest first; for a head without scores, the predicted classes first."""
    if not classes:
        return []
    scores = answers.scores[0]
    if np.isfinite(scores).all():
        order = np.argsort(-scores, kind="stable")
    elif answers.predicted.ndim == 2:
        order = np.argsort(~answers.predicted[0], kind="stable")
    else:
        order = np.array([list(classes).index(str(answers.predicted[0]))])
    return [(int(number), float(scores[number])) for number in order]
