"""Find options of a second `icecore run` that differ from the project's params.yaml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.settings.params import read_params
from pipeline.sources import filesystem

if TYPE_CHECKING:
    from pipeline.projects.backbone import NamedBackbone

Params = Mapping[str, Any]
"""The content of params.yaml."""


def is_project_of(folder: Path, images: str, labels: Path | None) -> bool:
    """Return whether a folder is a project on the same images; raises ConfigError for a project on others."""
    if not ((folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file()):
        return False
    root = str(labels) if labels is not None else images
    wanted = root if filesystem.is_url(root) else Path(root).resolve().as_posix()
    prepared = read_params(folder / "params.yaml").get("prepare") or {}
    roots = [str(entry.get("root")) for entry in prepared.values() if isinstance(entry, dict)]
    if wanted in roots or wanted in [(folder.resolve() / known).as_posix() for known in roots]:
        return True
    raise ConfigError(
        f"{folder}: expected a project on {wanted}, got one on {', '.join(roots) or 'none'}. Choose another folder "
        "with `--out`."
    )


def changed_data_options(
    params: Params, folder: Path, *, images: str, labels: str | None, image: str | None, targets: Sequence[str]
) -> list[str]:
    """Return the data options that differ from the data set and the tasks of the project in `folder`.

    images, labels, image, targets: as in `summarize`.
    """
    root = labels if labels is not None else images
    prepared = [(name, entry) for name, entry in _entries(params, "prepare") if _same("root", root, entry, folder)]
    changed = []
    if labels is not None and not any(_same("base", images, entry, folder) for _, entry in prepared):
        changed.append(f"PHOTOS {images}")
    if image is not None and not any(entry.get("image") == image for _, entry in prepared):
        changed.append(f"--image {image}")
    names = {name for name, _ in prepared}
    tasks = [entry for _, entry in _entries(params, "split") if names.intersection(entry.get("datasets") or ())]
    if targets and not any(_listed(entry.get("target", "label")) == [*targets] for entry in tasks):
        changed += [f"--target {target}" for target in targets]
    return changed


def changed_backbone_options(
    params: Params,
    folder: Path,
    backbones: "Mapping[str, NamedBackbone]",
    *,
    weights: str | None,
    weights_file: Path | None,
) -> list[str]:
    """Return the backbone options that differ from `freeze` of the project in `folder`, which may have more backbones.

    backbones: the backbone for each `--backbone`, with the weights of the other options; "" stands for the default.
    """
    frozen, changed = dict(_entries(params, "freeze")), []
    for model, backbone in backbones.items():
        keys = {"source", "model", "folder", "digest"}
        if weights is None and weights_file is None:
            keys.add("weights")
        options = [
            (f"--backbone {model}" if model else "", keys & backbone.settings.keys()),
            (f"--weights {weights}" if weights else "", {"weights"}),
            (f"--weights-file {weights_file}" if weights_file else "", {"file", "sha256"}),
        ]
        entry = frozen.get(backbone.name)
        for option, named in options:
            same = entry is not None and all(_same(key, backbone.settings.get(key), entry, folder) for key in named)
            changed += [option] if option and not same else []
    return changed


def _entries(params: Params, section: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = params.get(section) or {}
    items = entries.items() if isinstance(entries, Mapping) else ()
    return [(str(name), entry) for name, entry in items if isinstance(entry, Mapping)]


def _same(key: str, wanted: Any, entry: Mapping[str, Any], folder: Path) -> bool:
    """Return whether an entry has a value, up to relative paths and shortened digests."""
    has = entry.get(key)
    if has is None or wanted is None:
        return has is wanted
    has, wanted = str(has), str(wanted)
    if key in ("sha256", "digest"):
        return has.startswith(wanted) or wanted.startswith(has)
    if key in ("root", "base", "file", "folder") and not filesystem.is_url(has):
        return (folder.resolve() / has).resolve() == Path(wanted).resolve()
    return bool(has == wanted)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]
