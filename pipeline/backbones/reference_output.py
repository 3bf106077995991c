"""A backbone's probe: what the network gave for one fixed image when it was frozen, compared whenever it is loaded.

Weights and architecture can be the same and values others: after an upgrade of torch, torchvision or timm, or of
anything else that the code uses. Then stored features are those of another network.
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
"""Values of the output that are kept, evenly spaced."""

TOLERANCE = 1e-3
"""How far a value may be off, in parts of the largest: kernels of other machines are off by less than a tenth of it."""

PACKAGES = ("torch", "torchvision")


def difference(one: Probe, other: Probe) -> float:
    """Return how far the values of two probes are apart, in parts of the largest; infinity for another number."""
    if len(one.values) != len(other.values):
        return float("inf")
    off = np.abs(np.subtract(one.values, other.values)).max(initial=0.0)
    return float(off / max(one.largest, np.finfo(np.float32).tiny))


def packages_of(architecture: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages whose code a network of an architecture runs, be it on the base of another."""
    part: Any = architecture
    while isinstance(part, Mapping):
        if part.get("family") == "timm":
            return (*PACKAGES, "timm")
        part = part.get("base")
    return PACKAGES


@torch.inference_mode()
def take(network: nn.Module, shape: tuple[int, int, int], *, packages: Sequence[str] = PACKAGES) -> Probe | None:
    """Run a frozen network on the fixed image; None where two runs differ, as of a network that draws at random.

    `packages`: those whose versions are kept, as `packages_of` names them.
    """
    first, second = (_outputs(network, shape) for _ in range(2))
    if first.shape != second.shape or not np.array_equal(first, second) or not np.isfinite(first).all():
        return None
    places = np.linspace(0, max(0, len(first) - 1), min(VALUES, len(first))).astype(int)
    return Probe(
        values=tuple(float(f"{value:.6g}") for value in first[places]),
        largest=float(f"{np.abs(first).max(initial=0.0):.6g}"),
        versions=versions(*packages),
    )


def check(network: nn.Module, shape: tuple[int, int, int], kept: Probe, *, where: str) -> None:
    """Raise BackboneError where a network does not give what it gave when it was frozen, naming the versions."""
    now = take(network, shape)
    off = float("inf") if now is None else difference(kept, now)
    if off > TOLERANCE:
        raise BackboneError(
            f"{where}: expected the outputs that the network gave when it was written, within {TOLERANCE:g} of the "
            f"largest, got them off by {off:.2g}. {describe_versions(kept)}. Install what wrote it, or write it again: "
            "run its stage by `dvc repro -f`."
        )


def describe_versions(kept: Probe) -> str:
    """Return a sentence on which packages have other versions than when a probe was taken."""
    now = versions(*kept.versions)
    changed = [f"{name} {then} (now {now[name]})" for name, then in kept.versions.items() if now[name] != then]
    if changed:
        return f"They were computed with {', '.join(changed)}"
    return f"The versions of {' and '.join(kept.versions)} are the same: its code or another package changed"


def _outputs(network: nn.Module, shape: tuple[int, int, int]) -> np.ndarray:
    like = next((one for one in network.parameters() if one.is_floating_point()), torch.zeros(()))
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    found = network(torch.from_numpy(image).to(like))
    parts = [tensor.detach().float().flatten().cpu().numpy() for tensor in _tensors(found)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield all tensors of an output, whatever holds them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from _tensors(one)
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors(one)
