"""The `icecore` command: look at artefacts, check settings, embed a folder. `dvc repro` does the rest."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli import cache as cache_cli
from pipeline.errors import ConfigError, Interrupted, PipelineError, counted, unknown
from pipeline.runtime import closed_pipe_is_quiet, print_any_text

VECTORS, PROJECT, RESULTS, STORE = "Vectors of a folder", "A project", "Results", "Stored features"


class Panels(TyperGroup):
    """A group whose help lists its commands under the headings of their `rich_help_panel`, as plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write a section for each heading, with its commands and the first sentence of each."""
        headings: dict[str, list[tuple[str, str]]] = {VECTORS: [], PROJECT: [], RESULTS: [], STORE: []}
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = str(getattr(command, "rich_help_panel", None))
            headings[panel].append((name, command.get_short_help_str(width)))
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=Panels,
    help="Transfer-learning features: extracted once, reused by every head. `icecore repro` runs the pipeline, as "
    "`dvc repro` does, and shows where it is.",
    epilog="`icecore COMMAND --help` shows the options of a command and examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
features_app = typer.Typer(help="Stored features.", no_args_is_help=True)
app.add_typer(features_app, name="features", rich_help_panel=STORE)
app.add_typer(cache_cli.app, name="cache", rich_help_panel=STORE)


@app.command(rich_help_panel=RESULTS)
def info(
    artefact: Annotated[Path, typer.Argument(help="A file or folder below data/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what an artefact is and what it was made from.

    Examples:

      icecore info data/backbones/glyphs

      icecore info data/features/glyphs/block3 --json

      icecore info data/tasks/digits.parquet
    """
    from pipeline.cli.info import describe, render

    found = describe(artefact)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else render(found))


@app.command(rich_help_panel=VECTORS)
def layers(
    backbone: Annotated[
        str,
        typer.Argument(help="A name below data/backbones, a backbone's folder, or a model of torchvision or timm."),
    ],
    match: Annotated[str, typer.Option(help="Only nodes with this in their name, alias or kind.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Show all nodes: what is inside of blocks, and functions between the modules.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the blocks of a backbone, which can be taps: aliases, shapes, bytes per sample, share of the cost.

    `--match` looks at the modules inside of blocks too, `--all` lists every node. A model by its name needs no project,
    and no weights are fetched.

    Examples:

      icecore layers resnet50

      icecore layers mobilenet

      icecore layers data/backbones/vgg16 --match conv4

      icecore layers mobilenet --all --json
    """
    from pipeline.cli import layers as listing

    found = listing.rows(_network(backbone), functions=everything, short=not everything and not match, match=match)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else listing.text(found))


def _network(name: str) -> Any:
    """Return the nodes of a backbone of the project, of a backbone's folder, or of a model of a library."""
    from pipeline.backbones.serialization import read_spec
    from stages import project

    named = project.BACKBONES / name
    if named.is_dir() and not Path(name).is_absolute():
        return read_spec(named)
    if Path(name).exists() or len(Path(name).parts) > 1:
        return read_spec(name)
    from pipeline.embed import model_settings
    from pipeline.freeze.outline import survey_model

    return survey_model(model_settings(name))


@app.command(rich_help_panel=PROJECT)
def settings(
    section: Annotated[str | None, typer.Argument(help="A section of params.yaml. [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List every key of params.yaml, with its type, default and meaning.

    Examples:

      icecore settings split

      icecore settings --json
    """
    from pipeline.settings import reference
    from stages import project

    sections = project.sections()
    if section is not None and section not in sections:
        raise ConfigError(unknown("section", section, sections))
    chosen = sections if section is None else {section: sections[section]}
    found = reference.settings_to_json(chosen) if as_json else reference.describe_settings(chosen)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else found)


@app.command(rich_help_panel=PROJECT)
def check(
    params: Annotated[Path, typer.Argument(help="The settings to check.")] = Path("params.yaml"),
    fast: Annotated[
        bool, typer.Option("--fast", help="The settings alone, without the files, models and data that they name.")
    ] = False,
) -> None:
    """Check params.yaml, and the data, weights, models and nodes that it names, without computing; print every problem.

    Examples:

      icecore check && dvc repro

      icecore check --fast
    """
    from pipeline.settings.check import refuse
    from pipeline.settings.params import check_rewriting, with_lines
    from stages import preflight, project

    values, problems = project.examine(params)
    if not fast:
        problems += preflight.find_problems(values)
    refuse(with_lines(problems, params), where=str(params))
    for line in check_rewriting(params):
        typer.echo(f"note: {line}", err=True)
    counts = [f"{len(value)} {name}" for name, value in values.items() if isinstance(value, dict)]
    typer.echo(f"{params}: no problems ({', '.join(counts)})")


@app.command(rich_help_panel=VECTORS)
def extract(
    backbone: Annotated[str, typer.Option(help="A model of torchvision or timm, or the folder of a backbone.")],
    data: Annotated[
        str,
        typer.Option(
            help="A folder of images, a .csv or .parquet list with a column `path`, a .tar or a folder of them, or a "
            "URL of one of these, such as s3://bucket/photos."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    image: Annotated[
        str | None, typer.Option(help="The column of image bytes, where the data are Parquet that holds the images.")
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(help="NODE or NODE:POOLING, such as layer3:mean; once for each. [default: penultimate]"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="An entry of torchvision's enum, such as IMAGENET1K_V1, or a tag of timm.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="torchvision or timm. [default: torchvision if it has the model]")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Weights on disk: .safetensors, or a state dict.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The first digits of the file's digest, to be sure of it.")] = None,
    entry: Annotated[
        str | None, typer.Option(help="Which of several state dicts in the file, such as model_ema.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of stored values: float16, bfloat16, float32 or int8.")] = "float16",
    batch_size: Annotated[
        str, typer.Option(help="Images that the network takes at once; auto: 64 on a CPU, found by trying on a GPU.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="auto, torch, onnxruntime, openvino, …")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the network: float32, tf32, bfloat16 or float16.")] = "float32",
    max_rejected: Annotated[float, typer.Option(help="Share of unusable files above which it fails.")] = 0.05,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="A label column of a list or of Parquet to keep; once for each. [default: all]"),
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused.")] = 89_478_485,
    draft: Annotated[
        bool, typer.Option("--draft", help="Decode large JPEGs at a fraction of their size first: other features.")
    ] = False,
    workers: Annotated[
        str, typer.Option(help="Processes that run the network on this machine; auto: one a GPU.")
    ] = "auto",
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler's ADDRESS, or its scheduler FILE: its workers do the work.")
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Say what would be computed, its bytes and the room on the disk, and stop. It fetches the weights and "
            "lists the images.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print what was measured of every engine, and of every tap.")
    ] = False,
) -> None:
    """Embed images, without a project: OUT/TAP/ has the features, OUT/files.parquet the file of each row.

    What the feature cache has is not computed again, so a second run computes only what is new.

    Examples:

      icecore extract --backbone resnet50 --tap penultimate --data photos/ --out features/

      icecore extract --backbone mobilenet_v2 --tap features.13:avg2x2 --tap penultimate --data a.csv --out features/

      icecore extract --backbone resnet50 --data shards/ --out features/     (a folder of WebDataset .tar files)

      icecore extract --backbone resnet50 --data train.parquet --image image --out features/

      icecore extract --backbone resnet50 --data s3://bucket/photos --out features/     (after pip install s3fs)

      icecore extract --backbone resnet50 --data photos/ --out features/ --plan

      icecore extract --backbone resnet50 --data photos/ --out features/ --workers 4

      icecore extract --backbone resnet50 --data /shared/photos --out /shared/features --scheduler tcp://10.0.0.5:8786
    """
    with naming_options():
        _extract(
            backbone,
            data,
            out,
            image=image,
            taps=tap or ["penultimate"],
            weights={"source": source, "name": weights, "file": file, "sha256": sha256, "entry": entry},
            settings={
                "dtype": dtype,
                "max_rejected": max_rejected,
                "columns": tuple(columns) if columns else None,
                "max_pixels": max_pixels,
                "draft": draft,
                "batch_size": batch_size,
                "engine": engine,
                "precision": precision,
                "run": {"workers": int(workers) if workers.isdigit() else workers, "scheduler": scheduler},
            },
            plan_only=plan_only,
            quiet=quiet,
            verbose=verbose,
        )


# Settings that messages name, and the options of `icecore extract` that are called otherwise; None: it has no such one.
OPTIONS = {
    **{"root": "--data", "taps": "--tap", "image": "--image", "columns": "--columns", "max_pixels": "--max-pixels"},
    **{
        "max_rejected": "--max-rejected",
        "batch_size": "--batch-size",
        "file": "--file",
        "weights": "--weights",
        "entry": "--entry",
    },
    **dict.fromkeys(
        (
            "folders",
            "base",
            "path",
            "types",
            "encoding",
            "check",
            "disk",
            "limits",
            "run",
            "input",
            "strip_prefix",
            "project",
        )
    ),
}


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Add to an error what the settings that the error names are called here, or where they can be set."""
    try:
        yield
    except PipelineError as error:
        named = dict.fromkeys(re.findall(r"`([a-z_]+)(?:`|: )", str(error)))
        lines = [f"`{name}` is {OPTIONS[name]} here." for name in named if OPTIONS.get(name)]
        absent = [f"`{name}`" for name in named if OPTIONS.get(name, "") is None]
        if absent:
            is_are = "is a setting" if len(absent) == 1 else "are settings"
            lines.append(f"{', '.join(absent)} {is_are} of a project's params.yaml, see `icecore settings`.")
        if not lines:
            raise
        raise type(error)("\n".join([str(error), *lines])) from None


def _extract(
    backbone: str,
    data: str,
    out: Path,
    *,
    image: str | None,
    taps: list[str],
    weights: dict[str, Any],
    settings: dict[str, Any],
    plan_only: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    from contextlib import nullcontext

    from pipeline import embed
    from pipeline.extract import summary
    from pipeline.runtime import process_seconds, silent
    from pipeline.store import cache, index
    from stages import project

    job = embed.job(backbone, taps, data, image=image, weights=embed.Weights(**weights), **settings)

    def stage(name: str) -> Any:
        return nullcontext(silent) if quiet else project.bar(name, "images")

    def say(text: object) -> None:
        if not quiet:
            more = getattr(text, "more", "") if verbose else ""
            typer.echo(f"{text}\n{more}" if more else text)

    def log(line: str) -> None:
        if not quiet:
            project.log(line)

    root = cache.default_root()
    if plan_only:
        request, foreseen = embed.plan(job, out, cache_root=root, stage=stage, say=say)
        say(foreseen)
        _say_shortage(request, foreseen, out)
        return
    try:
        found = embed.embed(job, out, cache_root=root, stage=stage, announce=say, say=say, log=log)
    except Interrupted as error:
        typer.echo(f"interrupted: {error}", err=True)
        raise SystemExit(130) from None
    for note in found.prepared.notes:
        say(f"note: {note}")
    say(summary.describe_cache(root, found.extracted))
    say(summary.text(str(out), found.extracted, process=process_seconds()))
    for kind, count in found.prepared.excluded.items():
        say(f"{count:,} {kind}: see {out / 'excluded.csv'}")
    for note in found.prepared.notes:
        say(f"note: {note}")
    for name in job.extract.taps:
        say(f"{out / name}: {counted(index.read(out / name).stored, 'row')}")
    say(f"{out / 'files.parquet'}: their files")


@app.command(rich_help_panel=PROJECT)
def plan(
    name: Annotated[str, typer.Argument(help="An entry of `extract` in params.yaml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what an extraction would compute: missing rows, shards and bytes of each tap, against the free disk.

    Example:

      icecore plan glyphs
    """
    from stages import project

    request, found = _foreseen(name)
    typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else str(found))
    _say_shortage(request, found, project.FEATURES / name)


@app.command(rich_help_panel=PROJECT)
def forecast(
    name: Annotated[str, typer.Argument(help="An entry of `extract` in params.yaml.")],
    images: Annotated[int, typer.Option(min=1, help="How many samples to measure on; more for a GPU.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print the plan, and measure on a sample how long it takes and what is slowest. No feature is kept.

    Examples:

      icecore forecast mobilenet

      icecore forecast mobilenet --images 512 --json
    """
    from pipeline.extract.throughput import measure_throughput
    from pipeline.store import cache
    from stages import project

    request, found = _foreseen(name)
    if not as_json:
        typer.echo(str(found))
    rates = measure_throughput(request, cache_root=cache.default_root(), images=images, seed=seed)
    if as_json:
        measured = None if rates is None else rates.to_json()
        typer.echo(json.dumps({**found.to_json(), "pilot": measured}, indent=2, ensure_ascii=False))
    else:
        typer.echo("nothing is missing" if rates is None else str(rates))
    _say_shortage(request, found, project.FEATURES / name)


def _foreseen(name: str) -> Any:
    """The request of an entry of params.yaml, and the bytes that it takes."""
    from pipeline.extract.alternatives import forecast_disk
    from pipeline.extract.request import read
    from pipeline.store import cache
    from stages import project

    _, config = project.entry("extract", [name])
    root = cache.default_root()
    request = read(config, backbone=project.BACKBONES / name, manifests=project.MANIFESTS, cache_root=root)
    return request, forecast_disk(request, cache_root=root, out=project.FEATURES / name)


def _say_shortage(request: Any, found: Any, out: Path) -> None:
    """End with an error where the features do not fit."""
    from pipeline.extract.alternatives import shortage
    from pipeline.extract.disk_forecast import refuse
    from pipeline.store import cache

    refuse(shortage(request, found, cache_root=cache.default_root(), out=out))


@app.command(rich_help_panel=RESULTS)
def leaderboard(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print the leaderboard of the runs that params.yaml names, and where the report lies.

    Example:

      icecore leaderboard --json
    """
    from pipeline.report import leaderboard as board
    from stages import project

    every = list(project.runs(project.settings()))
    names = [name for name in every if (project.TABLES / f"{name}.json").is_file()] or every
    runs = board.read(project.TABLES, names)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"run": run["run"], "task": board.task_of(run), **run["selected"]} for run in runs
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        notes = [f"{name}: not measured: {why}" for name, why in board.unmeasured(project.TABLES, names).items()]
        if absent := [name for name in every if name not in names]:
            notes.append(f"not evaluated: {', '.join(absent)}. Run `icecore repro`.")
        typer.echo("\n\n".join([board.text(runs), *notes, f"report: {project.REPORT}"]))


@app.command(rich_help_panel=PROJECT, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def repro(context: typer.Context) -> None:
    """Check params.yaml, run `dvc repro`, and print the leaderboard; every argument is passed on to DVC.

    Shows the number of each stage, how long it took, about what time is left by earlier runs, and where the time went.

    Examples:

      icecore repro

      icecore repro extract@glyphs

      icecore repro --force --downstream fit@digits_full
    """
    from pipeline.cli.reproduce import reproduce, stages_of
    from pipeline.settings.params import read_params
    from stages import project

    values = project.settings(lines=True)
    status, ran = reproduce(context.args, stages=stages_of(read_params(Path("dvc.yaml")), values), say=typer.echo)
    if status:
        raise SystemExit(status)
    if not context.args and project.runs(values) and "report" not in ran:  # which prints the leaderboard
        leaderboard()


@app.command(rich_help_panel=RESULTS)
def wrong(
    run: Annotated[str, typer.Argument(help="A run of fit, finetune or distill in params.yaml.")],
    most: Annotated[int, typer.Option(min=1, help="How many samples to list.")] = 50,
    draw: Annotated[int | None, typer.Option(help="The few-shot draw or seed. [default: the first]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the test samples that a run's selected method answers wrongly, the most confident answer first.

    Each has its path, and the training sample whose features are most similar to its own. Of numbers the largest errors
    come first.

    Examples:

      icecore wrong digits_full

      icecore wrong digits_logistic --most 10 --draw 2 --json
    """
    from pipeline.cli.wrong import find_mistakes, taps_of
    from pipeline.errors import DataError
    from pipeline.files import read_json
    from pipeline.task import Task
    from stages import project

    config = project.named_run(run)
    evaluated = project.TABLES / f"{run}.json"
    if not evaluated.is_file():
        raise DataError(f"{evaluated}: no evaluation of {run}. Run `dvc repro`.")
    evaluation, task = read_json(evaluated), project.TASKS / f"{config.task}.parquet"
    mistakes = find_mistakes(
        evaluation,
        predictions=project.PREDICTIONS / f"{run}.parquet",
        task=task,
        taps=taps_of(evaluation, project.FEATURES, Task.read(task)),
        most=most,
        draw=draw,
    )
    typer.echo(json.dumps(mistakes.to_json(), indent=2, ensure_ascii=False) if as_json else str(mistakes))


@features_app.command("export")
def features_export(
    folder: Annotated[Path, typer.Argument(help="A tap's folder, such as data/features/glyphs/block3.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .parquet, .npy or .f32.")],
) -> None:
    """Write features to a file for other programs, in the order of their keys; the suffix says which format.

    .parquet has `key`, and `features` as a list of fixed size. .npy is a matrix of float16 or float32, a row a sample.
    .f32 is the same as float32 without a header, to be memory-mapped, as for FAISS; `.json` beside it has its shape.
    Both have the key of each row in `.keys.txt` beside them.

    Examples:

      icecore features export data/features/glyphs/block3 block3.parquet

      icecore features export features/penultimate vectors.npy

      icecore features export features/penultimate vectors.f32
    """
    from pipeline.store.export import export
    from pipeline.store.features import Features

    rows = export(Features.open(folder), out)
    typer.echo(f"{out}: {counted(rows, 'row')}")


def main() -> None:
    """Entry point; errors that were raised on purpose, and those of the system, are printed without a traceback."""
    print_any_text()
    try:
        with closed_pipe_is_quiet():
            app()
    except PermissionError as error:
        from pipeline.files import denied

        refused = error if error.filename is None else denied(Path(error.filename))
        raise SystemExit(f"error: {refused.filename}: {refused.strerror}. Change its owner or mode.") from None
    except (PipelineError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
