"""Commands that make a project: `icecore init`, `icecore demo`, `icecore run`."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.extract_folder import name_options, naming_options
from pipeline.cli.project import problems_of, run_in_process, run_pipeline
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.projects.backbone import NamedBackbone
    from pipeline.projects.data_summary import DataSummary
    from pipeline.projects.params_text import Extraction

OPTIONS = {
    "root": "--images",
    "base": "--images, with --list,",
    "image": "--image",
    "target": "--target",
    "weights": "--weights",
    "file": "--weights-file",
}
"""The options of `icecore init`, by the name of the setting in messages of the library."""

OPTIONS_OF_RUN = {**OPTIONS, "root": "PHOTOS", "base": "PHOTOS, with --list,"}

DEFAULT_MODEL = "mobilenet_v2"

Labels = Annotated[
    Path | None, typer.Option("--list", help="A .csv or .parquet list of paths and labels, instead of class folders.")
]
Image = Annotated[str | None, typer.Option(help="The column of image bytes, where the images lie in Parquet.")]
Target = Annotated[
    list[str] | None, typer.Option(help="The column of labels to learn; several columns of 0 and 1, once for each.")
]
Backbone = Annotated[
    list[str] | None,
    typer.Option(help="A model of torchvision or timm, or a backbone's folder; once for each. [default: mobilenet_v2]"),
]
Weights = Annotated[
    str | None, typer.Option(help="An entry of torchvision's enum, such as IMAGENET1K_V1, or a tag of timm.")
]
WeightsFile = Annotated[Path | None, typer.Option(help="Weights on disk: .safetensors, or a state dict.")]


@naming_options(OPTIONS)
def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder; it is made if need be.")],
    images: Annotated[
        str | None,
        typer.Option(help="A folder of class folders, a .tar or a folder of them, Parquet with --image, or a URL."),
    ] = None,
    labels: Labels = None,
    image: Image = None,
    target: Target = None,
    backbone: Backbone = None,
    weights: Weights = None,
    weights_file: WeightsFile = None,
    git: Annotated[
        bool, typer.Option("--git", help="Make a git repository of the folder, unless it is in one.")
    ] = False,
) -> None:
    """Write a project into a folder: params.yaml, filled in from the images, and dvc.yaml. Nothing is overwritten.

    With `--list`, the paths of the list are relative to `--images`, or to the folder of the list.

    Examples:

      icecore init bees --images photos/

      icecore init bees --images photos/ --backbone resnet50 --backbone vit_b_16

      icecore init bees --list labels.csv --images photos/ --target species

      icecore init bees --images photos/ --backbone mobilenet_v2 --weights IMAGENET1K_V1 --weights-file mobilenet.pth
    """
    from pipeline.projects import skeleton
    from pipeline.projects.params_text import Extraction, params_text

    skeleton.check_folder(folder)
    extractions = [Extraction(named) for named in _read_backbones(backbone, weights, weights_file)]
    data = _summarize(images, labels, image, target)
    kept = _write(folder, params_text(folder.resolve(), data, extractions), git=git)
    _print_written(folder, data, kept)
    if data is None:
        typer.echo(f"next:\n  cd {_quoted(folder)}\n  icecore add data photos /path/of/photos")
    else:
        typer.echo(f"next:\n  cd {_quoted(folder)}\n  icecore repro")


def demo(
    folder: Annotated[Path, typer.Argument(help="An empty folder; it is made if need be.")] = Path("icecore-demo"),
    full: Annotated[
        bool, typer.Option("--full", help="All that icecore does, also fine-tuning and distillation: some minutes.")
    ] = False,
) -> None:
    """Run a project on handwritten digits in an empty folder: nothing is downloaded; it takes less than a minute.

    A small network learns printed digits and is frozen; its layers are compared on handwritten digits, those that
    scikit-learn carries.

    Examples:

      icecore demo

      icecore demo /tmp/digits --full
    """
    from importlib import resources

    from pipeline.projects import skeleton

    skeleton.check_empty(folder)
    text = resources.files("pipeline.projects").joinpath("default.yaml" if full else "demo.yaml")
    skeleton.write_project(folder, text.read_text(encoding="utf-8"))
    with contextlib.chdir(folder):
        run_in_process()
    typer.echo(f"next:\n  cd {_quoted(folder)}\n  icecore wrong digits_probe")


@naming_options(OPTIONS_OF_RUN)
def run(
    images: Annotated[
        str, typer.Argument(help="A folder of class folders, a .tar or a folder of them, or a URL.", metavar="PHOTOS")
    ],
    out: Annotated[Path | None, typer.Option(help="The project's folder. [default: PHOTOS-icecore, here]")] = None,
    labels: Labels = None,
    image: Image = None,
    target: Target = None,
    backbone: Backbone = None,
    weights: Weights = None,
    weights_file: WeightsFile = None,
) -> None:
    """Compare three layers or backbones on a folder of photos: from the photos to the report in one command.

    Heads are trained on all labels and on few of them. Called again, it goes on with the settings of the project;
    options that differ from them are refused.

    Examples:

      icecore run photos/

      icecore run photos/ --backbone resnet18 --backbone mobilenet_v2 --backbone vit_b_16

      icecore run photos/ --out bees --weights IMAGENET1K_V1 --weights-file mobilenet_v2.pth
    """
    from pipeline.projects import skeleton
    from pipeline.projects.changed_options import is_project_of
    from pipeline.projects.params_text import params_text

    folder = out or Path(f"{Path(images.rstrip('/')).resolve().stem}-icecore")
    if is_project_of(folder, images, labels):
        _refuse_changed_options(folder, images, labels, image, target or (), backbone or (), weights, weights_file)
    else:
        skeleton.check_empty(folder)
        data = _summarize(images, labels, image, target)
        extractions = _with_blocks(_read_backbones(backbone, weights, weights_file))
        kept = _write(folder, params_text(folder.resolve(), data, extractions))
        _print_written(folder, data, kept)
    with contextlib.chdir(folder):
        run_pipeline(explain=lambda error: _name_options(error, folder))
        best = _best_run()
    lines = [f"cd {_quoted(folder)}", f"icecore wrong {best}", f"icecore predict {best} NEW.jpg"]
    typer.echo("\n  ".join(["next:", *lines]))


def _name_options(error: str, folder: Path) -> list[str]:
    """Return lines on the options of `icecore run` in the error of a stage, and on how to change them."""
    lines = name_options(error, OPTIONS_OF_RUN)
    change = f"Change {folder / 'params.yaml'} and run again; or remove {folder}, to run with other options."
    return [*lines, change] if lines else []


def _summarize(
    images: str | None, labels: Path | None, image: str | None, target: Sequence[str] | None
) -> "DataSummary | None":
    """Return the summary of the images and labels; None if neither is given."""
    from pipeline.projects.data_summary import summarize

    if images is None and labels is None:
        return None
    listed = None if labels is None else labels.as_posix()
    return summarize(images, labels=listed, image=image, targets=target or ())


def _read_backbones(
    names: Sequence[str] | None, weights: str | None, weights_file: Path | None
) -> "list[NamedBackbone]":
    from pipeline.freeze.library_model import Weights as WeightsOf
    from pipeline.projects.backbone import read_backbone

    models = names or [DEFAULT_MODEL]
    if len(models) > 1 and (weights or weights_file):
        raise ConfigError(
            f"--weights, --weights-file: expected one --backbone with them, got {len(models)}. Write those of the "
            "others into params.yaml."
        )
    backbones = [read_backbone(model, WeightsOf(name=weights, file=weights_file)) for model in models]
    backbone_names = [named.name for named in backbones]
    if twice := sorted({name for name in backbone_names if backbone_names.count(name) > 1}):
        raise ConfigError(f"--backbone: expected each once, got {', '.join(twice)} more than once. Leave one out.")
    return backbones


def _with_blocks(backbones: "Sequence[NamedBackbone]") -> "list[Extraction]":
    """Return the extraction of each backbone: its last layer, and with fewer than three backbones, taps of blocks."""
    from pipeline.projects.backbone import block_taps
    from pipeline.projects.params_text import PENULTIMATE, Extraction

    count = {1: 2, 2: 1}.get(len(backbones), 0)
    return [Extraction(named, {**PENULTIMATE, **block_taps(named, count)}) for named in backbones]


def _write(folder: Path, params: str, *, git: bool = False) -> list[str]:
    """Write a project and return its files that existed before; raises ConfigError for wrong settings."""
    from pipeline.projects import skeleton

    with skeleton.new_folder(folder):
        _refuse_problems(folder, params)
        return skeleton.write_project(folder, params, git=git)


def _refuse_problems(folder: Path, params: str) -> None:
    """Raise ConfigError with the problems that `icecore check` would report for the settings of a project."""
    import tempfile

    from pipeline.settings.check import refuse

    with tempfile.TemporaryDirectory(prefix="icecore-init-") as temporary:
        path = Path(temporary) / "params.yaml"
        path.write_text(params, encoding="utf-8")
        with contextlib.chdir(folder):
            problems = problems_of(path)
    refuse(problems, where=f"{folder}: nothing was written, since the settings would have")


def _refuse_changed_options(
    folder: Path,
    images: str,
    labels: Path | None,
    image: str | None,
    targets: Sequence[str],
    models: Sequence[str],
    weights: str | None,
    weights_file: Path | None,
) -> None:
    """Raise ConfigError if options of `icecore run` differ from the settings of the project in a folder."""
    from pipeline.projects.changed_options import changed_backbone_options, changed_data_options
    from pipeline.settings.params import read_params

    params = read_params(folder / "params.yaml")
    listed = None if labels is None else labels.as_posix()
    changed = changed_data_options(params, folder, images=images, labels=listed, image=image, targets=targets)
    if models or weights or weights_file:
        backbones = dict(zip(models or [""], _read_backbones(models, weights, weights_file), strict=True))
        changed += changed_backbone_options(params, folder, backbones, weights=weights, weights_file=weights_file)
    if not changed:
        return
    computed = any(path.is_dir() for path in (folder / "data" / "features").glob("*"))
    empty = "" if computed else " No features were computed there yet."
    raise ConfigError(
        f"{folder}: expected a project with {', '.join(changed)}, got one with other settings. Nothing was run.{empty} "
        f"Change {folder / 'params.yaml'}, or remove the folder, or choose another with `--out`."
    )


def _best_run() -> str:
    """Return the best run on all labels, according to the leaderboard."""
    from pipeline.report import leaderboard
    from stages import project

    known = project.runs(project.settings())
    names = [name for name in known if (project.TABLES / f"{name}.json").is_file()]
    runs = [run["run"] for run in leaderboard.read(project.TABLES, names)]
    return str(next((run for run in runs if not known[run].labels_per_class), "RUN"))


def _print_written(folder: Path, data: "DataSummary | None", kept: Sequence[str]) -> None:
    if data is not None:
        typer.echo(f"{data.config['root']}: {data.describe()}")
        if data.others:
            typer.echo(f"other columns, which --target names: {', '.join(data.others)}")
    typer.echo(f"{folder}: a project, with its settings in {folder / 'params.yaml'}")
    if kept:
        typer.echo(f"kept as they were: {', '.join(kept)}")


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder))
