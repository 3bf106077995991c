"""Head replay: cached penultimate features through the network's own last layers give its logits, row by row.

The whole network runs on empty images, and what its last layer is about to get is replaced by the cached rows: so
everything behind that layer's input runs as the network has it, whatever the architecture.
"""

from typing import Any

import numpy as np
import torch

from pipeline.backbones.artefact import Backbone
from pipeline.backbones.taps import PENULTIMATE, one_path
from pipeline.errors import BackboneError, unknown

BATCH = 16

# How far a logit may be off, in parts of the largest of all, where rows were stored in a dtype. Rows of other samples
# are off by about one such part.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1e-1}


@torch.inference_mode()
def replay(backbone: Backbone, rows: np.ndarray) -> np.ndarray:
    """Rows of `penultimate`, unpooled or flattened (n, ...), to logits float32 (n, classes).

    A network without a last layer gives its rows as they are. Raises BackboneError if the network has no such node, or
    if the rows have another size.
    """
    name = backbone.spec.architecture.get("name") or backbone.spec.architecture.get("family")
    tap = backbone.spec.taps.get(PENULTIMATE)
    if tap is None:
        raise BackboneError(
            f"{name}: {unknown('node', PENULTIMATE, backbone.spec.taps)} Only a network that gives one tensor with a "
            "row per image can replay it."
        )
    if int(np.prod(rows.shape[1:])) != int(np.prod(tap.shape)):
        raise BackboneError(
            f"{name}: expected rows of `{PENULTIMATE}` as large as {tap.shape}, got {rows.shape[1:]}. Store the tap "
            "with `pool: none` or `pool: flatten`, and without `project`."
        )
    if tap.input_of is None:  # the rows are the network's output
        return rows.astype(np.float32).reshape(len(rows), *tap.shape)
    like = next(backbone.module.parameters())
    cached = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).reshape(len(rows), *tap.shape)
    images = torch.zeros(BATCH, *backbone.spec.input.shape, device=like.device, dtype=like.dtype)
    found = []
    for part in cached.split(BATCH):  # type: ignore[no-untyped-call]
        put: Any = lambda _module, args, part=part: (part.to(like), *args[1:])  # noqa: E731
        with backbone.module.get_submodule(tap.input_of).register_forward_pre_hook(put), one_path():
            found.append(backbone.module(images[: len(part)]).float().cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, *backbone.spec.taps["logits"].shape), np.float32)


def check_replay(
    backbone: Backbone, rows: np.ndarray, logits: np.ndarray, *, dtype: str, where: str, cosine: float | None = None
) -> dict[str, float | int]:
    """Compare the replay of stored rows with live logits (n, classes) of the same samples.

    Returns the number of rows, the largest error in parts of the largest logit, and the share of rows with the same
    first class. Raises BackboneError if a row is further off than the stored dtype explains. Rows of a network that ran
    in reduced precision stray with it: with `cosine`, that is the least median cosine to the live logits, and all that
    is asked.
    """
    replayed, live = replay(backbone, rows), logits.astype(np.float32)
    if replayed.shape != live.shape:
        raise BackboneError(f"{where}: expected logits of the shape {replayed.shape}, got {live.shape}.")
    if not len(rows):
        return {"rows": 0, "error": 0.0, "agreement": 1.0}
    replayed, live = replayed.reshape(len(rows), -1), live.reshape(len(rows), -1)
    errors = np.abs(replayed - live).max(axis=1) / max(float(np.abs(live).max()), np.finfo(np.float32).tiny)
    # A comparison with NaN is false, so a row that is not finite is off.
    off = np.flatnonzero(~(errors <= TOLERANCE[dtype]))
    if cosine is not None:
        lengths = np.linalg.norm(replayed, axis=1) * np.linalg.norm(live, axis=1)
        median = float(np.median((replayed * live).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)))
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
    agreement = float((replayed.argmax(axis=1) == live.argmax(axis=1)).mean())
    return {"rows": len(rows), "error": float(errors.max()), "agreement": agreement}
