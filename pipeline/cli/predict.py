"""`icecore predict`: predict new images with a run of the project, a model's folder, or an exported file."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.run_options import BackboneFolder, Head, find_run

UNUSABLE = 3
"""The exit status if some inputs have no prediction."""

OPTIONS = {"root": "the input", "image": "--image", "path": "--path", "run": "RUN", "max_pixels": "--max-pixels"}
"""The options of `icecore predict`, by the name of the setting in messages of the library."""


def predict(
    run: Annotated[
        str, typer.Argument(help="A run of the project, a run's folder such as data/models/pets, or an exported model.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders of them, lists (.csv, .parquet, or .txt with a path per line), .tar archives, "
            "Parquet with --image, URLs of these; `-` reads paths from standard input.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write: .parquet, .csv or .jsonl. [default: print a table]")
    ] = None,
    image: Annotated[str | None, typer.Option(help="The column of image bytes of Parquet inputs.")] = None,
    path: Annotated[str | None, typer.Option(help="The column of paths of lists. [default: path]")] = None,
    top: Annotated[int, typer.Option(min=0, help="So many classes with the largest scores of each image.")] = 0,
    proba: Annotated[bool, typer.Option("--proba", help="The score of every class.")] = False,
    near: Annotated[int, typer.Option(min=0, help="So many nearest training samples of each image.")] = 0,
    head: Head = None,
    backbone: BackboneFolder = None,
    engine: Annotated[
        str, typer.Option(help="What runs the network for more than 256 images: auto, torch, onnxruntime, openvino, …")
    ] = "auto",
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are refused.")] = 89_478_485,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress, and of errors the status alone.")] = False,
) -> None:
    """Predict new images by what a run learned, in the order of the inputs; the exit status is 3 where some failed.

    Columns: path, prediction, confidence (`score` of a head without probabilities), error. More than 256 images go
    through the feature cache: the same command goes on where a killed one was.

    Examples:

      icecore predict pets photo.jpg

      icecore predict pets photos/ --out predictions.parquet

      icecore predict pets new.tar more/ list.csv --top 5 --near 3 --out predictions.csv

      icecore predict exported/model.onnx photos/

      find photos -name '*.jpg' | icecore predict data/models/pets - --json
    """
    from pipeline.cli.extract_folder import naming_options

    try:
        with naming_options(OPTIONS):
            failed = _predict(
                run,
                inputs or [],
                out,
                input_columns={"image": image, "path": path},
                output_columns={"top": top, "proba": proba, "near": near},
                model_options={"file": head, "backbone": backbone},
                engine=engine,
                max_pixels=max_pixels,
                as_json=as_json,
                quiet=quiet,
            )
    except KeyboardInterrupt as error:
        kept = str(error) or "nothing was written. What the feature cache has is not computed again"
        typer.echo(f"interrupted: {kept}", err=True)
        raise SystemExit(130) from None
    if failed:
        raise SystemExit(UNUSABLE)


def _predict(
    run: str,
    arguments: list[str],
    out: Path | None,
    *,
    input_columns: dict[str, Any],
    output_columns: dict[str, Any],
    model_options: dict[str, Any],
    engine: str,
    max_pixels: int,
    as_json: bool,
    quiet: bool,
) -> int:
    """Predict, print the failed inputs, and return the number of inputs without a prediction."""
    from pipeline.errors import ConfigError, counted
    from pipeline.heads.skops_import import skops_io
    from pipeline.predict.inputs import Inputs
    from pipeline.predict.output_files import check_suffix

    if out is not None and as_json:
        raise ConfigError(f"--json prints, and --out writes {out}: leave one of them out.")
    out = None if out is None else check_suffix(out)
    inputs = Inputs(arguments, **input_columns, stdin=sys.stdin.buffer, out=out)
    folder = find_run(run)
    if any(folder.glob("*.skops")):
        skops_io()  # before torch: skops inspects all loaded modules

    from pipeline.inference.trained_model import load
    from pipeline.predict.exported import find_exported, load_exported
    from pipeline.predict.near import open_training_rows
    from pipeline.predict.output_files import TextTable, json_lines, open_writer
    from pipeline.predict.output_table import Columns
    from pipeline.predict.run import predict as predict_all
    from pipeline.runtime import SILENT, Reporter
    from pipeline.store import location
    from stages import terminal

    training, network = None, None
    exported = find_exported(folder)
    if exported is None:
        model = load(folder, **model_options)
        training, network = open_training_rows(model) if output_columns["near"] else (None, None)
        table_columns = Columns(model, **output_columns, training=training)
    else:
        needed = {
            "--near": output_columns["near"],
            "--head": model_options["file"],
            "--backbone": model_options["backbone"],
        }
        if extra := [name for name, value in {**needed, "--engine": engine != "auto"}.items() if value]:
            raise ConfigError(
                f"{folder}: an exported model is one file: leave {' and '.join(extra)} out, or name the run."
            )
        table_columns = Columns(load_exported(exported), **output_columns)
    text = TextTable(table_columns.schema)

    def show(table: Any) -> None:
        for line in json_lines(table) if as_json else text.lines(table):
            typer.echo(line)

    def log(line: object) -> None:
        if not quiet:
            typer.echo(str(line), err=True)

    reporter = SILENT
    if not quiet:
        reporter = Reporter(message=log, bar=lambda title: terminal.bar(title, "images"))
        reporter = reporter if sys.stderr.isatty() else replace(reporter, log=log)
    with nullcontext(show) if out is None else open_writer(out, table_columns.schema) as write:
        result = predict_all(
            table_columns,
            inputs,
            write,
            near=network,
            cache_root=location.default_root(),
            name=str(out.resolve()) if out is not None else f"{Path.cwd()} {run} {arguments}",
            settings={"engine": engine},
            max_pixels=max_pixels,
            reporter=reporter,
        )
    if out is not None:
        log(f"{out}: {counted(result.rows, 'row')}")
    for kind, count in result.others.items():
        log(f"{counted(count, f'{kind} file')} of the inputs: no images, and no rows")
    if result.failed:
        log(f"{result.failed:,} of {counted(result.rows, 'input')} could not be predicted:")
        for path, why in result.first_errors:
            log(f"  {path}: {why}")
        if result.failed > len(result.first_errors):
            more = result.failed - len(result.first_errors)
            log(f"  … and {more:,} more" + (f": see `error` in {out}" if out else ""))
    return result.failed
