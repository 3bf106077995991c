"""The installed code of each stage, as a digest that DVC watches in the place of the files: `.icecore/code.json`.

A digest is of what the sources do, without comments and docstrings, so that an upgrade of icecore starts those stages
again whose code does something else. `icecore repro` and `icecore check` bring all digests up to date; a stage that
runs by itself brings its own up to date, so that dvc.lock never names other code than what ran.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pipeline
from pipeline.backbones.user_code import source_digest
from pipeline.files import digest, read_json, write_json
from pipeline.settings.params import read_params

CODE = Path(".icecore") / "code.json"
STAGES = Path(__file__).with_name("stages.yaml")
"""The stages of icecore, with the files of their code."""

INSTALLED = Path(pipeline.__file__).parents[1]
"""The folder that the packages `pipeline` and `stages` lie in."""

KNOWN = Path(".dvc") / "tmp" / "icecore-code.json"
"""Digests of a project's last run, with the sizes and times of the files that they are of."""


def is_code(dep: str) -> bool:
    """Return whether a dependency of a stage in stages.yaml is code of icecore."""
    return dep.startswith(("pipeline/", "stages/"))


@functools.cache
def code_of_stages() -> Mapping[str, tuple[str, ...]]:
    """Return the files and folders of code that each stage depends on, as stages.yaml lists them."""
    stages = read_params(STAGES)["stages"]
    return {name: tuple(filter(is_code, stage.get("do", stage)["deps"])) for name, stage in stages.items()}


def stage_digests(root: Path = Path()) -> dict[str, str]:
    """Return a digest of the installed code of each stage; `root`: the project, which keeps them until files change."""
    code = code_of_stages()
    files = {path: file for paths in code.values() for path, file in _files(paths)}
    sizes = {path: [(status := file.stat()).st_size, status.st_mtime_ns] for path, file in files.items()}
    state = digest({"at": str(INSTALLED), "files": sizes})
    if (known := _read_known(root / KNOWN, state)) is not None:
        return known
    each = {path: _digest_of_file(file, *sizes[path]) for path, file in files.items()}
    found = {name: digest({path: each[path] for path, _ in _files(paths)})[:16] for name, paths in code.items()}
    if (root / KNOWN).parent.parent.is_dir():
        write_json(root / KNOWN, {"state": state, "stages": found})
    return found


@functools.cache
def _digest_of_file(file: Path, size: int, changed: int) -> str:  # noqa: ARG001  # in a file of this size and time
    return source_digest(file)


def update_digests(root: Path = Path()) -> list[str]:
    """Bring `.icecore/code.json` of a project up to date; return the stages whose digest changed.

    A project whose stages depend on files of code, such as a checkout of icecore, has no such file and gets none.
    """
    if not _has_digests(root):
        return []
    before, now = _read_digests(root), stage_digests(root)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed or before.keys() != now.keys():
        _write(root, now)
    return changed


def note_stage(name: str, root: Path = Path()) -> None:
    """Bring the digest of one stage up to date, which is about to run."""
    if not _has_digests(root):
        return
    before, now = _read_digests(root), stage_digests(root)
    if before.get(name) != now[name]:
        _write(root, {**before, name: now[name]})


def _has_digests(root: Path) -> bool:
    """Return whether dvc.yaml of a project depends on digests."""
    return (root / "dvc.yaml").is_file() and CODE.as_posix() in (root / "dvc.yaml").read_text(encoding="utf-8")


def _read_digests(root: Path) -> dict[str, str]:
    """Return the digests that a project has; none where the file is missing or damaged, since it is written anew."""
    try:
        return {str(name): str(value) for name, value in read_json(root / CODE)["stages"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(root: Path, digests: Mapping[str, str]) -> None:
    write_json(root / CODE, {"icecore": pipeline.__version__, "stages": dict(digests)})


def _read_known(path: Path, state: str) -> dict[str, str] | None:
    """Return the digests of files in some state; None where they are not known."""
    try:
        known = read_json(path)
        return dict(known["stages"]) if known["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files(paths: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield each file of code by its path below the installed packages, in order."""
    for path in paths:
        place = INSTALLED / path
        if place.is_file():
            yield path, place
            continue
        for folder, folders, names in os.walk(place):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
            for name in sorted(names):
                if not name.endswith((".pyc", ".pyo")) and not name.startswith("."):
                    file = Path(folder) / name
                    yield file.relative_to(INSTALLED).as_posix(), file
