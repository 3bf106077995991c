"""`icecore explain`: write a page with the evidence for predictions."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.run_options import BackboneFolder, Head, RunName, find_run


def explain(
    run: RunName,
    images: Annotated[list[str], typer.Argument(help="Images: files or URLs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The page to write, such as page.html.", show_default=False)],
    top: Annotated[int, typer.Option(min=0, help="So many classes with the largest scores of each image.")] = 5,
    near: Annotated[int, typer.Option(min=0, help="So many nearest training samples of each image.")] = 5,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class whose evidence is shown; may be repeated. [default: the two best]"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task of a student of several. [default: its first]")] = None,
    head: Head = None,
    backbone: BackboneFolder = None,
) -> None:
    """Write one HTML page that shows what speaks for the predictions of some images.

    Per image: classes with their scores, where the evidence lies, the part of each tap, the nearest training samples.
    The page has all pictures inside, and needs no network. It needs the extra `report`.

    Examples:

      icecore explain pets photo.jpg --out page.html

      icecore explain pets a.jpg b.jpg --class cat --class dog --near 10 --out page.html
    """
    from pipeline.explain.run import check_out
    from pipeline.explain.run import explain as write_page
    from pipeline.inference.trained_model import load

    check_out(out)
    model = load(find_run(run), file=head, backbone=backbone)
    explanations = write_page(
        model,
        images,
        out,
        top=top,
        near=near,
        classes=classes or (),
        task=task,
        log=lambda line: typer.echo(line, err=True),
    )
    for explanation in explanations:
        best = f" {explanation.top[0][1]:.3f}" if explanation.top and model.tasks[0].kind == "classification" else ""
        typer.echo(f"{explanation.path}: {explanation.prediction}{best}")
    typer.echo(f"page: {out}")
