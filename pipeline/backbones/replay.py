"""Head replay: compute logits from cached penultimate features with the network's own last layers.

The network runs on images of zeros, and a hook replaces the classifier's input by the cached rows: all later layers run
unchanged, whatever the architecture.
"""

import contextlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.hooks import PENULTIMATE, first_input, with_first_input, without_attention_fastpath
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import InputPart
from pipeline.errors import BackboneError, unknown

BATCH = 16

# Largest error of a logit, relative to the largest logit, by the dtype of the stored rows. Rows of other samples have a
# relative error of about 1.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1e-1}


@torch.inference_mode()
def replay(backbone: Backbone, rows: np.ndarray) -> np.ndarray:
    """Compute logits float32 (n, classes) from rows of `penultimate` (n, ...), unpooled or flattened.

    A row that is a mean over positions is used at each position. For a network without a classifier, the rows are
    returned unchanged. Raises BackboneError if the network has no such node, or if the rows have another size.
    """
    name = backbone.spec.network
    tap = backbone.spec.taps.get(PENULTIMATE)
    if tap is None:
        raise BackboneError(
            f"{name}: {unknown('node', PENULTIMATE, backbone.spec.taps)} Only a network that returns a tensor with "
            "a row per image can replay it."
        )
    size = math.prod(tap.shape)
    if math.prod(rows.shape[1:]) != size:
        raise BackboneError(
            f"{name}: expected rows of `{PENULTIMATE}` with the size of {tap.shape}, got {rows.shape[1:]}. Store the "
            "tap with `pool: none` or `pool: flatten`, and without `project`."
        )
    parts = tap.parts or (
        {} if tap.input_of is None else {tap.input_of: InputPart(start=0, stop=size, axes=tap.averaged)}
    )
    if not parts:  # the rows are the network's output
        return rows.astype(np.float32).reshape(len(rows), *tap.shape)
    like = next(backbone.module.parameters())
    cached = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).reshape(len(rows), size)
    images = torch.zeros(BATCH, *backbone.spec.input.shape, device=like.device, dtype=like.dtype)
    logits = []
    for chunk in cached.split(BATCH):  # type: ignore[no-untyped-call]
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_attention_fastpath())
            for module, part in parts.items():
                hook = _input_hook(chunk[:, part.start : part.stop].to(like), part.axes)
                before = backbone.module.get_submodule(module).register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(before.remove)
            logits.append(backbone.module(images[: len(chunk)]).float().cpu().numpy())
    return np.concatenate(logits) if logits else np.empty((0, *backbone.spec.taps["logits"].shape), np.float32)


def _input_hook(rows: Tensor, axes: tuple[int, ...]) -> Any:
    """Return a hook that replaces a module's input by rows (n, width), the same at all positions."""

    def replace(_module: Any, args: Any, kwargs: Any) -> Any:
        shape = first_input(args, kwargs).shape
        narrow = [1 if axis in axes else size for axis, size in enumerate(shape)]
        return with_first_input(args, kwargs, rows.reshape(narrow).expand(shape))

    return replace


def expected_logits(backbone: Backbone, rows: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the logits (n, classes) that the replay of rows must give: those of the network.

    For rows that are means over positions: the replay of `rows` itself, since layers after the classifier may be
    non-linear, such as SqueezeNet's ReLU, so that the network's logits are no function of the mean.
    """
    tap = backbone.spec.taps[PENULTIMATE]
    averaged = tap.averaged or any(part.axes for part in tap.parts.values())
    return replay(backbone, rows) if averaged else logits


def check_replay(
    backbone: Backbone, rows: np.ndarray, logits: np.ndarray, *, dtype: str, where: str, cosine: float | None = None
) -> dict[str, float | int]:
    """Compare the replay of stored rows with logits (n, classes) computed from the same samples.

    Returns the number of rows, the largest error relative to the largest logit, and the share of rows with the same top
    class. Raises BackboneError if an error exceeds the tolerance of the stored dtype. For rows of a network that ran in
    reduced precision, `cosine` is the smallest allowed median cosine to the computed logits, and the only criterion.
    """
    replayed, computed = replay(backbone, rows), logits.astype(np.float32)
    if replayed.shape != computed.shape:
        raise BackboneError(f"{where}: expected logits of the shape {replayed.shape}, got {computed.shape}.")
    if not len(rows):
        return {"rows": 0, "error": 0.0, "agreement": 1.0}
    replayed, computed = replayed.reshape(len(rows), -1), computed.reshape(len(rows), -1)
    errors = np.abs(replayed - computed).max(axis=1) / max(float(np.abs(computed).max()), np.finfo(np.float32).tiny)
    # Negated, since a comparison with NaN is false: rows that are not finite count as off.
    off = np.flatnonzero(~(errors <= TOLERANCE[dtype]))
    if cosine is not None:
        lengths = np.linalg.norm(replayed, axis=1) * np.linalg.norm(computed, axis=1)
        median = float(np.median((replayed * computed).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)))
        if not median >= cosine:
            raise BackboneError(
                f"{where}: expected cached `{PENULTIMATE}` features of reduced precision to give the network's logits "
                f"with a median cosine of at least {cosine:g}, got {median:.4f}. The features are of other samples or "
                "other weights, or the precision is too low for the network: extract them again, in float32."
            )
    elif len(off):
        raise BackboneError(
            f"{where}: expected cached `{PENULTIMATE}` features to give the network's logits within "
            f"{TOLERANCE[dtype]:g} of the largest ({dtype}), got an error of {errors[off[0]]:.3g} in row {off[0]}, "
            f"and {len(off)} of {len(rows)} rows off. The features are of other samples or other weights, or "
            f"do not fit {dtype}: extract them again, in float32 if their values are large."
        )
    agreement = float((replayed.argmax(axis=1) == computed.argmax(axis=1)).mean())
    return {"rows": len(rows), "error": float(errors.max()), "agreement": agreement}
