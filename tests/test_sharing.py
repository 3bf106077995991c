"""One copy of the features on disk, for the feature cache, DVC and every project, branch and experiment."""

import hashlib
import os
import shutil
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Folder
from support.projects import ROOT, Project, default, small, write_digits

from pipeline.store.features import Features

BLOCK3 = "data/features/glyphs/block3"
NOTHING = ["block3: 0 rows to compute, 300 known", "pixels: 0 rows to compute, 300 known"]


def tiny() -> dict[str, Any]:
    """The small settings with two taps, fewer fits, and a network that nobody trains."""
    params = small()
    params["sample"] = params["pretrain"] = {}
    params["freeze"]["glyphs"] = default()["freeze"]["small"]
    del params["extract"]["glyphs"]["taps"]["penultimate"]
    params["fit"]["digits_logistic"] |= {"inputs": ["block3"], "labels_per_class": [5]}
    return params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("first") / "project")
    write_digits(made.root / "digits")
    made.write(tiny())
    made.by_hand("settings", "prepare@digits", "freeze@glyphs", "extract@glyphs")
    made.run("dvc", "commit", "--force", "--with-deps", "extract@glyphs")
    return made


@pytest.fixture(scope="module")
def second(project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """Another project, with a history, on the feature cache of the first; and what its extraction printed."""
    made = copy(project)
    made.root = tmp_path_factory.mktemp("second") / "project"
    shutil.copytree(project.root, made.root, ignore=shutil.ignore_patterns("tmp", "features", "config.local"))
    for path in (path for path in objects(made) if path.read_bytes().startswith(b"\x89HDF")):
        path.unlink()
    for name in (".gitignore", ".dvc/.gitignore"):
        shutil.copyfile(ROOT / name, made.root / name)
    made.run("git", "init", "--quiet")
    made.run("git", "config", "user.name", "somebody")
    made.run("git", "config", "user.email", "somebody@example.org")
    ran, output = made.repro(tiny(), "extract@glyphs")
    assert ran == ["extract@glyphs"]
    made.run("git", "add", ".")
    made.run("git", "commit", "--quiet", "--message", "Features")
    return made, output


def shards(project: Project) -> list[Path]:
    """The shards in the workspace."""
    found = sorted((project.root / "data/features").rglob("*.h5"))
    assert found
    return found


def objects(project: Project) -> list[Path]:
    """The files in DVC's cache."""
    return sorted((project.root / ".dvc/cache/files/md5").glob("??/*"))


def inodes(paths: list[Path]) -> set[int]:
    return {path.stat().st_ino for path in paths}


def lie_once(project: Project) -> bool:
    """Whether every shard of the workspace is one file with that of the feature cache and that of DVC."""
    own = inodes(shards(project))
    return own <= inodes(list(project.cache.rglob("*.h5"))) and own <= inodes(objects(project))


def are_whole(project: Project) -> bool:
    """Whether the feature cache and DVC's cache hold what they say, by the digest of every byte."""
    project.run("icecore", "cache", "verify", "--full")
    names = {path: path.parent.name + path.name.removesuffix(".dir") for path in objects(project)}
    return all(hashlib.md5(path.read_bytes()).hexdigest() == name for path, name in names.items())


def twin(project: Project, folder: Path) -> Project:
    """The project and its feature cache under other names: what is removed there stays here."""
    shutil.copytree(
        project.root.parent, folder / "twin", copy_function=os.link, ignore=shutil.ignore_patterns("tmp", "dvc.lock")
    )
    shutil.copyfile(project.root / "dvc.lock", folder / "twin/project/dvc.lock")
    made = copy(project)
    made.root, made.cache = folder / "twin/project", folder / "twin/feature-cache"
    return made


def test_a_shard_takes_its_bytes_once_on_disk_and_is_read_only(project: Project) -> None:
    assert lie_once(project)
    for path in shards(project):
        assert path.stat().st_nlink >= 3
        assert path.stat().st_mode & 0o777 == 0o444


def test_a_second_project_computes_nothing_and_has_the_same_bytes(
    project: Project, second: tuple[Project, str]
) -> None:
    other, output = second
    assert [line for line in NOTHING if line not in output] == []
    assert lie_once(other)
    assert inodes(shards(other)) == inodes(shards(project))
    files = [path.relative_to(project.root) for path in (project.root / "data/features").rglob("*") if path.is_file()]
    assert [path for path in files if (project.root / path).read_bytes() != (other.root / path).read_bytes()] == []


def test_features_that_were_removed_are_linked_again(project: Project, tmp_path: Path) -> None:
    project.settle(tiny(), "extract@glyphs")
    shutil.rmtree(project.root / "data/features")
    ran, _ = project.repro(tiny(), "extract@glyphs")
    assert ran == []  # DVC has them
    assert lie_once(project)
    without = twin(project, tmp_path)
    shutil.rmtree(without.root / "data/features")
    shutil.rmtree(without.root / ".dvc/cache")
    output = without.run("dvc", "repro", "--force", "--single-item", "extract@glyphs")
    assert [line for line in NOTHING if line not in output] == []
    assert lie_once(without)


def test_an_experiment_in_a_temporary_folder_computes_nothing(second: tuple[Project, str]) -> None:
    other, _ = second
    changes = ("--set-param", "fit.digits_logistic.params.C=0.1", "--set-param", "+extract.glyphs.batch_size=32")
    output = other.run("dvc", "exp", "run", "--temp", "--name", "stronger", *changes)
    assert [line for line in NOTHING if line not in output] == []
    assert not (other.root / "data/metrics/runs/digits_logistic.json").exists()
    other.run("dvc", "exp", "apply", "stronger")
    assert other.read("data/metrics/runs/digits_logistic.json")["test_rows"] > 0
    assert lie_once(other)
    other.run("git", "reset", "--quiet", "--hard")
    other.run("dvc", "checkout", "extract@glyphs")
    assert lie_once(other)
    assert are_whole(other)


def test_added_data_adds_a_shard_and_leaves_the_others_alone(project: Project, image_folder: Folder) -> None:
    project.settle(tiny(), "extract@glyphs")
    before = inodes(shards(project))
    params = tiny()
    params["prepare"]["photos"] = {"root": str(image_folder())}
    params["extract"]["glyphs"]["datasets"] = ["digits", "photos"]
    _, output = project.repro(params, "extract@glyphs")
    assert "block3: 12 rows to compute, 300 known" in output
    assert before < inodes(shards(project))
    assert lie_once(project)
    assert are_whole(project)


def test_the_workspace_reads_its_features_after_the_feature_cache_is_gone(project: Project, tmp_path: Path) -> None:
    project.settle(tiny(), "extract@glyphs")
    expected = Features.open(project.root / BLOCK3).load()
    without = twin(project, tmp_path)
    assert "columns removed" in without.run("icecore", "cache", "prune", "--max-size", "0B")
    assert list(without.cache.rglob("*.h5")) == []
    without.run("dvc", "gc", "--workspace", "--force")
    np.testing.assert_array_equal(Features.open(without.root / BLOCK3).load(), expected)
    shutil.rmtree(without.root / "data/features")
    without.run("dvc", "checkout", "extract@glyphs")
    np.testing.assert_array_equal(Features.open(without.root / BLOCK3).load(), expected)


def test_repair_mends_a_damaged_shard_in_dvc_too(project: Project) -> None:
    project.settle(tiny(), "extract@glyphs")
    path = next((project.root / BLOCK3).glob("*.h5"))
    stat = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-500, os.SEEK_END)
        file.write(b"damaged")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk would: no time, no mode tells
    path.chmod(0o444)
    project.run("icecore", "cache", "repair")
    _, output = project.repro(tiny(), "extract@glyphs")
    assert "block3: 300 rows to compute, 0 known" in output
    assert lie_once(project)
    assert are_whole(project)
