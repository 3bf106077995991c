"""The identity of a column of features: all settings that determine its values, and nothing else.

Engine, device and batch size are not included: they change values only by rounding, and are stored with each shard.
"""

import math
from typing import Any

from pipeline.backbones import projection
from pipeline.backbones.spec import BackboneSpec, TapSpec, pooled_shape
from pipeline.files import digest
from pipeline.readers.image import ImageReader
from pipeline.store.shard_format import FORMAT


def identity(backbone: BackboneSpec, tap: TapSpec, *, precision: str = "float32") -> dict[str, Any]:
    """Return the identity of a tap's features; features of equal identity are interchangeable."""
    node = backbone.node(tap.node)
    result = {
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
    # Averaging by the node and by the pooling give the same values.
    if definition and not (tap.pool == "mean" and set(definition) == {"averaged"}):
        result["definition"] = definition
    if tap.project is not None:
        width = math.prod(pooled_shape(backbone.taps[node], tap.pool))
        matrix = projection.digest(width, tap.project)
        result["projection"] = {"dimensions": tap.project, "seed": projection.SEED, "matrix": matrix}
    return result


def address(value: dict[str, Any]) -> str:
    """Return the digest of an identity: the name of its column in the cache."""
    return digest(value)


def differences(expected: Any, got: Any, *, path: str = "") -> list[str]:
    """Return the fields in which two identities differ, with both values."""
    if isinstance(expected, dict) and isinstance(got, dict):
        result = []
        for key in sorted({*expected, *got}):
            field = f"{path}.{key}" if path else str(key)
            result += differences(expected.get(key), got.get(key), path=field)
        return result
    return [] if expected == got else [f"{path}: expected {expected!r}, got {got!r}"]
