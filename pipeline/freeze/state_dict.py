"""Read a state dict from a weights file without running code from the file."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import BackboneError, bullets, counted
from pipeline.files import check_readable, read_json, sha256_file
from pipeline.runtime import SILENT, Reporter

MAIN = ("state_dict", "model_state_dict", "model")
"""The entries in which training scripts usually save the weights; read by default if the file has exactly one."""

DEPTH = 4  # how deep nested entries are searched

SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer. Fetch the file itself with `git lfs pull`.",
    b"<": "a web page. Download the file again.",
    b"\x89HDF": "an HDF5 file, as Keras writes. Convert it to a state dict of torch.",
}
"""First bytes of files that are often mistaken for weights, with what each file is."""

SHARD = re.compile(r"-\d+-of-0*(\d+)\.\w+$")


def read_entry(
    file: Path,
    *,
    sha256: str,
    entry: str | None = None,
    strip_prefix: str = "",
    reporter: Reporter = SILENT,
) -> tuple[Mapping[str, Tensor], str]:
    """Read a state dict from a file; return it with the name of the entry that was read.

    sha256: the first digits of the file's SHA-256.
    entry: the state dict to read, where the file has several: nested keys joined with dots.
    strip_prefix: a prefix that is removed from the keys; keys without it are ignored.
    reporter: gets a message about entries and keys that are ignored.

    Raises BackboneError with the reason where the file cannot be read or does not match.
    """
    if not file.is_file():
        raise BackboneError(f"{file}: no such weights file. Set `file` to a .safetensors or .pth state dict.")
    check_readable(file)
    digest = sha256_file(file)
    if not digest.startswith(sha256.lower()):
        raise BackboneError(f"{file}: expected a file whose SHA-256 begins with {sha256}, got {digest}.")
    name, state = _choose_entry(_read(file), entry, file, reporter)
    return _strip_prefix(strip_prefix, state, file, reporter), name


def _read(file: Path) -> Any:
    _refuse_parts(file)
    try:
        if _is_safetensors(file):
            return safetensors.torch.load_file(file)
        with file.open("rb") as stream:  # given a path, torch would also judge its name
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch's unpickler raise nearly anything
        raise BackboneError(
            f"{file}: expected a state dict (names to tensors), got a file that is damaged, or that cannot be read "
            f"without running code from it: {_reason(error)} If you trust the file, convert it once: load it with "
            "`torch.load(file, weights_only=False)`, and save the state dict in it with "
            "`safetensors.torch.save_file(state_dict, 'weights.safetensors')`."
        ) from None


def _refuse_parts(file: Path) -> None:
    """Raise BackboneError for an index of other files, for one of several parts, and for a file that is no weights."""
    if file.suffix == ".json":
        try:
            parts = sorted(set(read_json(file)["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError):
            parts = []
        what = f"the index of {len(parts)} files ({', '.join(parts[:3])}, …)" if parts else "JSON"
        raise BackboneError(f"{file}: expected one file that holds all weights, got {what}. {_MERGE}")
    if (shard := SHARD.search(file.name)) and int(shard[1]) > 1:
        raise BackboneError(f"{file}: expected one file that holds all weights, got one of {shard[1]} parts. {_MERGE}")
    with file.open("rb") as stream:
        start = stream.read(32)
    for signature, what in SIGNATURES.items():
        if start.startswith(signature):
            raise BackboneError(f"{file}: expected a state dict (names to tensors), got {what}")


_MERGE = (
    "Merge the parts: read each, `update` a dict with it, and save the dict with "
    "`safetensors.torch.save_file(state_dict, 'weights.safetensors')`."
)


def _is_safetensors(file: Path) -> bool:
    """Return whether a file is in the safetensors format, judged by its content or by its extension."""
    with file.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(b"PK"):
        return False
    header = int.from_bytes(start[:8], "little")
    return file.suffix == ".safetensors" or (start[8:] == b"{" and header < file.stat().st_size)


def _reason(error: Exception) -> str:
    """Return the cause of torch's error, which its message hides below the advice to switch off `weights_only`."""
    text = str(error)
    if refused := re.search(r"GLOBAL ([\w.]+)", text):
        name = refused[1]
        kind = "a value of numpy, such as a score" if name.startswith("numpy") else "an object"
        return f"it holds {name}, {kind} that is no tensor."
    if "WeightsUnpickler error: " in text:
        text = text.partition("WeightsUnpickler error: ")[2].strip()
    return (text.splitlines() or [type(error).__name__])[0]


def _choose_entry(loaded: Any, entry: str | None, file: Path, reporter: Reporter) -> tuple[str, dict[str, Tensor]]:
    """Return name and state dict of an entry: of `entry`, else of the only entry, else of the only one in `MAIN`."""
    entries = dict(_entries(loaded)) if isinstance(loaded, dict) else {}
    listed = [f"{name}: {counted(len(state), 'key')}" for name, state in entries.items() if name]
    if entry is not None:
        if entry not in entries:
            raise BackboneError(_no_entry(loaded, entry, listed, file))
        name = entry
    elif len(entries) == 1:
        (name,) = entries
    else:
        main = [name for name in MAIN if name in entries]
        if len(main) != 1:
            raise BackboneError(_describe_choice(loaded, listed, file))
        (name,) = main
    if name and len(entries) > 1:
        reporter.message(f"{file.name}: read `entry: {name}` of {len(entries)} ({', '.join(listed)})")
    elif name and name not in MAIN:
        reporter.message(
            f"{file.name}: read `entry: {name}`, the only one with weights ({counted(len(entries[name]), 'key')})"
        )
    other = [f"{key} ({type(value).__name__})" for key, value in entries[name].items() if not isinstance(value, Tensor)]
    if other:
        raise BackboneError(
            f"{file}: expected a state dict (names to tensors){f' in {name!r}' if name else ''}, got keys that are no "
            f"tensors: {', '.join(other[:5])}. Save it again without them."
        )
    return name, entries[name]


def _entries(value: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the innermost dicts of weights, named by nested keys joined with dots, without states of optimizers and
    random number generators.
    """
    if "param_groups" in value or not all(isinstance(key, str) for key in value):
        return
    inner = [
        entry
        for key, part in value.items()
        if isinstance(part, dict) and depth < DEPTH
        for entry in _entries(part, f"{name}.{key}" if name else key, depth + 1)
    ]
    tensors = [part for part in value.values() if isinstance(part, Tensor)]
    has_weights = any(tensor.ndim and tensor.is_floating_point() for tensor in tensors)
    if inner and 2 * len(tensors) <= len(value):
        yield from inner
    elif has_weights and 2 * len(tensors) > len(value):
        yield name, dict(value)
        yield from inner


def _no_entry(loaded: Any, entry: str, listed: list[str], file: Path) -> str:
    if listed:
        return bullets(f"{file}: no entry {entry!r} with weights in this file. Expected one of", listed)
    text = f"{file}: no entry {entry!r} in this file, which has no entries. Leave `entry` out"
    if isinstance(loaded, dict) and any(str(key).startswith(f"{entry}.") for key in loaded):
        return f"{text}, and set `strip_prefix: '{entry}.'`, with which keys begin."
    return f"{text}."


def _describe_choice(loaded: Any, listed: list[str], file: Path) -> str:
    if listed:
        return bullets(f"{file}: expected one state dict, got {len(listed)}. Choose one with `entry`", listed)
    got = type(loaded).__name__
    if isinstance(loaded, dict) and "param_groups" in loaded:
        got = "the state of an optimizer. The weights of the network were saved elsewhere"
    elif isinstance(loaded, dict) and loaded:
        keys = [f"{key!r} ({type(value).__name__})" for key, value in list(loaded.items())[:8]]
        got += f" without weights: {', '.join(keys)}{', …' if len(loaded) > 8 else ''}"
    return f"{file}: expected a state dict (names to tensors), got {got}."


def _strip_prefix(prefix: str, state: dict[str, Tensor], file: Path, reporter: Reporter) -> dict[str, Tensor]:
    result = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if prefix and not result:
        first = ", ".join([*list(state)[:3], *(["…"] if len(state) > 3 else [])])
        raise BackboneError(f"{file}: expected keys that begin with {prefix!r}, got {first}. Correct `strip_prefix`.")
    if left := [key for key in state if not key.startswith(prefix)]:
        first = ", ".join([*left[:3], *(["…"] if left[3:] else [])])
        reporter.message(f"{file.name}: {counted(len(left), 'key')} without {prefix!r} left out: {first}")
    return result
