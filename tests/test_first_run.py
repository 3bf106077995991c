"""The first run of a new user: six lines of settings on photos below train/ and val/ give what plain code gives."""

import importlib
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import read_json
from pipeline.store.features import Features
from pipeline.task import Task

CLASSES = ("headphones", "keyboard", "laptop", "monitor", "projector")
TRAIN, VAL = 5, 6  # photos of each class

SIX_LINES = """\
prepare: {photos: {root: photos}}
freeze: {net: {source: torchvision, model: mobilenet_v2, OWN}}
extract: {net: {datasets: [photos], taps: {last: {node: penultimate}}}}
split: {photos: {datasets: [photos]}}
fit: {probe: {task: photos, backbone: net, inputs: [last]}}
report: {title: My photos}
"""
FAST = "weights: IMAGENET1K_V1, input: {resize: 96, crop: 96}"
"""Small images, for a test of some seconds."""

STAGES = ("prepare@photos", "freeze@net", "extract@net", "split@photos", "fit@probe", "evaluate")


@pytest.fixture
def project(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and photos of Office-Caltech below train/ and val/."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open(assets / "images/office_caltech10.tar") as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".jpg") and "/caltech/" in name)
        for label in CLASSES:
            own = [name for name in names if f"/{label}/" in name][: TRAIN + VAL]
            for number, name in enumerate(own):
                path = tmp_path / "photos" / ("train" if number < TRAIN else "val") / label / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(name).read())  # type: ignore[union-attr]
    weights = next((assets / "weights").glob("mobilenet_v2-*.pth"))
    (tmp_path / "params.yaml").write_text(
        SIX_LINES.replace("OWN", f"{FAST}, file: {weights}, sha256: b470193d7ed46a73")
    )
    (tmp_path / "data" / "pretrained").mkdir(parents=True)
    return tmp_path


def test_six_lines_give_the_number_of_the_plain_recipe_at_the_first_attempt(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert len(SIX_LINES.splitlines()) == 6
    for stage in STAGES:
        name, *entry = stage.split("@")
        monkeypatch.setattr(sys, "argv", [name, *entry])
        importlib.import_module(f"stages.{name}").main()
    said = capsys.readouterr().out
    assert f"{len(CLASSES) * TRAIN} train, {len(CLASSES) * VAL} validation. It comes from" in said
    assert "the validation rows become the test rows" in said
    numbers = read_json(project / "data/metrics/runs/probe.json")

    task = Task.read(project / "data/tasks/photos.parquet")
    rows = Features.open(project / "data/features/net/last").subset(list(task.keys)).load().astype(np.float32)
    train, test = task.rows("train"), task.rows("test")
    assert (len(train), len(test)) == (len(CLASSES) * TRAIN, len(CLASSES) * VAL)
    options = {"scoring": "neg_log_loss", "max_iter": 1000, "l1_ratios": (0,), "use_legacy_attributes": False}
    plain = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=45, **options))
    plain.fit(rows[train], task.targets[train])
    accuracy = np.mean(plain.predict(rows[test]) == task.targets[test])
    assert numbers["test_rows"] == len(test)
    assert numbers["accuracy"] >= accuracy - 1.5 / len(test)  # one photo
    assert numbers["log_loss"] <= log_loss(task.targets[test], plain.predict_proba(rows[test])) + 0.05
