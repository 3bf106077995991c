"""Weights in a file: a state dict, read without running any code from it."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import BackboneError
from pipeline.files import check_readable, sha256_file

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the weights in what they save."""


def read_state_dict(file: Path, *, sha256: str, strip_prefix: str = "") -> Mapping[str, Tensor]:
    """Read a state dict and take the keys below a prefix; raises BackboneError with what is wrong with the file."""
    if not file.is_file():
        raise BackboneError(f"{file}: no such weights file. Set `file` to a .safetensors or .pth state dict.")
    check_readable(file)
    found = sha256_file(file)
    if not found.startswith(sha256.lower()):
        raise BackboneError(f"{file}: expected a file whose SHA-256 begins with {sha256}, got {found}.")
    return _below(strip_prefix, _read(file), file)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch's unpickler raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackboneError(
            f"{file}: expected a state dict (names to tensors), got a file that is damaged, or that cannot be read "
            f"without running code from it: {reason} Where you trust the file, convert it once: load it with "
            "`torch.load(file, weights_only=False)`, and save the state dict in it with "
            "`safetensors.torch.save_file(state_dict, 'weights.safetensors')`."
        ) from None
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BackboneError(f"{file}: expected a state dict (names to tensors), got {type(loaded).__name__}.")
    return loaded


def _below(prefix: str, state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if prefix and not found:
        first = ", ".join([*list(state)[:3], *(["…"] if len(state) > 3 else [])])
        raise BackboneError(f"{file}: expected keys that begin with {prefix!r}, got {first}. Mend `strip_prefix`.")
    return found
