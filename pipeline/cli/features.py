"""`icecore features`: export stored features for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import counted

app = typer.Typer(help="Stored features.", no_args_is_help=True)


@app.command("export")
def features_export(
    folder: Annotated[Path, typer.Argument(help="A tap's folder, such as data/features/glyphs/block3.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .parquet, .npy or .f32.")],
) -> None:
    """Write features to a file for other programs, in the order of their keys; the suffix says which format.

    .parquet has `key`, and `features` as a list of fixed size. .npy is a float16 or float32 matrix, one row per sample.
    .f32 is the same as float32 without a header, to be memory-mapped, as for FAISS; its shape is in a `.json` file
    of the same name. For both, the keys of the rows are in a `.keys.txt` file of the same name.

    Examples:

      icecore features export data/features/glyphs/block3 block3.parquet

      icecore features export features/penultimate vectors.npy

      icecore features export features/penultimate vectors.f32
    """
    from pipeline.store.export import export
    from pipeline.store.features import Features

    rows = export(Features.open(folder), out)
    typer.echo(f"{out}: {counted(rows, 'row')}")
