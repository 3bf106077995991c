"""Commit the folders of an extraction: link the shards with the samples, and write the index."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.engines import parity_card
from pipeline.errors import DataError, bullets
from pipeline.extract.request import Request
from pipeline.loading.samples import Reject
from pipeline.store import cache, index, key_arrays
from pipeline.store.links import link_or_copy
from pipeline.store.shard_format import path_of


class Refusal(NamedTuple):
    """Why a sample has no features. If this run read the file, `message` names it too."""

    message: str
    reason: str


def commit_taps(request: Request, out: Path, rejects: Sequence[Reject]) -> dict[str, Refusal]:
    """Commit `out/<tap>/` for every tap; return the samples without features, by key.

    `rejects`: the samples that this run read and could not use. Others were refused by an earlier run.
    """
    of_this_run = {reject.key: Refusal(str(reject), reject.reason) for reject in rejects}
    refused: dict[str, Refusal] = {}
    for tap, column in request.columns.items():
        known = of_this_run | {key: Refusal(reason, reason) for key, reason in column.rejected().items()}
        messages = {key: refusal.message for key, refusal in known.items()}
        without = commit(out / request.folder(tap), column, request.samples.keys, request.shapes[tap], messages)
        refused |= {key: known[key] for key in without}
    return refused


def commit(
    folder: Path, column: cache.CacheEntry, keys: np.ndarray, shape: tuple[int, ...], rejected: Mapping[str, str]
) -> dict[str, str]:
    """Link the shards that hold the samples into `folder` and write its index; return the samples without features."""
    shards, shard_keys, has_row = cache.shards_for_keys(column, keys)
    for record in shards:
        column.verify(record)
        link_or_copy(column.path_of(record), path_of(folder, record.name))
    refused = {key: rejected[key] for key in key_arrays.to_hex(keys[~has_row]) if key in rejected}
    index.commit(
        folder,
        identity=column.identity,
        layout=column.layout(shape),
        shards=shards,
        keys=shard_keys,
        wanted=keys,
        rejected=refused,
    )
    parity_card.link(column, folder)
    column.touch()
    return refused


def refuse_too_many(share: float, samples: int, refused: Mapping[str, str]) -> None:
    """Raise DataError with the first reasons if more than a share of the samples has no features."""
    if samples and len(refused) / samples > share:  # a product would round above the share
        title = (
            f"{len(refused):,} of {samples:,} samples gave no features, more than the share of "
            f"{share:g} that `max_rejected` allows. What was computed is kept. The first of them"
        )
        raise DataError(bullets(title, [f"{key}: {reason}" for key, reason in refused.items()][:5]))
