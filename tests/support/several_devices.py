"""A network and a student, trained by one process or by several: `python several_devices.py FOLDER DEVICES`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.training.loop import train
from support import small_distillation, small_training

SHARED: dict[str, Any] = {"epochs": 2, "batch_size": 7, "accumulate": 2, "weights": "last", "learning_rate": 0.1}
SHARED |= {"optimiser": "sgd", "clip": 0.5}
LOSSES = {
    name: value for name, value in small_distillation.EVERYTHING.items() if name != "relational"
}  # of all rows of a batch


def both(folder: Path, *, devices: int) -> None:
    """Train both; the first process leaves `network.pt` and `student.pt` in the folder."""
    rank = os.environ.get("LOCAL_RANK", "0")
    found = small_training.backbone(folder / f"backbone{rank}")
    setting = small_training.setting(devices=devices, **SHARED)
    frozen = small_training.all_of(found, batch_norm="frozen")
    train(
        found.module,
        small_training.samples(29),
        small_training.samples(15, seed=1),
        setting,
        frozen,
        folder=folder / "network",
    )
    one = small_distillation.student_training(
        folder / rank, rows=29, losses=LOSSES, batch_norm="frozen", devices=devices, **SHARED
    )
    train(one.student, one.samples, one.validation, one.context, one.trainable, folder=folder / "student")
    if one.context.fabric.is_global_zero:
        torch.save(found.module.state_dict(), folder / "network.pt")
        torch.save(one.student.state_dict(), folder / "student.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    both(Path(sys.argv[1]), devices=int(sys.argv[2]))
