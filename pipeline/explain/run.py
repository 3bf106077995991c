"""Explain a model's predictions of some images, and write the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import report
from pipeline.errors import ConfigError, DataError, PipelineError, requires, unknown
from pipeline.explain.evidence import EvidenceSet, find_evidence
from pipeline.explain.near_samples import FindNear, NearSample, near_samples
from pipeline.explain.view import view_of
from pipeline.files import write_text
from pipeline.inference.answers import Answers
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.trained_model import TrainedModel
from pipeline.loading.images import pixel_batches
from pipeline.predict.training_rows import describe_target
from pipeline.sources import filesystem
from pipeline.text import digits, readable

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


def check_out(out: Path) -> Path:
    """Return the path of the page; raises ConfigError for a folder and for a file that does not end in .html."""
    if out.is_dir():
        raise ConfigError(f"--out {out}: expected a file such as {out / 'page.html'}, got a folder.")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: expected a file that ends in .html, got {out.suffix or 'no ending'!r}.")
    return out


def explain(
    model: TrainedModel,
    images: Sequence[str],
    out: Path,
    *,
    top: int = 5,
    near: int = 5,
    classes: Sequence[str] = (),
    task: str | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> list[Explanation]:
    """Write a page that explains the predictions of some images; return the explanations.

    model: the trained model.
    images: paths or URLs.
    out: the HTML file to write, which appears after all images are explained.
    top: number of classes that are listed with their scores.
    near: number of nearest training samples. If their features are missing, the page and `log` state the reason.
    classes: the classes whose evidence is shown; by default the two with the largest scores.
    task: a task of the model, by default the first.

    Raises ConfigError for an unusable `out`, DataError with the path for an unusable image, DataError for an unknown
    class or task, and MissingExtraError without jinja2.
    """
    check_out(out)
    with requires("report", what="the page of `icecore explain`"):
        import jinja2

    number = _task_number(model, task)
    outputs = _outputs(model, number, classes)
    find, why_not = _open_near(model, near)
    if why_not:
        log(f"no nearest training samples: {why_not}")
    extractor = InMemoryExtractor(model.backbone, model.taps, batch_size=1, precision=model.precision)
    explanations = [
        _explain_one(model, extractor, path, number, outputs, top=top, find=find) for path in map(str, images)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"readable": readable, "digits": digits}
    views = [
        {"path": item.path, "prediction": item.prediction, "top": item.top}
        | view_of(item.pixels, item.explained, item.near)
        for item in explanations
    ]
    head = "its own classifier" if model.head is None else str(model.record["head"])
    page = environment.get_template("page.html").render(
        run=model.folder.name,
        task=model.tasks[number],
        head=head,
        taps=list(model.taps),
        scores=model.scores,
        images=views,
        why_not=why_not,
    )
    write_text(out, page)
    return explanations


def _task_number(model: TrainedModel, task: str | None) -> int:
    names = [known.name for known in model.tasks]
    if task is not None and task not in names:
        raise DataError(f"{model.folder}: {unknown('task', task, names)}")
    return 0 if task is None else names.index(task)


def _outputs(model: TrainedModel, task: int, classes: Sequence[str]) -> list[int]:
    """Return the numbers of the named classes; an empty list stands for the best classes of each image."""
    known = model.tasks[task].classes
    for name in classes:
        if not known:
            raise DataError(f"{model.folder}: a regression has no classes, got --class {name}: leave it out.")
        if name not in known:
            raise DataError(f"{model.folder}: {unknown('class', name, known)}")
    return [known.index(name) for name in dict.fromkeys(classes)]


def _open_near(model: TrainedModel, count: int) -> tuple[FindNear | None, str]:
    """Return a function that finds the nearest training samples, or None and the reason."""
    if count < 1:
        return None, ""
    try:
        return near_samples(model, count), ""
    except (PipelineError, OSError) as error:
        return None, str(error)


def _explain_one(
    model: TrainedModel,
    extractor: InMemoryExtractor,
    path: str,
    task: int,
    outputs: Sequence[int],
    *,
    top: int,
    find: FindNear | None,
) -> Explanation:
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
