"""Explain a model's predictions of some images, and write the page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import report
from pipeline.errors import ConfigError, DataError, PipelineError, requires, unknown
from pipeline.explain.explanation import Explanation, explain_image
from pipeline.explain.near_samples import FindNear, near_samples
from pipeline.explain.view import view_of
from pipeline.files import write_text
from pipeline.inference.rows import InMemoryExtractor
from pipeline.inference.trained_model import TrainedModel
from pipeline.text import digits, readable


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
        explain_image(model, extractor, path, number, outputs, top=top, find=find) for path in map(str, images)
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
    head = "its own classifier" if model.head is None else model.record.head
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
