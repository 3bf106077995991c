"""A one-off embedding job: images and the name of a backbone to features, without params.yaml and DVC.

Below `out` lie a features folder a tap, `files.parquet` (key, path, size, place and labels of each row), `excluded.csv`
(the files that are no row, with the reason) and `.icecore/` with the frozen backbone and the manifest.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from pydantic import Field

from pipeline.backbones import serialization, timm_models, torchvision_models
from pipeline.errors import BackboneError, ConfigError, DataError, install_command, unknown
from pipeline.extract.alternatives import forecast_disk
from pipeline.extract.config import ExtractConfig
from pipeline.extract.disk_forecast import Forecast
from pipeline.extract.request import Request, checked, read
from pipeline.extract.run import Extracted, extract, wide_taps
from pipeline.files import AnyPath, as_path, atomic, digest, link_or_copy, sha256_file
from pipeline.freeze.config import Timm, Torchvision
from pipeline.freeze.run import freeze
from pipeline.manifest import FIXED, IN_CONTAINERS, ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import Prepared, prepare
from pipeline.readers.image_files import MAX_PIXELS
from pipeline.runtime import Progress, silent, versions
from pipeline.settings.check import Section, check, refuse
from pipeline.sources import filesystem

Named = Annotated[Torchvision | Timm, Field(discriminator="source")]
"""Settings of a backbone that has a name."""

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Called with `prepare` or `extract` when that begins; what it gives is told how far it is."""

DATASET = "files"
WORK = ".icecore"


@dataclass(frozen=True)
class Weights:
    """Which weights a named backbone has; what is None is chosen."""

    source: str | None = None
    name: str | None = None
    file: Path | None = None
    sha256: str | None = None
    entry: str | None = None


@dataclass(frozen=True)
class Job:
    """Checked settings: what to freeze, or a backbone that is frozen; the images; what to extract of them."""

    backbone: Torchvision | Timm | Path
    prepare: PrepareConfig
    extract: ExtractConfig


@dataclass(frozen=True)
class Embedded:
    """What a job did."""

    prepared: Prepared
    extracted: Extracted
    backbone: Path


def job(
    backbone: AnyPath,
    taps: Iterable[str],
    data: AnyPath,
    *,
    image: str | None = None,
    weights: Weights = Weights(),
    dtype: str = "float16",
    max_rejected: float = 0.05,
    columns: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
    draft: bool = False,
    **extraction: Any,
) -> Job:
    """Check what a user asks for; `taps` as `tap` reads them, `data` and `image` as PrepareConfig, `extraction` as
    ExtractConfig has them.

    `columns`: the label columns to keep, of a list or of Parquet; all if None. `max_pixels`: larger images are refused.
    `draft`: large JPEGs are decoded at a fraction of their size first, which gives other features.

    Raises ConfigError with every wrong setting, BackboneError for a model that neither torchvision nor timm has,
    DataError where there are no images.
    """
    backbone = str(as_path(backbone, "job: backbone"))
    # A URL stays text: Path would make one slash of two.
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
            "check": "header",  # the extraction decodes every image, and finds those that are damaged
        },
        "extract": {
            "datasets": (DATASET,),
            "taps": _taps(taps, dtype),
            "max_rejected": max_rejected,
            **extraction,
        },
    }
    sections = {"prepare": Section(PrepareConfig), "extract": Section(ExtractConfig)}
    own = Path(backbone)
    frozen = (own / serialization.JSON).is_file()
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
        raw["freeze"] = _source(backbone, weights) | ({"input": {"draft": True}} if draft else {})
        sections["freeze"] = Section(Named)
    values, problems = check(raw, sections)
    refuse(problems, where=backbone)
    return Job(own if frozen else values["freeze"], values["prepare"], values["extract"])


def tap(text: str, dtype: str) -> tuple[str, dict[str, str]]:
    """The folder's name and the settings of a tap that is written `node` or `node:pooling`, such as `layer3:mean`."""
    node, colon, pool = text.partition(":")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
    return name, {"node": node, "dtype": dtype} | ({"pool": pool} if colon else {})


def _taps(texts: Iterable[str], dtype: str) -> dict[str, dict[str, str]]:
    found: dict[str, str] = {}
    for text in texts:
        name, _ = tap(text, dtype)
        if found.setdefault(name, text) != text:
            raise ConfigError(f"the taps {found[name]!r} and {text!r}: expected two folders, got {name!r} for both.")
    return dict(tap(text, dtype) for text in found.values())


def model_settings(model: str) -> Torchvision | Timm:
    """Return the settings of `freeze` for a model by its name; raises BackboneError where no library has it."""
    values, problems = check({"freeze": _source(model, Weights())}, {"freeze": Section(Named)})
    refuse(problems, where=model)
    settings: Torchvision | Timm = values["freeze"]
    return settings


def _source(model: str, weights: Weights) -> dict[str, Any]:
    """Settings of `freeze` for a model's name; a name with a tag, as timm writes them, gives the weights too."""
    name, dot, tag = model.partition(".")
    source = weights.source or _having(model)
    settings: dict[str, Any] = {"source": source, "model": model}
    if weights.name is not None:
        settings["weights"] = weights.name
    elif source == "timm" and dot:
        settings |= {"model": name, "weights": tag}
    if weights.file is not None:
        if not weights.file.is_file():
            raise ConfigError(f"{weights.file}: no such weights file. Expected a .safetensors or .pth state dict.")
        settings["file"] = weights.file
        settings["sha256"] = weights.sha256 or sha256_file(weights.file)
    elif weights.sha256 is not None:
        settings["sha256"] = weights.sha256
    if weights.entry is not None:
        settings["entry"] = weights.entry
    return settings


def _having(model: str) -> str:
    """Which library has a model; torchvision, where both do."""
    if model in torchvision_models.names():
        return "torchvision"
    there = importlib.util.find_spec("timm") is not None
    known = timm_models.names() if there else []
    if model.partition(".")[0] in known:
        return "timm"
    libraries = "torchvision and timm" if there else f"torchvision (timm is not installed: `{install_command('timm')}`)"
    raise BackboneError(
        f"{unknown('backbone', model, {*torchvision_models.names(), *known})} These are the models of {libraries}; or "
        "name the folder of a backbone that icecore wrote."
    )


def embed(
    job: Job,
    out: AnyPath,
    *,
    cache_root: AnyPath,
    stage: Stage = lambda _: nullcontext(silent),
    announce: Callable[[Forecast], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Embedded:
    """Freeze, prepare and extract; what was done before is not done again, and new images are all that is computed.

    Raises what these raise, and ConfigError where the images and the features would lie in one folder.
    """
    out, cache_root = as_path(out, "embed: out"), as_path(cache_root, "embed: cache_root")
    ready = _ready(job, out, stage, say)
    with stage("extract") as progress:
        extracted = extract(
            job.extract,
            backbone=ready.backbone,
            manifests=ready.manifests,
            out=out,
            cache_root=cache_root,
            progress=progress,
            announce=announce,
            say=say,
            log=log,
        )
    return Embedded(ready.prepared, extracted, ready.backbone)


def plan(
    job: Job,
    out: AnyPath,
    *,
    cache_root: AnyPath,
    stage: Stage = lambda _: nullcontext(silent),
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Request, Forecast]:
    """What `embed` would extract, and the bytes of it; freezes and prepares, which is kept, and extracts nothing.

    Raises what `embed` raises before it extracts.
    """
    out, cache_root = as_path(out, "plan: out"), as_path(cache_root, "plan: cache_root")
    ready = _ready(job, out, stage, say)
    request = read(job.extract, backbone=ready.backbone, manifests=ready.manifests, cache_root=cache_root)
    for line in wide_taps(request):
        say(line)
    return request, forecast_disk(request, cache_root=cache_root, out=out)


@dataclass(frozen=True)
class _Ready:
    """A frozen backbone and prepared images."""

    backbone: Path
    manifests: Path
    prepared: Prepared


def _ready(job: Job, out: Path, stage: Stage, say: Callable[[str], None]) -> _Ready:
    _apart(job, out)
    work = out / WORK
    backbone = _frozen(job, work, say)
    spec = serialization.read_spec(backbone)
    if not isinstance(job.backbone, Path):
        say(f"{job.backbone.model}: images: {spec.input.description}")
    checked(job.extract, spec, where=str(backbone))  # before the images are read
    paths = ManifestPaths(work / "manifests", DATASET)
    with stage("prepare") as progress:
        prepared = prepare(job.prepare, paths, progress=progress)
    _write_files(paths, out)
    return _Ready(backbone, paths.folder, prepared)


def _apart(job: Job, out: Path) -> None:
    here = filesystem.local(job.prepare.root)
    if here is None:
        return
    root = here.resolve()
    for folder in (out, *(out / name for name in job.extract.taps)):
        if root.is_dir() and folder.resolve().is_relative_to(root):
            raise ConfigError(
                f"{folder}: expected a folder outside {job.prepare.root}, which is read whole. Choose another."
            )


def _frozen(job: Job, work: Path, say: Callable[[str], None]) -> Path:
    """The backbone's folder; its name follows from the settings, so that others make another backbone beside it."""
    if isinstance(job.backbone, Path):
        return job.backbone
    made_by = versions("torch", "torchvision", job.backbone.source)
    made_from = digest({"settings": job.backbone.model_dump(mode="json", exclude={"file"}), "versions": made_by})
    folder = work / "backbones" / f"{job.backbone.model}-{made_from[:12]}"
    if not (folder / serialization.JSON).is_file():
        freeze(job.backbone, folder, pretrained=work, say=say)
    return folder


def _write_files(paths: ManifestPaths, out: Path) -> None:
    """Write files.parquet, the manifest without columns that are empty, and excluded.csv beside it."""
    with pq.ParquetFile(paths.rows) as rows:
        empty = set(rows.schema_arrow.names) - (set(FIXED) - set(IN_CONTAINERS))
        for batch in rows.iter_batches(columns=sorted(empty)):
            empty = {name for name in empty if batch[name].null_count == len(batch)}
        kept = [name for name in rows.schema_arrow.names if name not in empty]
        schema = rows.schema_arrow
        for name in empty:
            schema = schema.remove(schema.get_field_index(name))
        with atomic(out / "files.parquet") as temporary, pq.ParquetWriter(temporary, schema) as file:
            for batch in rows.iter_batches(columns=kept):
                file.write_batch(batch)
    link_or_copy(paths.excluded, out / "excluded.csv")
