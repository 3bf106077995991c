"""The probe of a backbone: outputs for a fixed image, stored when it is frozen, compared whenever it is loaded.

With the same weights and architecture, outputs can change: after an upgrade of torch, torchvision, timm or any other
package that the code uses. Stored features would then be those of another network.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones.spec import Probe
from pipeline.errors import BackboneError
from pipeline.runtime import versions

VALUES = 32
"""Number of stored output values, evenly spaced."""

TOLERANCE = 1e-3
"""Largest difference allowed, relative to the largest value. Other machines' kernels differ by less than a tenth."""

PACKAGES = ("torch", "torchvision")


def difference(probe: Probe, other: Probe) -> float:
    """Return the largest difference of two probes, relative to the largest value; infinity if the sizes differ."""
    if len(probe.values) != len(other.values):
        return float("inf")
    off = np.abs(np.subtract(probe.values, other.values)).max(initial=0.0)
    return float(off / max(probe.largest, np.finfo(np.float32).tiny))


def packages_of(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages whose code an architecture runs, also through the architecture that it is based on."""
    part: Any = architecture
    while isinstance(part, Mapping):
        if part.get("family") == "timm":
            return (*PACKAGES, "timm")
        part = part.get("base")
    return PACKAGES


@torch.inference_mode()
def compute_probe(
    network: nn.Module, shape: tuple[int, int, int], *, packages: Sequence[str] = PACKAGES
) -> Probe | None:
    """Run a frozen network on the fixed image; None if two runs differ, as with a network that draws random numbers.

    `packages`: packages whose versions are stored, from `packages_of`.
    """
    first, second = (_flat_outputs(network, shape) for _ in range(2))
    if first.shape != second.shape or not np.array_equal(first, second) or not np.isfinite(first).all():
        return None
    positions = np.linspace(0, max(0, len(first) - 1), min(VALUES, len(first))).astype(int)
    return Probe(
        values=tuple(float(f"{value:.6g}") for value in first[positions]),
        largest=float(f"{np.abs(first).max(initial=0.0):.6g}"),
        versions=versions(*packages),
    )


def check(network: nn.Module, shape: tuple[int, int, int], probe: Probe, *, where: str) -> None:
    """Raise BackboneError, with the versions that changed, if a network does not reproduce its probe."""
    now = compute_probe(network, shape)
    off = float("inf") if now is None else difference(probe, now)
    if off > TOLERANCE:
        raise BackboneError(
            f"{where}: expected the outputs that the network gave when it was written, within {TOLERANCE:g} of the "
            f"largest value, got a difference of {off:.2g}. {describe_versions(probe)}. Install those versions, or run "
            "the stage that wrote the network again with `icecore repro -f`."
        )


def describe_versions(probe: Probe) -> str:
    """Return a sentence about the packages whose versions changed since the probe was computed."""
    now = versions(*probe.versions)
    changed = [f"{name} {then} (now {now[name]})" for name, then in probe.versions.items() if now[name] != then]
    if changed:
        return f"They were computed with {', '.join(changed)}"
    return f"The versions of {' and '.join(probe.versions)} are the same: the code or another package changed"


def _flat_outputs(network: nn.Module, shape: tuple[int, int, int]) -> np.ndarray:
    like = next((value for value in network.parameters() if value.is_floating_point()), torch.zeros(()))
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    output = network(torch.from_numpy(image).to(like))
    parts = [tensor.detach().float().flatten().cpu().numpy() for tensor in _tensors(output)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield all tensors of an output, also in nested mappings, lists and tuples."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
