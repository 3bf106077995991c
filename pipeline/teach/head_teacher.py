"""Teach with a fitted head: convert its scores on stored features to logits. No network runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, HeadError, TrainingError, bullets
from pipeline.extract.commit import commit
from pipeline.extract.config import folder_of
from pipeline.files import sha256_file
from pipeline.heads import saved
from pipeline.heads.saved import Model
from pipeline.loading.samples import Samples
from pipeline.model_record import HeadFit, HeadsRecord, find_fits, read_record
from pipeline.readers.augment import Views, upgrade_view
from pipeline.runtime import Reporter, versions
from pipeline.store import cache, key_arrays
from pipeline.store.features import Features
from pipeline.store.identity import differences
from pipeline.store.shard_format import FORMAT
from pipeline.streaming.rows import Rows, blocks
from pipeline.teach.config import LOGITS, TeachConfig
from pipeline.teach.logits import describe_logits, logits_of
from pipeline.teach.outputs import Paths, StoredTeacher, packing_of
from pipeline.teach.top_k import TopK, TruncationError

VERSION = 1  # of the conversion to logits; part of the cache address
SHARD_ROWS = 65_536


@dataclass(frozen=True)
class Head:
    """A head, the digest of its file, and the features of its input.

    taps: the taps of the original images, then of each view.
    """

    model: Model
    fit: HeadFit
    digest: str
    taps: Sequence[Sequence[Features]]
    views: Views | None

    @property
    def identity(self) -> dict[str, Any]:
        """Return the identity of the head's logits: everything that determines their values."""
        clean = self.taps[0][0].identity
        return {
            "source": "head",
            "head": self.digest,
            "features": {name: tap.index.address for name, tap in zip(self.model.taps, self.taps[0], strict=True)},
            **{name: clean[name] for name in ("weights", "reader", "normalise", "precision")},
            "node": "+".join(tap.identity["node"] for tap in self.taps[0]),
            "scores": describe_logits(self.model),
        }

    def column(self, number: int, packing: TopK | None) -> dict[str, Any]:
        """Return the identity of the stored rows of a view; 0 is the clean images."""
        taps = self.taps[number]
        own = {
            **self.identity,
            "format": FORMAT,
            "version": VERSION,
            "classes": list(self.model.classes),
            "features": {name: tap.index.address for name, tap in zip(self.model.taps, taps, strict=True)},
            "reader": taps[0].identity["reader"],
            "pool": "none",
            "dtype": "float32",
        }
        return own if packing is None else {**own, "top_k": asdict(packing)}

    def logits(self, number: int, keys: np.ndarray) -> np.ndarray:
        """Compute logits float32 (keys, classes) of a view; 0 is the clean images.

        Raises StoreError for keys without features.
        """
        parts = [logits_of(self.model, block) for _, block in blocks(Rows(self.taps[number], keys))]
        return np.concatenate(parts) if parts else np.empty((0, len(self.model.classes)), np.float32)


def open_head(config: TeachConfig, run: Path, features: Path) -> Head:
    """Open the head that the settings select from a run, with its features.

    Raises HeadError if the settings select no head or several, for a head without scores, and for features of another
    identity than those of the fit; TrainingError for views that were not extracted.
    """
    fit = _find_fit(config, run)
    loaded = saved.load(run, fit.file, features=features)
    describe_logits(loaded)
    count = 0
    if config.views is not None:
        count = config.views if isinstance(config.views, int) else config.views.count
    missing = [
        name
        for tap in loaded.taps
        for name in (folder_of(tap, number) for number in (None, *range(count)))
        if not (features / name / "index.json").is_file()
    ]
    if missing:
        raise TrainingError(
            f"{features}: expected the taps {', '.join(loaded.taps)} and {count} views of each, got no "
            f"{', '.join(missing[:5])}. Give the entry of `extract` these taps and `views` with `count: {count}`, or "
            "the teacher fewer views."
        )
    taps = [
        [Features.open(features / folder_of(tap, number)) for tap in loaded.taps] for number in (None, *range(count))
    ]
    loaded.check(*taps[0])
    return Head(loaded, fit, sha256_file(loaded.path), taps, _check_views(taps[1:], clean=taps[0]))


def store_logits(head: Head, number: int, column: cache.CacheEntry, keys: np.ndarray, *, packing: TopK | None) -> None:
    """Compute the logits of some samples of a view and store them in a cache entry."""
    width = len(head.model.classes) if packing is None else packing.width
    for start in range(0, len(keys), SHARD_ROWS):
        own, deviation = keys[start : start + SHARD_ROWS], TruncationError()
        with column.writer((width,)) as writer:
            rows = head.logits(number, own)
            stored = rows if packing is None else packing.pack(rows)
            if packing is not None:
                deviation.add(rows, stored)
            writer.append(own, stored)
            packages = versions("scikit-learn", "numpy")
            writer.finish(
                provenance={"engine": "head", **packages} | ({} if packing is None else {"top_k": deviation.note})
            )


def rejected_samples(head: Head, number: int, keys: np.ndarray) -> dict[str, str]:
    """Return the samples whose features were rejected: key to reason.

    Raises DataError for other samples without features: these were never extracted.
    """
    reasons: dict[str, str] = {}
    for tap in head.taps[number]:
        known = {item.key: item.reason for item in tap.index.rejected}
        names = key_arrays.to_hex(keys[~tap.has(keys)])
        unknown = [name for name in names if name not in known]
        if unknown:
            raise DataError(
                f"{tap.folder}: expected features of all {len(keys):,} samples of the teacher's data sets, got none of "
                f"{len(unknown):,}, the first is {unknown[0]}. Add their data set to the `datasets` of the extraction."
            )
        reasons |= {name: known[name] for name in names}
    return reasons


def _find_fit(config: TeachConfig, run: Path) -> HeadFit:
    """Return the fit that the settings select from a run; raises HeadError if they select none or several."""
    record = read_record(run)
    assert isinstance(record, HeadsRecord), "the run left no network"
    asked = {name: getattr(config, name) for name in ("input", "head", "labels", "draw")}
    fits = find_fits(record.fits, **asked)
    if len(fits) != 1:
        choices = [str(fit) for fit in (fits or record.fits)]
        wanted = ", ".join(f"{name}: {value}" for name, value in asked.items() if value is not None)
        raise HeadError(
            f"{run}: expected one head as a teacher ({wanted or 'the only one'}), got {len(fits)}. Say which by "
            f"`input`, `head`, `labels` and `draw`: {'; '.join(choices[:8])}{'; …' if len(choices) > 8 else ''}."
        )
    return fits[0]


def _check_views(views: Sequence[Sequence[Features]], *, clean: Sequence[Features]) -> Views | None:
    """Return the settings of the taps' views; raises TrainingError for views of other features than the clean ones.

    All views of all taps must come from one entry of `extract`.
    """
    if not views:
        return None
    first = upgrade_view(views[0][0].identity["reader"]["view"])
    problems = []
    for number, taps in enumerate(views):
        for tap, own in zip(taps, clean, strict=True):
            identity = tap.identity
            expected = {**own.identity, "reader": {**own.identity["reader"], "view": {**first, "number": number}}}
            problems += [f"{tap.folder.name}: {line}" for line in differences(expected, identity)]
    if problems:
        where = views[0][0].folder.parent
        title = f"{where}: expected views that one entry of `extract` made, got others. Extract again"
        raise TrainingError(bullets(title, problems))
    return Views(count=len(views), augment=first["augment"], seed=first["seed"])


def teach_head(config: TeachConfig, paths: Paths, samples: Samples, reporter: Reporter) -> StoredTeacher:
    """Store the logits of a fitted head; rows in the cache are not computed again."""
    assert paths.run is not None, "a head is of a run"
    if config.hints:
        raise TrainingError(
            f"{config.run}: expected `hints` with a network, which has nodes, got a run of fit. Leave them out."
        )
    own = open_head(config, paths.run, paths.features)
    classes = tuple(own.model.classes)
    packing = packing_of(config, len(classes))
    width = len(classes) if packing is None else packing.width
    refused: dict[str, str] = {}
    computed = 0
    for number in range(len(own.taps)):
        column = cache.column(paths.cache, own.column(number, packing))
        cached = cache.shards_for_keys(column, samples.keys)[2]
        rejected = rejected_samples(own, number, samples.keys)
        has_features = np.logical_and.reduce([tap.has(samples.keys) for tap in own.taps[number]])
        missing = samples.keys[has_features & ~cached]
        store_logits(own, number, column, missing, packing=packing)
        reporter.progress((number + 1) * len(samples), len(own.taps) * len(samples))
        computed += len(missing)
        folder = paths.out / folder_of(LOGITS, None if number == 0 else number - 1)
        refused |= commit(folder, column, samples.keys, (width,), rejected)
    fit = {name: getattr(own.fit, name) for name in ("head", "input", "labels", "draw", "file")}
    identity = {**own.identity, "top_k": None if packing is None else asdict(packing)}
    return StoredTeacher(
        own.model.kind, classes, identity, own.views, (), refused, computed, {"run": config.run, **fit}
    )
