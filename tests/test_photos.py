"""Real photos and a real network: an example of docs/, known numbers, many tasks on one extraction, planted copies."""

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from support.clean_environment import clean_folder, run_clean
from support.projects import Project, default

from pipeline.export.run import export
from pipeline.task import Task

pytestmark = pytest.mark.usefixtures("one_core")  # stages wait for threads while other tests run

DEVICES = ("calculator", "keyboard", "laptop", "monitor", "mouse", "projector")
ALL = {"train": 1, "validation": 0, "test": 0}
# Accuracy of a standardised logistic regression on global-average features of this network, measured with torchvision's
# own transforms: trained on all of the first domain, tested on all of the second. Their source, SOURCES.md of the
# assets, does not state C: 0.01 was found among a few values that were tried, as the one that gives them.
PROBES = {("amazon", "webcam"): 0.912, ("webcam", "amazon"): 0.936, ("caltech", "webcam"): 0.932}
TASKS: dict[str, dict[str, Any]] = {
    "caltech": {"datasets": ["caltech"], "sizes": {"train": 60, "validation": 0, "test": 20}},
    "object": {"datasets": ["office"]},
    "camera": {"datasets": ["office"], "target": "domain"},
    "device": {"datasets": ["office"], "rename": dict.fromkeys(DEVICES, "device")},
    "copied": {
        "datasets": ["office", "copies"],
        "by": "domain",
        "domains": {"train": ["amazon"], "test": ["copies"]},
        "sizes": ALL,
    },
} | {
    f"{source}_{target}": {
        "datasets": ["office", "caltech"],
        "by": "domain",
        "domains": {"train": [source], "test": [target]},
        "sizes": ALL,
    }
    for source, target in PROBES
}


class Photos(NamedTuple):
    """A project, the settings without tasks, and the stages that ran for the first of them."""

    project: Project
    params: dict[str, Any]
    ran: list[str]


@pytest.fixture(scope="module")
def photos(one_core: None, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Photos:  # noqa: ARG001
    """Three domains and two photos a class saved once more, extracted, and everything there is for one task."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(assets / "images/office_caltech10.tar") as archive:
        archive.extractall(folder, filter="data")
    office = folder / "office_caltech10"
    for path in (one for label in sorted((office / "amazon").iterdir()) for one in sorted(label.iterdir())[:2]):
        copy = folder / "copies" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").save(copy, quality=90)
    weights = next((assets / "weights").glob("mobilenet_v2-*.pth"))
    roots = {
        "office": {"root": str(office), "folders": ["amazon", "webcam"]},
        "caltech": {"root": str(office / "caltech")},
        "copies": {"root": str(folder / "copies")},
    }
    params = default() | {
        "sample": {},
        "pretrain": {},
        "finetune": {},
        "teach": {},
        "distill": {},
        "prepare": roots,
        "freeze": {
            "mobilenet": {
                "source": "torchvision",
                "model": "mobilenet_v2",
                "weights": "IMAGENET1K_V1",
                "file": str(weights),
                "sha256": "b470193d7ed46a73",
            }
        },
        # `auto` takes this engine too, after it has prepared and timed others.
        "extract": {
            "mobilenet": {
                "datasets": list(roots),
                "taps": {"penultimate": {"node": "penultimate"}},
                "engine": "openvino",
            }
        },
        "audit": {},
    }
    project = Project(folder / "project")
    ran, _ = project.repro(settings(params, "caltech"))
    return Photos(project, params, ran)


def settings(params: dict[str, Any], *tasks: str) -> dict[str, Any]:
    """The settings with some tasks, and a linear probe on each."""
    probe = {"backbone": "mobilenet", "inputs": ["penultimate"]}
    searched = ("caltech", "copied")  # the others take long to search, and say nothing more about it
    runs = {name: {"task": name, **probe} | ({} if name in searched else {"params": {"C": 0.01}}) for name in tasks}
    return params | {"split": {name: TASKS[name] for name in tasks}, "fit": runs}


def test_a_linear_probe_on_own_photos_runs_every_stage_once(photos: Photos) -> None:
    """ "My photos" of docs/howto-photos.md: Caltech photos, 60 training and 20 test images per class."""
    prepared = [stage for stage in photos.ran if stage.startswith("prepare@")]
    assert sorted(prepared) == ["prepare@caltech", "prepare@copies", "prepare@office"]
    assert photos.ran[3:] == [
        "freeze@mobilenet",
        "extract@mobilenet",
        "split@caltech",
        "audit@caltech",
        "fit@caltech",
        "evaluate",
        "compare",
        "report",
    ]
    numbers = photos.project.read("data/metrics/runs/caltech.json")
    assert numbers["test_rows"] == 200
    assert numbers["accuracy"] >= 0.92


def test_many_tasks_ask_the_same_features_and_domains_shift_as_they_are_known_to(photos: Photos) -> None:
    project, params, _ = photos
    folder = project.root / "data/features/mobilenet/penultimate"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ran, output = project.repro(settings(params, *TASKS), "fit@object")
    assert ran == ["split@object", "fit@object"]
    assert "Stage 'extract@mobilenet' didn't change, skipping" in output
    others = [name for name in TASKS if name not in ("object", "caltech")]
    project.by_hand(*(f"{stage}@{name}" for name in others for stage in ("split", "fit")), "evaluate")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    accuracy = {name: project.read(f"data/metrics/runs/{name}.json")["accuracy"] for name in TASKS}
    assert accuracy["object"] > 0.92
    assert accuracy["camera"] > 0.97
    assert accuracy["device"] > 0.95
    assert accuracy["copied"] == 1.0  # what a leak looks like; its audit is below
    assert {pair: accuracy["_".join(pair)] for pair in PROBES} == pytest.approx(PROBES, abs=0.01)


def test_copies_that_were_saved_once_more_are_found_across_splits(photos: Photos) -> None:
    project, params, _ = photos
    project.write(settings(params, "copied", "amazon_webcam"))
    project.by_hand("split@copied", "audit@copied", "split@amazon_webcam", "audit@amazon_webcam")
    copied = project.read("data/audits/copied.json")["near_duplicates"]
    pairs = {tuple(Path(path).parts[-2:] for path in pair["paths"]) for pair in copied["pairs"]}
    planted = {tuple(path.parts[-2:]) for path in (project.root.parent / "copies").rglob("*.jpg")}
    assert len(planted) == 20
    assert pairs == {(path, path) for path in planted}
    assert copied["count"] == 20
    shifted = project.read("data/audits/amazon_webcam.json")
    assert shifted["near_duplicates"]["count"] <= 5  # other photos than those are hardly ever so near
    assert shifted["domains"] == {"train": {"amazon": 933}, "test": {"webcam": 295}}
    assert 0 < shifted["shift"]["splits"][0]["distance"] < 0.3


def test_icecore_predict_and_the_exported_model_without_it_agree_on_200_photos(photos: Photos, tmp_path: Path) -> None:
    project, _, _ = photos
    data = project.root / "data"
    found = export(data / "models" / "caltech", tmp_path / "out", cache=project.cache)
    assert found.about["check"]["outputs"][0]["largest"] < 1e-4
    task = Task.read(data / "tasks" / "caltech.parquet")
    keys = task.keys_of("test")
    paths = task.paths_of(np.array(keys)).to_pylist()
    assert len(paths) == 200
    (tmp_path / "packages").mkdir()
    done = run_clean(clean_folder(tmp_path / "packages"), tmp_path / "out" / "infer.py", found.file, *paths)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == paths
    rows = [json.loads(line) for line in project.run("icecore", "predict", "caltech", *paths, "--json").splitlines()]
    assert [row["path"] for row in rows] == paths
    assert [line[1] for line in lines] == [row["prediction"] for row in rows]
    confidences = [row["confidence"] for row in rows]
    np.testing.assert_allclose([float(line[2]) for line in lines], confidences, rtol=0, atol=1e-4)
