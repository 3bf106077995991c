"""Embed many images through the feature cache, into a folder with a table of files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline import embed
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.files import digest
from pipeline.inference.reporting import LOGGER, REPORTER
from pipeline.sources import filesystem
from pipeline.store.features import Features
from pipeline.store.location import default_root

EMBEDDINGS = "embeddings"
"""The folder in the feature cache for features without an `out` folder."""


def embed_through_cache(
    backbone: Path,
    spec: BackboneSpec,
    data: str,
    specs: Mapping[str, TapSpec],
    *,
    out: Path | None,
    image: str | None,
    dtype: str,
    engine: str,
    max_rejected: float,
    max_pixels: int,
) -> Mapping[str, Features]:
    """Return the features of each tap of all images of a folder, list, archive, Parquet file or URL.

    backbone, spec: the folder of a frozen backbone, and its spec.
    out: the folder to write; None for a folder in the feature cache.

    The other parameters are those of `Backbone.embed`. Raises the errors of `pipeline.embed.embed`.
    """
    root = default_root()
    texts = [tap.node if tap.pool == "none" else f"{tap.node}:{tap.pool}" for tap in specs.values()]
    job = embed.job(
        backbone,
        texts,
        data,
        image=image,
        dtype=dtype,
        engine=engine,
        max_rejected=max_rejected,
        max_pixels=max_pixels,
    )
    target = out if out is not None else root / EMBEDDINGS / _address(spec, data, texts, dtype, image)
    summary = embed.embed(job, target, cache_root=root, reporter=REPORTER)
    _report(data, summary, target)
    names = [embed.parse_tap(text, dtype)[0] for text in texts]
    return {tap: Features.open(target / name) for tap, name in zip(specs, names, strict=True)}


def _address(spec: BackboneSpec, data: str, texts: Iterable[str], dtype: str, image: str | None) -> str:
    """Return the name of the folder in the feature cache for the features of some images."""
    local = filesystem.local(data)
    where = data if local is None else str(local.resolve())
    backbone = spec.model_dump(mode="json", include={"architecture", "weights_digest", "input"})
    made_from = {"data": where, "image": image, "backbone": backbone, "taps": sorted(texts), "dtype": dtype}
    return digest(made_from)[:32]


def _report(data: str, done: embed.Embedded, out: Path) -> None:
    """Log the files without a row; Python prints warnings unless the program configures logging."""
    for note in done.prepared.notes:
        LOGGER.info("%s: %s", data, note)
    for kind, count in done.prepared.excluded.items():
        loud = kind not in ("hidden", "other")
        LOGGER.log(30 if loud else 20, "%s: %d %s: see %s", data, count, kind, out / "excluded.csv")
    for reason, count in done.extracted.reasons.items():
        LOGGER.warning("%s: %d without a row: %s", data, count, reason)
