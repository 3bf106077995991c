"""Prepare an explained image for evidence.html, which `icecore explain` and the report share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.explain.heat_map import overlay, picture

if TYPE_CHECKING:
    from pipeline.explain.evidence import Evidence, EvidenceSet
    from pipeline.explain.near_samples import NearSample


def view_of(pixels: np.ndarray, explained: "EvidenceSet", near: "Sequence[NearSample]") -> dict[str, Any]:
    """Return the picture of an image, the overlays of its evidence, the share of each tap, and its nearest samples.

    pixels: uint8 (height, width, channels), as the input of the network. All overlays of an image have the same scale.
    """
    maps = [evidence.map for evidence in explained.evidence if evidence.map is not None]
    largest = max((float(np.abs(map_).max()) for map_ in maps), default=0.0)
    return {
        "picture": picture(pixels),
        "method": explained.method,
        "overlays": [
            {"name": evidence.name, "score": evidence.score, "picture": overlay(pixels, evidence.map, largest)}
            for evidence in explained.evidence
            if evidence.map is not None
        ],
        "parts": [_parts(evidence) for evidence in explained.evidence if len(evidence.taps) > 1],
        "near": list(near),
    }


def _parts(evidence: "Evidence") -> dict[str, Any]:
    """Return the share of each tap in a score."""
    return {
        "name": evidence.name,
        "taps": {tap: part.total for tap, part in evidence.taps.items()},
        "intercept": evidence.intercept,
        "score": evidence.score,
    }
