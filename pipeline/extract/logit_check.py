"""Check an extraction: the network's last layer on stored penultimate rows must give the network's logits."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pipeline.backbones.hooks import LOGITS, PENULTIMATE
from pipeline.backbones.replay import check_replay, expected_logits
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines import create, parity
from pipeline.extract.request import Request
from pipeline.extract.worker import Worker
from pipeline.loading.batches import first_pixels
from pipeline.loading.decoders import Decoders
from pipeline.loading.samples import Samples
from pipeline.runtime import Reporter
from pipeline.store.features import Features

ROWS = 16


def check_computed_rows(request: Request, worker: Worker, out: Path, reporter: Reporter) -> None:
    """Check some rows of each penultimate tap with new rows, and report the agreement.

    Raises BackboneError if a row differs too much.
    """
    specs = request.config.taps
    for tap in (tap for tap in request.missing_taps if is_replayable(specs[tap])):
        agreement = check_logits(
            Features.open(out / request.folder(tap)),
            specs[tap],
            backbone=worker.backbone,
            precision=request.config.precision,
            samples=request.samples,
            runs=(unit.rows for unit in request.plan.units if tap in unit.taps),
            decoders=worker.decoders,
        )
        if agreement:
            reporter.message(
                f"{request.folder(tap)}: {agreement['rows']} stored rows through the network's own last layer give its "
                f"logits to within {agreement['error']:.1g} of the largest, with the same first class in "
                f"{agreement['agreement']:.0%}"
            )


def is_replayable(spec: TapSpec) -> bool:
    """Return whether rows of a tap are the input of the network's last layer."""
    return spec.node == PENULTIMATE and spec.pool in ("none", "flatten") and spec.project is None


def check_logits(
    features: Features,
    spec: TapSpec,
    *,
    backbone: Backbone,
    precision: str,
    samples: Samples,
    runs: Iterable[np.ndarray],
    decoders: Decoders,
) -> Mapping[str, float | int] | None:
    """Run the last layer on the first stored rows in `runs`, and compare the logits with newly computed ones.

    Returns the result of `check_replay`, or None if no row can be compared. Raises BackboneError if a row differs too
    much.
    """
    stored = _first(features, samples, runs)
    if not len(stored) or LOGITS not in backbone.spec.taps:
        return None
    # Read keys together with pixels: containers are read in their own order, and a file may have changed meanwhile.
    keys, pixels = first_pixels([samples.take(stored)], decoders, count=len(stored), batch_size=len(stored))
    if not len(keys):
        return None
    taps = {name: TapSpec(node=name, dtype="float32") for name in (PENULTIMATE, LOGITS)}
    computed = create("torch", backbone, taps, batch_size=len(keys)).run({"pixels": pixels})
    reduced = precision not in ("float32", "tf32")
    return check_replay(
        backbone,
        features.load(keys),
        expected_logits(backbone, computed[PENULTIMATE], computed[LOGITS]),
        dtype=spec.dtype,
        where=str(features.folder),
        cosine=parity.MIN_MEDIAN_COSINE if reduced else None,
    )


def _first(features: Features, samples: Samples, runs: Iterable[np.ndarray]) -> np.ndarray:
    """Return the first `ROWS` of some rows that are stored."""
    result = np.empty(0, np.int64)
    for rows in runs:
        stored = rows[features.has(samples.keys[rows])]
        result = np.concatenate([result, stored[: ROWS - len(result)]])
        if len(result) == ROWS:
            break
    return result
