"""The identity of a column of features: everything that shaped its values, and nothing else.

Engine, device and batch size are not in it: they change values within rounding only, and are kept beside each shard.
"""

import math
from typing import Any

from pipeline.backbones import projection
from pipeline.backbones.spec import BackboneSpec, TapSpec, pooled_shape
from pipeline.files import digest
from pipeline.readers.image import ImageReader
from pipeline.store.shard_format import FORMAT


def identity(backbone: BackboneSpec, tap: TapSpec, *, precision: str = "float32") -> dict[str, Any]:
    """Return what shaped the features of one tap; equal identities mean interchangeable features."""
    node = backbone.node(tap.node)
    whole = {
        "format": FORMAT,
        "reader": dict(ImageReader(backbone.input.image).identity),
        "normalise": {"mean": list(backbone.input.mean), "std": list(backbone.input.std)},
        "architecture": backbone.architecture,
        "weights": backbone.weights_digest,
        "node": node,
        "pool": tap.pool,
        "precision": precision,
        "dtype": tap.dtype,
    }
    definition = backbone.taps[node].definition if node in backbone.taps else None
    # The mean of a map has the same values whoever takes it: the node or the pooling.
    if definition and not (tap.pool == "mean" and set(definition) == {"averaged"}):
        whole["definition"] = definition
    if tap.project is not None:
        width = math.prod(pooled_shape(backbone.taps[node], tap.pool))
        matrix = projection.digest(width, tap.project)
        whole["projection"] = {"dimensions": tap.project, "seed": projection.SEED, "matrix": matrix}
    return whole


def address(value: dict[str, Any]) -> str:
    """Return the digest of an identity: the name of its column in the cache."""
    return digest(value)


def differences(expected: Any, got: Any, *, path: str = "") -> list[str]:
    """Return the fields in which two identities differ, each with both values."""
    if isinstance(expected, dict) and isinstance(got, dict):
        found = []
        for key in sorted({*expected, *got}):
            below = f"{path}.{key}" if path else str(key)
            found += differences(expected.get(key), got.get(key), path=below)
        return found
    return [] if expected == got else [f"{path}: expected {expected!r}, got {got!r}"]
