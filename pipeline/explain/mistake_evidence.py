"""The evidence for wrong predictions of a run: maps over each image, and the nearest training samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, PipelineError
from pipeline.explain.evidence import find_evidence
from pipeline.explain.mistakes import Mistake, Mistakes
from pipeline.explain.near_samples import near_samples
from pipeline.explain.view import view_of
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.trained_model import TrainedModel, load, read_run
from pipeline.loading.samples import Reject, find_samples, items, read_content
from pipeline.model_record import NetworkRecord, find_fits
from pipeline.readers import Reader

CLASSES = 2
"""Number of classes whose evidence is shown: the prediction and the target, or the two worst labels."""


@dataclass(frozen=True)
class ExplainedMistakes:
    """Mistakes with their evidence.

    views: for each key, the values that evidence.html shows.
    reasons: for each key without evidence, the reason.
    no_near: why there are no nearest training samples; "" if there are some.
    """

    views: dict[str, dict[str, Any]]
    reasons: dict[str, str]
    no_near: str


def explain_mistakes(folder: Path, mistakes: Mistakes, *, near: int) -> ExplainedMistakes:
    """Return the evidence for the predicted class and the target of each listed mistake.

    folder: the run's models, in a project.
    near: the number of nearest training samples of each image.

    The network runs once, on all images as one batch. Heads that are not linear get nearest samples only. Raises the
    errors of `load`, and DataError if the run does not have the model of the mistakes.
    """
    model = load(folder, file=_file_of(folder, mistakes))
    extractor = InMemoryExtractor(
        model.backbone, model.taps, batch_size=max(1, len(mistakes.listed)), precision=model.precision
    )
    images, reasons = _read_images(mistakes.listed, folder.absolute().parent.parent, extractor.reader)
    if not images:
        return ExplainedMistakes({}, reasons, "")
    pixels = np.stack([image for _, image in images.values()])
    rows = extractor.run(pixels)
    try:
        near_each = near_samples(model, near)([data for data, _ in images.values()], rows)
        no_near = ""
    except (PipelineError, OSError) as error:
        near_each, no_near = [[] for _ in images], str(error)
    by_key = {mistake.key: mistake for mistake in mistakes.listed}
    views = {}
    for number, key in enumerate(images):
        row = {tap: values[number : number + 1] for tap, values in rows.items()}
        explained = find_evidence(model, pixels[number], row, _outputs(model, by_key[key]), occlusion=False)
        views[key] = view_of(pixels[number], explained, near_each[number])
    return ExplainedMistakes(views, reasons, no_near)


def _file_of(folder: Path, mistakes: Mistakes) -> str | None:
    """Return the file of the head with the mistakes; None for a network. Raises DataError if the run lacks it."""
    record, method = read_run(folder), mistakes.method
    if isinstance(record, NetworkRecord):
        if (record.network.labels, record.network.draw) == (method.labels, mistakes.draw):
            return None
    else:
        fits = [fit for fit in record.fits if (fit.labels, fit.draw) == (method.labels, mistakes.draw)]
        for fit in find_fits(fits, head=method.head, input=method.input):
            return fit.file
    raise DataError(f"{folder}: expected the model of the predictions, got others. Make the run again.")


def _read_images(
    mistakes: Sequence[Mistake], data: Path, reader: Reader
) -> tuple[dict[str, tuple[bytes, np.ndarray]], dict[str, str]]:
    """Return the bytes and pixels of each image by its key, and the reason for each unusable image."""
    images: dict[str, tuple[bytes, np.ndarray]] = {}
    reasons: dict[str, str] = {}
    paths = {mistake.key: mistake.path for mistake in mistakes}
    for item in items(find_samples(paths, manifests=data / "manifests", root=str(data.parent))):
        content = read_content(item)
        if isinstance(content, Reject):
            reasons[item.key] = content.reason
            continue
        try:
            images[item.key] = content, reader(content)["pixels"]
        except DataError as error:
            reasons[item.key] = str(error)
    return images, reasons


def _outputs(model: TrainedModel, mistake: Mistake) -> list[int]:
    """Return the indices of the classes whose evidence is shown, without classes that the model does not have."""
    if model.kind == "regression":
        return [0]
    return [model.classes.index(name) for name in mistake.differs if name in model.classes][:CLASSES]
