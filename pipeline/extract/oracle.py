"""The oracle after an extraction: stored penultimate rows, through the network's own end, must give its logits."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.backbones.artefact import Backbone
from pipeline.backbones.replay import check_replay
from pipeline.backbones.spec import TapSpec
from pipeline.backbones.taps import LOGITS, PENULTIMATE
from pipeline.engines import create
from pipeline.extract.work import first_samples
from pipeline.readers import Reader
from pipeline.store import keys as key_arrays
from pipeline.store.features import Features

ROWS = 16


def replayable(spec: TapSpec) -> bool:
    """Whether rows of a tap are what the network's last layer gets."""
    return spec.node == PENULTIMATE and spec.pool in ("none", "flatten") and spec.project is None


def check(
    features: Features,
    spec: TapSpec,
    *,
    backbone: Backbone,
    precision: str,
    keys: np.ndarray,
    paths: Sequence[str],
    reader: Reader,
) -> Mapping[str, float | int] | None:
    """Replay the first stored rows among `keys` (S16) and compare them with logits that are computed now.

    Returns what `check_replay` does, or None where no row can be compared. Raises BackboneError if a row is off.
    """
    stored = np.flatnonzero(key_arrays.find(features.key_array, keys) >= 0)[:ROWS]
    if not len(stored) or LOGITS not in backbone.spec.taps:
        return None
    chosen = [paths[place] for place in stored]
    pixels = first_samples(keys[stored], chosen, reader=reader, count=len(stored), batch_size=len(stored))
    if len(pixels) < len(stored):  # a file changed meanwhile
        return None
    plain = create("torch", backbone, {LOGITS: TapSpec(node=LOGITS)}, batch_size=len(stored))
    live = plain.run({"pixels": pixels})[LOGITS]
    coarse = precision not in ("float32", "tf32") and spec.dtype in ("float32", "float16")
    dtype = "bfloat16" if coarse else spec.dtype
    return check_replay(backbone, features.load(keys[stored]), live, dtype=dtype, where=str(features.folder))
