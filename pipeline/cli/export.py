"""`icecore export`: write a run's model as one file, from pixels to probabilities, for machines without icecore."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.run_options import BackboneFolder, Head, RunName, find_run


def export(
    run: RunName,
    out: Annotated[Path, typer.Argument(help="The folder to write: a new one, an empty one, or an earlier export.")],
    format: Annotated[str, typer.Option(help="onnx, openvino, or torch (a program of torch.export).")] = "onnx",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise the backbone: smaller and often faster; its cost on test rows is printed."
        ),
    ] = False,
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse an int8 model that loses more of the task's metric.")
    ] = 0.02,
    head: Head = None,
    backbone: BackboneFolder = None,
) -> None:
    """Export a run's model to one file, with a model card and a script that needs neither icecore nor torch.

    OUT/model.onnx takes uint8 pixels, any number of images at once, and gives probabilities. It is compared with the
    pipeline's own predictions of test images before it is there. OUT/infer.py predicts photos with it.

    Examples:

      icecore export pets exported/

      python exported/infer.py exported/model.onnx photo.jpg

      icecore export pets small/ --int8 --max-drop 0.01

      icecore export data/models/pets exported/ --format openvino
    """
    from pipeline.export.run import export as export_model
    from pipeline.runtime import Reporter
    from pipeline.store.location import default_root

    result = export_model(
        find_run(run),
        out,
        form=format,
        int8=int8,
        max_drop=max_drop,
        file=head,
        backbone=backbone,
        cache=default_root(),
        reporter=Reporter(log=lambda line: typer.echo(line, err=True)),
    )
    for line in result.lines:
        typer.echo(line)
