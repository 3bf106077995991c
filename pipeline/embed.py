"""Embed images with a backbone by its name, without params.yaml and DVC.

`out` gets a features folder per tap, `files.parquet` (key, path, size, location and labels of each row), `excluded.csv`
(the files without a row, with the reason) and `.icecore/` with the frozen backbone and the manifest.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.backbones.spec import SPEC_FILE, read_spec
from pipeline.errors import ConfigError, DataError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_check import describe_wide_taps, forecast_disk
from pipeline.extract.disk_forecast import Forecast
from pipeline.extract.request import Request, checked, read
from pipeline.extract.run import extract
from pipeline.extract.summary import Extracted
from pipeline.files import AnyPath, as_path, atomic
from pipeline.freeze.config import Timm, Torchvision
from pipeline.freeze.library_model import LibraryModel, Weights, freeze_once, raw_settings
from pipeline.manifest import FIXED, IN_CONTAINERS, ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import PrepareSummary, prepare
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.runtime import SILENT, Reporter
from pipeline.settings.check import Section, check, refuse
from pipeline.sources import filesystem
from pipeline.store.links import link_or_copy

DATASET = "files"
"""The name of the data set of the images."""

WORK = ".icecore"
"""The folder below `out` for the frozen backbone and the manifest."""

KNOWN = "known.sqlite"
"""The file in `WORK` with the keys of the images that were opened before."""


@dataclass(frozen=True)
class Job:
    """The checked settings of an embedding: a model to freeze or the folder of a backbone, the images, and the taps.

    >>> job("data/backbones/tiny", ["penultimate", "block1:mean"], "photos/").extract.taps["block1-mean"].pool
    'mean'
    """

    backbone: Torchvision | Timm | Path
    prepare: PrepareConfig
    extract: ExtractConfig


@dataclass(frozen=True)
class Embedded:
    """The result of a job: the summaries of `prepare` and `extract`, and the folder of the backbone.

    >>> done = embed(job("data/backbones/tiny", ["penultimate"], "photos/"), "vectors/", cache_root="cache/")
    >>> done.backbone.as_posix(), done.prepared.rows
    ('data/backbones/tiny', 2)
    """

    prepared: PrepareSummary
    extracted: Extracted
    backbone: Path


def job(
    backbone: AnyPath,
    taps: Iterable[str],
    data: AnyPath,
    *,
    image: str | None = None,
    weights: Weights | None = None,
    dtype: str = "float16",
    max_rejected: float = 0.05,
    columns: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
    draft: bool = False,
    out: AnyPath | None = None,
    **extraction: Any,
) -> Job:
    """Check the settings of an embedding; return the job for `embed` and `plan`.

    backbone: a model's name of torchvision or timm, or the folder of a frozen backbone.
    taps: nodes to keep, each `node` or `node:pooling`, such as `layer3:mean`.
    data: a folder of images, a .csv or .parquet list, .tar archives, Parquet with images, or a URL of one of these.
    image: the column of image bytes, where `data` is Parquet that holds the images.
    weights: the weights of a model by name; the default weights if None.
    dtype: the type of stored values: float16, bfloat16, float32 or int8.
    max_rejected: the share of unusable files, 0 to 1, above which the job fails.
    columns: the label columns to keep, of a list or of Parquet; all if None.
    max_pixels: larger images are refused.
    draft: decode large JPEGs at a fraction of their size; the features differ.
    out: the folder that `embed` will write, if it is known: a model that was frozen there is not looked up again.
    extraction: further settings of ExtractConfig, such as `batch_size` and `engine`.

    Raises ConfigError with every wrong setting, BackboneError for a model that neither torchvision nor timm has, and
    DataError if there are no images.
    """
    backbone, weights = str(as_path(backbone, "job: backbone")), weights or Weights()
    # A URL stays text: Path would merge its two slashes.
    data = data if isinstance(data, str) else as_path(data, "job: data")
    if isinstance(taps, str):
        raise TypeError(f"job: taps: expected a list of texts such as [{taps!r}], got the text {taps!r}.")
    if filesystem.path_kind(str(data)) is None:
        raise DataError(
            f"{data}: no such folder or list. Expected a folder of images, or a .csv or .parquet list, or "
            ".tar archives, Parquet with `image`, or a URL of one of these."
        )
    raw = {
        "prepare": {
            "root": str(data),
            "image": image,
            "columns": columns,
            "max_rejected": max_rejected,
            "max_pixels": max_pixels,
            "check": "header",  # the extraction decodes every image, and rejects damaged ones
        },
        "extract": {
            "datasets": (DATASET,),
            "taps": _parse_taps(taps, dtype),
            "max_rejected": max_rejected,
            **extraction,
        },
    }
    sections = {"prepare": Section(PrepareConfig), "extract": Section(ExtractConfig)}
    folder = Path(backbone)
    frozen = (folder / SPEC_FILE).is_file()
    if frozen and weights != Weights():
        raise ConfigError(
            f"{backbone}: a backbone's folder has its weights. Leave out source, weights, file, sha256 and entry."
        )
    if frozen and draft:
        raise ConfigError(
            f"{backbone}: expected a model's name with `draft`, got a backbone's folder, which has its preprocessing. "
            "Freeze it anew with `draft: true` in `input`."
        )
    if not frozen:
        work = None if out is None else as_path(out, "job: out") / WORK
        raw["freeze"] = raw_settings(backbone, weights, work=work) | ({"input": {"draft": True}} if draft else {})
        sections["freeze"] = Section(LibraryModel)
    values, problems = check(raw, sections)
    refuse(problems, where=backbone)
    return Job(folder if frozen else values["freeze"], values["prepare"], values["extract"])


def parse_tap(text: str, dtype: str) -> tuple[str, dict[str, str]]:
    """Return the folder's name and the settings of a tap, written `node` or `node:pooling`, such as `layer3:mean`.

    >>> parse_tap("layer3:mean", "float16")
    ('layer3-mean', {'node': 'layer3', 'dtype': 'float16', 'pool': 'mean'})
    """
    node, colon, pool = text.partition(":")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return name, {"node": node, "dtype": dtype} | ({"pool": pool} if colon else {})


def _parse_taps(texts: Iterable[str], dtype: str) -> dict[str, dict[str, str]]:
    """Return the settings of taps by folder name; raises ConfigError if two taps have the same folder."""
    texts_by_name: dict[str, str] = {}
    for text in texts:
        name, _ = parse_tap(text, dtype)
        other = texts_by_name.setdefault(name, text)
        if other != text:
            raise ConfigError(f"the taps {other!r} and {text!r}: expected two folders, got {name!r} for both.")
    return dict(parse_tap(text, dtype) for text in texts_by_name.values())


def embed(
    job: Job,
    out: AnyPath,
    *,
    cache_root: AnyPath,
    rehash: bool = False,
    reporter: Reporter = SILENT,
) -> Embedded:
    """Freeze, prepare and extract; return the summaries. Rows in the feature cache are linked, missing rows computed.

    job: what `embed.job` returned.
    out: the folder to write.
    cache_root: the folder of the feature cache.
    rehash: open all images; otherwise only images whose size, times or inode changed since the last run into `out`.
    reporter: receives the forecast of the bytes on disk as its first message; each step has its own progress bar.

    Raises what the steps raise, and ConfigError if the features would be written into the folder of the images.
    """
    out, cache_root = as_path(out, "embed: out"), as_path(cache_root, "embed: cache_root")
    inputs = _prepare_inputs(job, out, reporter, rehash=rehash)
    with reporter.stage("extract") as extract_reporter:
        extracted = extract(
            job.extract,
            backbone=inputs.backbone,
            manifests=inputs.manifests,
            out=out,
            cache_root=cache_root,
            reporter=extract_reporter,
        )
    return Embedded(inputs.prepared, extracted, inputs.backbone)


def plan(
    job: Job,
    out: AnyPath,
    *,
    cache_root: AnyPath,
    rehash: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[Request, Forecast]:
    """Freeze and prepare; return the extraction that `embed` would run, with its bytes on disk. Extracts nothing.

    The parameters are the same as those of `embed`. Raises what `embed` raises before the extraction.
    """
    out, cache_root = as_path(out, "plan: out"), as_path(cache_root, "plan: cache_root")
    inputs = _prepare_inputs(job, out, reporter, rehash=rehash)
    request = read(job.extract, backbone=inputs.backbone, manifests=inputs.manifests, cache_root=cache_root)
    for line in describe_wide_taps(request):
        reporter.message(line)
    return request, forecast_disk(request, cache_root=cache_root, out=out)


@dataclass(frozen=True)
class _Inputs:
    """The inputs of the extraction: the folder of the backbone, and the manifests of the images."""

    backbone: Path
    manifests: Path
    prepared: PrepareSummary


def _prepare_inputs(job: Job, out: Path, reporter: Reporter, *, rehash: bool) -> _Inputs:
    """Freeze the backbone and list the images; write files.parquet and excluded.csv."""
    _refuse_overlap(job, out)
    work = out / WORK
    if isinstance(job.backbone, Path):
        backbone = job.backbone
        spec = read_spec(backbone)
    else:
        backbone = freeze_once(job.backbone, work, reporter)
        spec = read_spec(backbone)
        reporter.message(f"{job.backbone.model}: images: {spec.input.description}")
    checked(job.extract, spec, where=str(backbone))  # before the images are read
    paths = ManifestPaths(work / "manifests", DATASET)
    with reporter.stage("prepare") as prepare_reporter:
        if rehash:
            (work / KNOWN).unlink(missing_ok=True)
        prepared = prepare(job.prepare, paths, known=work / KNOWN, reporter=prepare_reporter)
    _write_files(paths, out)
    return _Inputs(backbone, paths.folder, prepared)


def _refuse_overlap(job: Job, out: Path) -> None:
    """Raise ConfigError if features would be written into the folder of the images."""
    local_root = filesystem.local(job.prepare.root)
    if local_root is None:
        return
    root = local_root.resolve()
    for folder in (out, *(out / name for name in job.extract.taps)):
        if root.is_dir() and folder.resolve().is_relative_to(root):
            raise ConfigError(
                f"{folder}: expected a folder outside {job.prepare.root}, which is read whole. Choose another."
            )


def _write_files(paths: ManifestPaths, out: Path) -> None:
    """Write files.parquet, the manifest without its empty columns, and excluded.csv."""
    with pq.ParquetFile(paths.rows) as rows:
        schema = rows.schema_arrow
        empty = set(schema.names) - (set(FIXED) - set(IN_CONTAINERS))
        for batch in rows.iter_batches(columns=sorted(empty)):
            empty = {name for name in empty if batch[name].null_count == len(batch)}
        columns = [name for name in schema.names if name not in empty]
        for name in empty:
            schema = schema.remove(schema.get_field_index(name))
        with atomic(out / "files.parquet") as temporary, pq.ParquetWriter(temporary, schema) as file:
            for batch in rows.iter_batches(columns=columns):
                file.write_batch(batch)
    link_or_copy(paths.excluded, out / "excluded.csv")
