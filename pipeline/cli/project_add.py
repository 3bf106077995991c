"""Commands of `icecore add`: write entries into params.yaml; its other lines do not change."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.extract_folder import naming_options
from pipeline.cli.project import problems_of
from pipeline.cli.project_new import Image, Labels, Target, Weights, WeightsFile

if TYPE_CHECKING:
    from pipeline.projects.entries import Entry

PARAMS = Path("params.yaml")

OPTIONS_OF_DATA = {
    "root": "PATH",
    "base": "PATH, with --list,",
    "image": "--image",
    "target": "--target",
}
OPTIONS_OF_BACKBONE = {
    "model": "MODEL",
    "folder": "MODEL",
    "source": "--source",
    "weights": "--weights",
    "file": "--weights-file",
    "taps": "--tap",
    "datasets": "--data",
}
OPTIONS_OF_FIT = {
    "task": "--task",
    "backbone": "--backbone",
    "inputs": "--tap",
    "head": "--head",
    "labels_per_class": "--labels-per-class",
}
"""The options of each command, by the name of the setting in messages of the library."""

app = typer.Typer(help="Write an entry into params.yaml: a data set, a backbone, a run of heads.", no_args_is_help=True)


@app.command("data")
@naming_options(OPTIONS_OF_DATA)
def data(
    name: Annotated[str, typer.Argument(help="The name of the data set, and of its task.")],
    path: Annotated[
        str, typer.Argument(help="A folder of class folders, a .tar or a folder of them, Parquet, or a URL.")
    ],
    labels: Labels = None,
    image: Image = None,
    target: Target = None,
) -> None:
    """Add a data set with its task; the backbones of the project are extracted over it too.

    Examples:

      icecore add data garden /data/garden

      icecore add data garden /data/garden --list garden.csv --target species
    """
    from pipeline.projects.data_summary import summarize
    from pipeline.projects.entries import data_entries
    from pipeline.settings.params import read_params

    params = read_params(PARAMS)
    listed = None if labels is None else labels.as_posix()
    summary = summarize(path, labels=listed, image=image, targets=target or ())
    _write(data_entries(params, name, summary))
    typer.echo(f"{path}: {summary.describe()}")
    _print_next(f"icecore add fit {name}_probe --task {name}", f"icecore repro prepare@{name} split@{name}")


@app.command("backbone")
@naming_options(OPTIONS_OF_BACKBONE)
def backbone(
    name: Annotated[str, typer.Argument(help="The name of the backbone in params.yaml.")],
    model: Annotated[str, typer.Argument(help="A model of torchvision or timm, or a backbone's folder.")],
    tap: Annotated[
        list[str] | None,
        typer.Option(help="NODE or NODE:POOLING, such as layer3:mean; once for each. [default: penultimate]"),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A data set to extract; once for each. [default: all of params.yaml]")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="torchvision or timm. [default: torchvision if it has the model]")
    ] = None,
    weights: Weights = None,
    weights_file: WeightsFile = None,
) -> None:
    """Add a backbone, and the taps of it that are kept of the data sets.

    Examples:

      icecore add backbone resnet resnet50

      icecore add backbone resnet resnet50 --tap layer3:mean --tap penultimate --data photos
    """
    from pipeline.freeze.library_model import Weights as WeightsOf
    from pipeline.projects.backbone import read_backbone, tap_settings
    from pipeline.projects.entries import backbone_entries
    from pipeline.settings.params import read_params

    params = read_params(PARAMS)
    taps = dict(tap_settings(text) for text in tap or ["penultimate"])
    named = read_backbone(model, WeightsOf(source=source, name=weights, file=weights_file))
    _write(backbone_entries(params, name, named, taps=taps, datasets=data or ()))
    _print_next(f"icecore add fit {name}_probe --backbone {name}", f"icecore repro extract@{name}")


@app.command("fit")
@naming_options(OPTIONS_OF_FIT)
def fit(
    name: Annotated[str, typer.Argument(help="The name of the run.")],
    task: Annotated[str | None, typer.Option(help="An entry of `split`. [default: the only one]")] = None,
    backbone: Annotated[str | None, typer.Option(help="An entry of `extract`. [default: the only one]")] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(help="A tap of the backbone, or several joined by +; once for each input. [default: each tap]"),
    ] = None,
    head: Annotated[str | None, typer.Option(help="logistic, ridge, knn, svm, … [default: by the task]")] = None,
    labels_per_class: Annotated[
        list[int] | None, typer.Option(help="Labels of a small training set; once for each. [default: all labels]")
    ] = None,
) -> None:
    """Add a run: heads on stored features.

    Examples:

      icecore add fit knn --head knn

      icecore add fit few --task photos --backbone resnet --tap penultimate --labels-per-class 1 --labels-per-class 5
    """
    from pipeline.projects.entries import fit_entries
    from pipeline.settings.params import read_params

    entries = fit_entries(
        read_params(PARAMS),
        name,
        task=task,
        backbone=backbone,
        inputs=tap or (),
        head=head,
        labels_per_class=labels_per_class or (),
    )
    _write(entries)
    _print_next("icecore repro", f"icecore wrong {name}")


def _write(entries: "Sequence[Entry]") -> None:
    """Write entries into params.yaml; raises ConfigError if they would add problems to it."""
    from pipeline.files import temporary_path, write_text
    from pipeline.projects.entries import write_entries
    from pipeline.settings.check import refuse

    path = PARAMS.resolve()  # the target of a symbolic link
    before = path.read_bytes().decode("utf-8")
    after = write_entries(before, entries)
    temporary = temporary_path(path.parent, PARAMS.name)
    try:
        temporary.write_text(after, encoding="utf-8", newline="")
        if problems := problems_of(temporary):
            known = problems_of(path)
            refuse((line for line in problems if line not in known), where="params.yaml stays as it is; it would have")
    finally:
        temporary.unlink(missing_ok=True)
    write_text(path, after)
    for entry in entries:
        added = "" if entry.value is not None else f": {entry.item}"
        typer.echo(f"params.yaml: {'.'.join(entry.path)}{added}")


def _print_next(*commands: str) -> None:
    typer.echo("\n  ".join(["next:", *commands]))
