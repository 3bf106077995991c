"""Digests of the installed code of each stage, which DVC watches instead of the files: `.icecore/code.json`.

A digest ignores comments and docstrings, so that an upgrade of icecore re-runs only the stages whose code behaves
differently. `icecore repro` and `icecore check` update all digests. A stage that runs by itself updates its own digest,
so that dvc.lock always records the code that ran.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pipeline
from pipeline.backbones.user_code import source_digest
from pipeline.files import digest, read_json, write_json
from pipeline.settings.params import read_params

DIGESTS = Path(".icecore") / "code.json"
STAGES = Path(__file__).with_name("stages.yaml")
"""The stages of icecore, with the code that they depend on."""

INSTALLED = Path(pipeline.__file__).parents[1]
"""The folder with the packages `pipeline` and `stages`."""

KNOWN = Path(".dvc") / "tmp" / "icecore-code.json"
"""Cached digests of the last run, with the sizes and modification times of the files."""


def is_code(dep: str) -> bool:
    """Return whether a dependency of a stage in stages.yaml is code of icecore."""
    return dep.startswith(("pipeline/", "stages/"))


@functools.cache
def code_of_stages() -> Mapping[str, tuple[str, ...]]:
    """Return the files and folders of code that each stage depends on, from stages.yaml."""
    stages = read_params(STAGES)["stages"]
    return {name: tuple(filter(is_code, stage.get("do", stage)["deps"])) for name, stage in stages.items()}


def stage_digests(root: Path = Path()) -> dict[str, str]:
    """Return a digest of the installed code of each stage. root: the project, which caches them until files change."""
    code = code_of_stages()
    files = {path: file for paths in code.values() for path, file in _files(paths)}
    sizes = {path: [(status := file.stat()).st_size, status.st_mtime_ns] for path, file in files.items()}
    state = digest({"at": str(INSTALLED), "files": sizes})
    if (known := _read_known(root / KNOWN, state)) is not None:
        return known
    by_file = {path: _digest_of_file(file, *sizes[path]) for path, file in files.items()}
    stages = {name: digest({path: by_file[path] for path, _ in _files(paths)})[:16] for name, paths in code.items()}
    if (root / KNOWN).parent.parent.is_dir():
        write_json(root / KNOWN, {"state": state, "stages": stages})
    return stages


@functools.cache
def _digest_of_file(file: Path, size: int, changed: int) -> str:  # noqa: ARG001  # keys of the cache
    return source_digest(file)


def update_digests(root: Path = Path()) -> list[str]:
    """Update `.icecore/code.json` of a project; return the stages whose digest changed.

    A project whose stages depend on code files, such as a checkout of icecore, has no such file and is not changed.
    """
    if not _has_digests(root):
        return []
    before, now = _read_digests(root), stage_digests(root)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed or before.keys() != now.keys():
        _write(root, now)
    return changed


def update_stage_digest(name: str, root: Path = Path()) -> None:
    """Update the digest of a stage that is about to run."""
    if not _has_digests(root):
        return
    before, now = _read_digests(root), stage_digests(root)
    if before.get(name) != now[name]:
        _write(root, {**before, name: now[name]})


def _has_digests(root: Path) -> bool:
    """Return whether the stages of a project's dvc.yaml depend on digests."""
    return (root / "dvc.yaml").is_file() and DIGESTS.as_posix() in (root / "dvc.yaml").read_text(encoding="utf-8")


def _read_digests(root: Path) -> dict[str, str]:
    """Return the digests of a project; an empty dict if the file is missing or damaged, since it is rewritten."""
    try:
        return {str(name): str(value) for name, value in read_json(root / DIGESTS)["stages"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(root: Path, digests: Mapping[str, str]) -> None:
    write_json(root / DIGESTS, {"icecore": pipeline.__version__, "stages": dict(digests)})


def _read_known(path: Path, state: str) -> dict[str, str] | None:
    """Return the cached digests if they belong to the files' present state; else None."""
    try:
        known = read_json(path)
        return dict(known["stages"]) if known["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(paths: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield each code file with its path relative to the installed packages, in order."""
    for path in paths:
        installed = INSTALLED / path
        if installed.is_file():
            yield path, installed
            continue
        for folder, folders, names in os.walk(installed):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
            for name in sorted(names):
                if not name.endswith((".pyc", ".pyo")) and not name.startswith("."):
                    file = Path(folder) / name
                    yield file.relative_to(INSTALLED).as_posix(), file
