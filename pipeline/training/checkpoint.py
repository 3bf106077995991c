"""Checkpoints of a training run: its complete state, in a file that is written atomically.

`torch.load(weights_only=True)` reads it: tensors, numbers and strings, no code.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError, bullets
from pipeline.files import atomic, canonical_json, check_readable
from pipeline.store.identity import differences
from pipeline.training.early_stopping import History

LAST, BEST = "last.ckpt", "best.safetensors"
FORMAT = 1


@dataclasses.dataclass
class State:
    """The progress of a run: epoch, batches done in the epoch, sum of their losses, and their rows."""

    epoch: int = 0
    batch: int = 0
    total: float = 0.0
    rows: int = 0
    history: History = dataclasses.field(default_factory=History)


def save(
    path: Path, state: State, network: nn.Module, average: nn.Module | None, optimizer: Any, settings: Mapping[str, Any]
) -> None:
    """Write the state of a run, its network, the moving average and, unless it is finished, the optimizer."""
    content = {
        "format": FORMAT,
        "settings": canonical_json(settings),
        "state": dataclasses.asdict(state),
        "network": plain(network),
        "average": {} if average is None else average.state_dict(),
        "optimiser": {} if state.history.stopped else optimizer.state_dict(),
    }
    with atomic(path) as temporary:
        torch.save(content, temporary)


def resume(
    path: Path, network: nn.Module, average: nn.Module | None, optimizer: Any, settings: Mapping[str, Any]
) -> State:
    """Load a checkpoint into network, average and optimizer, and return its state; a new state if there is no file.

    Raises TrainingError with all settings that differ from those of the checkpoint.
    """
    if not path.is_file():
        return State()
    check_readable(path)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if different := differences(json.loads(saved["settings"]), json.loads(canonical_json(settings))):
        title = f"{path}: expected to resume with the settings of the checkpoint, got others"
        raise TrainingError(bullets(title, [*different, "Train into another folder, or remove this one."]))
    network.load_state_dict(saved["network"])
    if saved["optimiser"]:
        optimizer.load_state_dict(saved["optimiser"])
    if average is not None:
        average.load_state_dict(saved["average"])
    state = saved["state"]
    return State(**{**state, "history": History(**state["history"])})


def save_weights(path: Path, network: nn.Module) -> None:
    """Write parameters and buffers as safetensors."""
    with atomic(path) as temporary:
        safetensors.torch.save_file(plain(network), temporary)


def plain(network: nn.Module) -> dict[str, Tensor]:
    """Copy parameters and buffers to contiguous CPU tensors that share no memory, as safetensors requires."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
