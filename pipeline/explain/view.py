"""An explained image as the values that evidence.html shows: of `icecore explain` and of the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.explain.pictures import overlay, picture

if TYPE_CHECKING:
    from pipeline.explain.evidence import Evidence, EvidenceSet
    from pipeline.explain.near_samples import NearSample


def view_of(pixels: np.ndarray, explained: "EvidenceSet", near: "Sequence[NearSample]") -> dict[str, Any]:
    """Return the picture of an image, its evidence over it, the part of each tap, and its nearest training samples.

    pixels: uint8 (height, width, channels) as the network takes them. All evidence of an image has one scale.
    """
    maps = [one.map for one in explained.evidence if one.map is not None]
    largest = max((float(np.abs(map_).max()) for map_ in maps), default=0.0)
    return {
        "picture": picture(pixels),
        "method": explained.method,
        "overlays": [
            {"name": one.name, "score": one.score, "picture": overlay(pixels, one.map, largest)}
            for one in explained.evidence
            if one.map is not None
        ],
        "parts": [_parts(one) for one in explained.evidence if len(one.taps) > 1],
        "near": list(near),
    }


def _parts(evidence: "Evidence") -> dict[str, Any]:
    """Return the part of each tap in a score."""
    return {
        "name": evidence.name,
        "taps": {tap: part.total for tap, part in evidence.taps.items()},
        "intercept": evidence.intercept,
        "score": evidence.score,
    }
