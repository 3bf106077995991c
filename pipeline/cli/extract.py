"""The command `icecore extract`; `extract_folder.py` does its work."""

from pathlib import Path
from typing import Annotated

import typer


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
        typer.Option(help="NODE or NODE:POOLING, such as layer3:mean; may be repeated. [default: penultimate]"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="An entry of torchvision's enum, such as IMAGENET1K_V1, or a tag of timm.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="torchvision or timm. [default: torchvision if it has the model]")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Weights on disk: .safetensors, or a state dict.")] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The first digits of the SHA-256 of --file, which is checked.")
    ] = None,
    entry: Annotated[
        str | None, typer.Option(help="Which of several state dicts in the file, such as model_ema.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="The type of stored values: float16, bfloat16, float32 or int8.")
    ] = "float16",
    batch_size: Annotated[
        str, typer.Option(help="Images per forward pass; auto: 64 on a CPU, the fastest that fits on a GPU.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="auto, torch, onnxruntime, openvino, …")] = "auto",
    precision: Annotated[
        str, typer.Option(help="The precision of the network: float32, tf32, bfloat16 or float16.")
    ] = "float32",
    max_rejected: Annotated[
        float, typer.Option(help="The share of unusable files above which the command fails.")
    ] = 0.05,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="A label column of a list or of Parquet to keep; may be repeated. [default: all]"),
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused.")] = 89_478_485,
    draft: Annotated[
        bool, typer.Option("--draft", help="Decode large JPEGs at a fraction of their size; the features differ.")
    ] = False,
    workers: Annotated[
        str, typer.Option(help="Processes that run the network on this machine; auto: one per GPU.")
    ] = "auto",
    scheduler: Annotated[
        str | None, typer.Option(help="A Dask scheduler's ADDRESS, or its scheduler FILE; its workers run the network.")
    ] = None,
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash", help="Open all images, also those whose size, times and inode are as in the last run into OUT."
        ),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print what would be computed, its bytes and the free disk, and stop. The weights are downloaded and "
            "the images listed.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print the measurements of every engine and of every tap.")
    ] = False,
) -> None:
    """Embed images, without a project: OUT/TAP/ has the features, OUT/files.parquet the file of each row.

    Rows in the feature cache are not computed again: a second run into OUT opens and computes new images only.

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
    from pipeline.cli.extract_folder import extract_folder, naming_options

    with naming_options():
        extract_folder(
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
            rehash=rehash,
            plan_only=plan_only,
            quiet=quiet,
            verbose=verbose,
        )
