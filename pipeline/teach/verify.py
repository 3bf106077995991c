"""Recompute the logits of a few samples and compare them with the stored ones, before a student is trained on them.

First the identity of the teacher is compared by digest and name, then the values of logits, hints and all views. For a
head, the stored features are compared with the network, and the stored logits with those of the head on the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.replay import TOLERANCE
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.engines import create
from pipeline.errors import TrainingError, bullets
from pipeline.extract.config import folder_of
from pipeline.files import sha256_file
from pipeline.heads import saved
from pipeline.loading.image_cache import Pixels
from pipeline.store import key_arrays
from pipeline.store.features import Features
from pipeline.store.identity import differences
from pipeline.streaming.rows import Rows
from pipeline.teach import top_k
from pipeline.teach.config import LOGITS, hint_folder
from pipeline.teach.logits import logits_of
from pipeline.teach.teacher import Teacher

ROWS = 32
REDUCED = 0.1  # tolerance for networks in 16 bits, whose logits differ between kernels
SAME = 1e-4  # tolerance for a head on the same stored features


@dataclass(frozen=True)
class Sources:
    """The folders that a teacher was computed from.

    network:  the teacher network, or the backbone of a head's features.
    run:      for a head, the folder of its run.
    features: for a head, the folder of its taps.
    """

    network: Path
    run: Path | None = None
    features: Path | None = None

    @property
    def of_head(self) -> tuple[Path, Path]:
        """Return `run` and `features`."""
        assert self.run is not None, "a head is of a run"
        assert self.features is not None, "a head was fitted on features"
        return self.run, self.features


@dataclass(frozen=True)
class Verified:
    """The number of recomputed samples and views, and the largest difference relative to the largest value."""

    rows: int
    views: int
    error: float


@dataclass(frozen=True)
class _Comparison:
    """Stored and recomputed rows of the same samples, and the largest relative difference that is allowed."""

    what: Path
    stored: np.ndarray
    live: np.ndarray
    most: float


def recompute(teacher: Teacher, sources: Sources, pixels: Pixels, *, count: int = ROWS, seed: int = 0) -> Verified:
    """Recompute the logits of at most `count` samples of `pixels`, and compare them with the stored ones.

    pixels: samples with the teacher's preprocessing, decoded for the transforms of its views.

    Raises TrainingError, with the fields, if the teacher's identity differs from the files on disk, and, with the
    difference and the first key, if values differ; DataError for a sample without logits.
    """
    network = serialization.read(sources.network)
    _check_identity(teacher, sources, network.spec)
    random = np.random.default_rng(seed)
    sampled = np.sort(random.choice(len(pixels.keys), min(count, len(pixels.keys)), replace=False))
    keys = pixels.keys[sampled]
    views = [None, *range(0 if teacher.views is None else teacher.views.count)]
    worst = 0.0
    if len(keys):
        taps = _taps(teacher, sources)
        precision = teacher.identity["precision"]
        lowered = precision in ("bfloat16", "float16")
        engine = create("torch", network, taps, batch_size=len(keys), precision=precision if lowered else "float32")
        for view in views:
            images = pixels.eval_images(sampled)
            if view is not None:
                height, width, _ = pixels.shape
                images = teacher.view(view)(pixels.images(sampled), keys, size=(height, width))
            live = engine.run({"pixels": images})
            compare_rows = _compare_head if teacher.identity["source"] == "head" else _compare_network
            for compared in compare_rows(teacher, sources, taps, live, keys, view):
                worst = max(worst, _compare(compared, keys))
    return Verified(len(keys), len(views) - 1, worst)


def _check_identity(teacher: Teacher, sources: Sources, spec: BackboneSpec) -> None:
    """Raise TrainingError, with the fields, if the teacher's identity differs from the files on disk."""
    made_from = teacher.identity
    now: dict[str, Any] = {
        "weights": spec.weights_digest,
        "normalise": {"mean": list(spec.input.mean), "std": list(spec.input.std)},
    }
    problems = teacher.read_as(spec.input)
    if made_from["source"] == "head":
        run, features = sources.of_head
        now["head"] = sha256_file(run / teacher.record["source"]["file"])
        now["features"] = {tap: Features.open(features / tap).index.address for tap in made_from["features"]}
    problems += differences({name: made_from[name] for name in now}, now)
    if problems:
        title = (
            f"{teacher.folder}: expected scores of the teacher as it is now, got those of another. Run `icecore repro "
            f"teach@{teacher.name}`"
        )
        raise TrainingError(bullets(title, problems))


def _taps(teacher: Teacher, sources: Sources) -> dict[str, TapSpec]:
    """Return the taps to recompute."""
    if teacher.identity["source"] == "head":
        _, features = sources.of_head
        return {tap: spec_of(Features.open(features / tap).identity) for tap in teacher.identity["features"]}
    hints = {hint_folder(node): spec_of(stored[0].identity) for node, stored in teacher.nodes.items()}
    return {LOGITS: TapSpec(node=LOGITS, dtype="float32"), **hints}


def spec_of(identity: Mapping[str, Any]) -> TapSpec:
    """Return the settings of a tap from the identity of its stored rows."""
    projection = identity.get("projection")
    more = {} if projection is None else {"project": projection["dimensions"]}
    return TapSpec(node=identity["node"], pool=identity["pool"], dtype=identity["dtype"], **more)


def _compare_network(
    teacher: Teacher,
    _sources: Sources,
    taps: Mapping[str, TapSpec],
    live: Mapping[str, np.ndarray],
    keys: np.ndarray,
    view: int | None,
) -> list[_Comparison]:
    compared = []
    logits, stored = live[LOGITS], teacher.logits(keys, view)
    features = teacher.scores[0 if view is None else 1 + view]
    if teacher.top_k is not None:  # compare the stored columns, and one logit for the rest
        packed = features.load(keys)
        columns = top_k.columns(packed)
        stored = np.concatenate([packed[:, : columns.shape[1]], packed[:, -1:]], axis=1)
        others = np.ones(logits.shape, bool)
        np.put_along_axis(others, columns, False, axis=1)
        rest = teacher.top_k.level(logits[others].reshape(len(keys), -1))[:, None]
        logits = np.concatenate([np.take_along_axis(logits, columns, axis=1), rest], axis=1)
    lowered = teacher.identity["precision"] != "float32"
    compared.append(_Comparison(features.folder, stored, logits, REDUCED if lowered else TOLERANCE["float32"]))
    for node, several in teacher.nodes.items():
        most = max(TOLERANCE[taps[hint_folder(node)].dtype], REDUCED if lowered else 0)
        folder = several[0 if view is None else 1 + view].folder
        compared.append(_Comparison(folder, teacher.hints(node, keys, view), live[hint_folder(node)], most))
    return compared


def _compare_head(
    teacher: Teacher,
    sources: Sources,
    taps: Mapping[str, TapSpec],
    live: Mapping[str, np.ndarray],
    keys: np.ndarray,
    view: int | None,
) -> list[_Comparison]:
    run, features = sources.of_head
    stored = [Features.open(features / folder_of(tap, view)) for tap in taps]
    lowered = teacher.identity["precision"] != "float32"
    compared = [
        _Comparison(
            features.folder,
            features.load(keys).astype(np.float32),
            live[tap],
            max(TOLERANCE[taps[tap].dtype], REDUCED if lowered else 0),
        )
        for tap, features in zip(taps, stored, strict=True)
    ]
    loaded = saved.load(run, teacher.record["source"]["file"], features=features)
    logits = logits_of(loaded, Rows(stored, keys)[:])
    if teacher.top_k is not None:
        logits = top_k.unpack(teacher.top_k.pack(logits), logits.shape[1])
    folder = teacher.scores[0 if view is None else 1 + view].folder
    return [*compared, _Comparison(folder, teacher.logits(keys, view), logits, SAME)]


def _compare(compared: _Comparison, keys: np.ndarray) -> float:
    """Return the largest difference over the largest recomputed value; raises TrainingError if it is too large."""
    stored, live = (value.reshape(len(keys), -1).astype(np.float64) for value in (compared.stored, compared.live))
    errors = np.abs(stored - live).max(axis=1) / max(float(np.abs(live).max()), np.finfo(np.float32).tiny)
    off = np.flatnonzero(~(errors <= compared.most))  # a comparison with NaN is false
    if len(off):
        raise TrainingError(
            f"{compared.what}: expected stored rows to be what is computed now, within {compared.most:g} of the "
            f"largest value, got {errors[off].max():.3g}, and {len(off)} of {len(keys)} rows off, the first of key "
            f"{key_arrays.to_hex(keys[off[:1]])[0]}. These are the rows of other samples, or of other images: run "
            "`icecore cache verify`, and teach again."
        )
    return float(errors.max())
