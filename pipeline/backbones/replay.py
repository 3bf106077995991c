"""Head replay: cached penultimate features through the network's own last layers give its logits, row by row.

The whole network runs on empty images, and what its last layer is about to get is replaced by the cached rows: so
everything behind that layer's input runs as the network has it, whatever the architecture.
"""

import contextlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.hooks import PENULTIMATE, first_input, one_path, with_first_input
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import InputPart
from pipeline.errors import BackboneError, unknown

BATCH = 16

# How far a logit may be off, in parts of the largest of all, where rows were stored in a dtype. Rows of other samples
# are off by about one such part.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1e-1}


@torch.inference_mode()
def replay(backbone: Backbone, rows: np.ndarray) -> np.ndarray:
    """Compute logits float32 (n, classes) of rows of `penultimate`, unpooled or flattened (n, ...).

    A row that is a mean over positions stands at each of them. A network without a classifier gives its rows as they
    are. Raises BackboneError if the network has no such node, or
    if the rows have another size.
    """
    name = backbone.spec.network
    tap = backbone.spec.taps.get(PENULTIMATE)
    if tap is None:
        raise BackboneError(
            f"{name}: {unknown('node', PENULTIMATE, backbone.spec.taps)} Only a network that gives one tensor with a "
            "row per image can replay it."
        )
    size = math.prod(tap.shape)
    if math.prod(rows.shape[1:]) != size:
        raise BackboneError(
            f"{name}: expected rows of `{PENULTIMATE}` as large as {tap.shape}, got {rows.shape[1:]}. Store the tap "
            "with `pool: none` or `pool: flatten`, and without `project`."
        )
    parts = tap.parts or (
        {} if tap.input_of is None else {tap.input_of: InputPart(start=0, stop=size, axes=tap.averaged)}
    )
    if not parts:  # the rows are the network's output
        return rows.astype(np.float32).reshape(len(rows), *tap.shape)
    like = next(backbone.module.parameters())
    cached = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).reshape(len(rows), size)
    images = torch.zeros(BATCH, *backbone.spec.input.shape, device=like.device, dtype=like.dtype)
    found = []
    for some in cached.split(BATCH):  # type: ignore[no-untyped-call]
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_path())
            for module, part in parts.items():
                hook = _putting(some[:, part.start : part.stop].to(like), part.axes)
                before = backbone.module.get_submodule(module).register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(before.remove)
            found.append(backbone.module(images[: len(some)]).float().cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, *backbone.spec.taps["logits"].shape), np.float32)


def _putting(rows: Tensor, axes: tuple[int, ...]) -> Any:
    """Return a hook that puts rows (n, width) in the place of what a module gets, the same at all positions."""

    def put(_module: Any, args: Any, kwargs: Any) -> Any:
        shape = first_input(args, kwargs).shape
        narrow = [1 if axis in axes else size for axis, size in enumerate(shape)]
        return with_first_input(args, kwargs, rows.reshape(narrow).expand(shape))

    return put


def expected_logits(backbone: Backbone, rows: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return what the replay of rows has to give: the network's logits (n, classes).

    Of rows that are means over positions, the replay of `rows`, computed now: what stands behind the classifier may be
    no linear function of such a mean, as SqueezeNet's ReLU.
    """
    tap = backbone.spec.taps[PENULTIMATE]
    averaged = tap.averaged or any(part.axes for part in tap.parts.values())
    return replay(backbone, rows) if averaged else logits


def check_replay(
    backbone: Backbone, rows: np.ndarray, logits: np.ndarray, *, dtype: str, where: str, cosine: float | None = None
) -> dict[str, float | int]:
    """Compare the replay of stored rows with live logits (n, classes) of the same samples.

    Returns the number of rows, the largest error in parts of the largest logit, and the share of rows with the same
    first class. Raises BackboneError if a row is further off than the stored dtype explains. Rows of a network that ran
    in reduced precision stray with it: with `cosine`, that is the least median cosine to the live logits, and all that
    is asked.
    """
    replayed, computed = replay(backbone, rows), logits.astype(np.float32)
    if replayed.shape != computed.shape:
        raise BackboneError(f"{where}: expected logits of the shape {replayed.shape}, got {computed.shape}.")
    if not len(rows):
        return {"rows": 0, "error": 0.0, "agreement": 1.0}
    replayed, computed = replayed.reshape(len(rows), -1), computed.reshape(len(rows), -1)
    errors = np.abs(replayed - computed).max(axis=1) / max(float(np.abs(computed).max()), np.finfo(np.float32).tiny)
    # A comparison with NaN is false, so a row that is not finite is off.
    off = np.flatnonzero(~(errors <= TOLERANCE[dtype]))
    if cosine is not None:
        lengths = np.linalg.norm(replayed, axis=1) * np.linalg.norm(computed, axis=1)
        median = float(np.median((replayed * computed).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)))
        if not median >= cosine:
            raise BackboneError(
                f"{where}: expected cached `{PENULTIMATE}` features of reduced precision to give the network's logits "
                f"with a median cosine of {cosine:g} at least, got {median:.4f}. The features are of other samples or "
                "other weights, or the network cannot bear this precision: extract them again, in float32."
            )
    elif len(off):
        raise BackboneError(
            f"{where}: expected cached `{PENULTIMATE}` features to give the network's logits within "
            f"{TOLERANCE[dtype]:g} of the largest ({dtype}), got {errors[off[0]]:.3g} in row {off[0]}, and {len(off)} "
            f"of {len(rows)} rows off. The features are of other samples or other weights, or do not fit {dtype}: "
            "extract them again, in float32 where they are large."
        )
    agreement = float((replayed.argmax(axis=1) == computed.argmax(axis=1)).mean())
    return {"rows": len(rows), "error": float(errors.max()), "agreement": agreement}
