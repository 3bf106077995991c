"""A prediction in a process of its own, which may be killed; other processes import this."""

from pathlib import Path

import torch

from pipeline.inference.trained_model import load
from pipeline.predict.inputs import Inputs
from pipeline.predict.output_files import open_writer
from pipeline.predict.output_table import Columns
from pipeline.predict.run import predict
from pipeline.prepare import check_images


def predict_all(run: Path, images: Path, out: Path, cache: Path) -> None:
    """Predict a folder through the feature cache, by shards of one MB, in this process alone."""
    torch.set_num_threads(1)
    check_images.START_WORKERS_AFTER = 600.0
    columns = Columns(load(run), proba=True)
    with open_writer(out, columns.schema) as write:
        settings = {"engine": "torch", "shard_mb": 1}
        predict(columns, Inputs([str(images)]), write, cache_root=cache, name=str(out), few=0, settings=settings)
