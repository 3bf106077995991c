"""The command `icecore layers`: list the nodes of a backbone of the project or in a folder, or of a library's model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from pipeline.inference.node_table import Network


def layers(
    backbone: Annotated[
        str,
        typer.Argument(help="A name below data/backbones, a backbone's folder, or a model of torchvision or timm."),
    ],
    match: Annotated[str, typer.Option(help="Only nodes with this in their name, alias or kind.")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Show all nodes: what is inside of blocks, and functions between the modules.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the blocks of a backbone, which can be taps: aliases, shapes, bytes per sample, share of the cost.

    `--match` searches the modules inside of blocks too, `--all` lists every node. A model's name needs no project and
    downloads no weights.

    Examples:

      icecore layers resnet50

      icecore layers mobilenet

      icecore layers data/backbones/vgg16 --match conv4

      icecore layers mobilenet --all --json
    """
    from pipeline.inference import node_table

    rows = node_table.rows(read_nodes(backbone), functions=everything, short=not everything and not match, match=match)
    if as_json:
        print_json(rows)
    else:
        typer.echo(node_table.text(rows))


def read_nodes(name: str) -> "Network":
    """Return the nodes of a backbone of the project, of a backbone's folder, or of a model of torchvision or timm.

    The name is looked up in this order; weights are not downloaded. Raises BackboneError for an unknown name.
    """
    from pipeline.backbones.spec import read_spec
    from stages import project

    folder = project.BACKBONES / name
    if folder.is_dir() and not Path(name).is_absolute():
        return read_spec(folder)
    if Path(name).exists() or len(Path(name).parts) > 1:
        return read_spec(name)
    from pipeline.freeze.library_model import model_settings
    from pipeline.freeze.outline import survey_model

    return survey_model(model_settings(name))
