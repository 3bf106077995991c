"""Checkpoints of a training run: everything that it goes on with, in one file that appears by a rename.

`torch.load(weights_only=True)` reads it: tensors, numbers and text, and no code.
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
    """Where a run is: the epoch, batches done in it, the sum of their losses and their rows."""

    epoch: int = 0
    batch: int = 0
    total: float = 0.0
    rows: int = 0
    history: History = dataclasses.field(default_factory=History)


def save(
    path: Path, state: State, network: nn.Module, average: nn.Module | None, optimizer: Any, settings: Mapping[str, Any]
) -> None:
    """Write the state of a run, of its network, of the moving average and, unless it is finished, of the optimiser."""
    whole = {
        "format": FORMAT,
        "settings": canonical_json(settings),
        "state": dataclasses.asdict(state),
        "network": plain(network),
        "average": {} if average is None else average.state_dict(),
        "optimiser": {} if state.history.stopped else optimizer.state_dict(),
    }
    with atomic(path) as temporary:
        torch.save(whole, temporary)


def resume(
    path: Path, network: nn.Module, average: nn.Module | None, optimizer: Any, settings: Mapping[str, Any]
) -> State:
    """Put a checkpoint into network, average and optimiser, and return where the run is; a new state without a file.

    Raises TrainingError with all settings that are not those that the run was begun with.
    """
    if not path.is_file():
        return State()
    check_readable(path)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if different := differences(json.loads(saved["settings"]), json.loads(canonical_json(settings))):
        title = f"{path}: expected to go on with the settings that it was begun with, got others"
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
    """Copy parameters and buffers to the CPU, contiguous, sharing nothing: what safetensors takes."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
