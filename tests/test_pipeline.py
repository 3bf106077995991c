"""The whole pipeline, by `dvc repro`, in a copy of the project: what runs, what is left alone, and what comes out."""

import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from projects import ROOT, Project, small


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("small") / "project")
    made.repro(small())
    return made


def test_every_artefact_lies_where_the_design_says(project: Project) -> None:
    expected = [
        "data/manifests/digits.parquet",
        "data/manifests/digits.excluded.csv",
        "data/backbones/glyphs/backbone.json",
        "data/backbones/glyphs/weights.safetensors",
        "data/features/glyphs/block3/index.json",
        "data/tasks/digits.parquet",
        "data/tasks/digits.audit.json",
        "data/models/digits_logistic/model.json",
        "data/predictions/digits_logistic.parquet",
        "data/metrics/digits_logistic.json",
        "data/plots/confusion/digits_logistic.csv",
        "data/plots/curves/digits_logistic.csv",
        "data/comparisons/digits.json",
        "data/report/index.html",
    ]
    assert [path for path in expected if not (project.root / path).is_file()] == []
    assert pq.read_metadata(project.root / "data/manifests/digits.parquet").num_rows == 1797
    assert project.read("data/features/glyphs/block3/index.json")["stored"] == 1797
    assert "digits_logistic" in (project.root / "data/report/index.html").read_text()


def test_nothing_runs_the_second_time(project: Project) -> None:
    project.repro(small())
    ran, output = project.repro(small())
    assert ran == []
    assert "up to date" in output


def test_the_leaderboard_and_the_metrics_are_shown(project: Project) -> None:
    project.repro(small())
    assert "report: data/report/index.html" in project.run("icecore", "leaderboard")
    assert "accuracy" in project.run("dvc", "metrics", "show")
    assert "extract@glyphs" in project.run("dvc", "dag")


def test_the_plots_of_dvc_are_drawn_without_a_network(project: Project) -> None:
    project.repro(small())
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.root / "plots" / "index.html").read_text()
    assert page.count("vegaEmbed(") == 2
    assert '"predicted": "3"' in page
    assert '"labels": "5"' in page


def test_another_head_fits_that_head_alone(project: Project) -> None:
    project.repro(small())
    params = small()
    params["fit"]["digits_knn"] = params["fit"]["digits_logistic"] | {"head": "knn", "params": {"n_neighbors": 1}}
    ran, _ = project.repro(params)
    assert ran == ["fit@digits_knn", "evaluate@digits_knn", "compare", "report"]


def test_another_task_extracts_nothing(project: Project) -> None:
    project.repro(small())
    params, default = small(), yaml.safe_load((ROOT / "params.yaml").read_text())
    params["split"]["parity"] = default["split"]["parity"]
    params["fit"]["parity_logistic"] = default["fit"]["parity_logistic"] | {"inputs": ["block3"]}
    ran, output = project.repro(params)
    assert sorted(ran) == sorted(
        ["split@parity", "audit@parity", "fit@parity_logistic", "evaluate@parity_logistic", "compare", "report"]
    )
    assert "Stage 'extract@glyphs' didn't change, skipping" in output
    audit = project.read("data/tasks/parity.audit.json")
    assert list(audit["classes"]["test"]) == ["even", "odd"]
    assert audit["near_duplicates"]["tap"] == "penultimate"


def test_a_network_is_trained_further_from_pixels_and_from_a_tap(project: Project) -> None:
    project.repro(small())
    params = small()
    params["extract"]["glyphs"]["taps"]["whole"] = {"node": "block2", "dtype": "float32"}
    tuned = {"task": "digits", "backbone": "glyphs", "start": "backbone", "labels_per_class": [5], "epochs": 1}
    params["finetune"] = {"tuned": tuned, "from_block2": tuned | {"input": "features", "tap": "whole"}}
    ran, output = project.repro(params, "finetune")
    assert {"extract@glyphs", "finetune@tuned", "finetune@from_block2"} <= {*ran}
    assert "block2: 50 rows, 0.2 MiB stored; " in output  # widths of 8
    for run in ("tuned", "from_block2"):
        made = project.read(f"data/models/{run}/model.json")
        assert made["fits"][0]["frozen"]["before"] == made["fits"][0]["frozen"]["after"]
        assert (project.root / f"data/models/{run}/backbone/backbone.json").is_file()
        assert pq.read_metadata(project.root / f"data/predictions/{run}.parquet").num_rows > 500
    ran, _ = project.repro(params, "finetune")
    assert ran == []
    assert "suggested: `learning_rate: " in project.run("python", "-m", "stages.finetune", "tuned", "--lr-range")


def test_a_change_of_labels_does_not_extract(project: Project) -> None:
    rows = ["path,label"]
    for path in sorted((project.root / "data/raw/digits").glob("*/*.png")):
        rows.append(f"{path.relative_to(project.root)},{path.parent.name}")
    listed = project.root.parent / "digits.csv"
    listed.write_text("\n".join(rows))
    params = small()
    params["prepare"]["digits"] = {"root": str(listed), "base": "."}
    project.repro(params)
    assert rows[1].endswith(",0")
    listed.write_text("\n".join([rows[0], rows[1][:-1] + "8", *rows[2:]]))
    ran, _ = project.repro(params)
    assert sorted(ran) == sorted(
        [
            "prepare@digits",
            "split@digits",
            "audit@digits",
            "fit@digits_logistic",
            "evaluate@digits_logistic",
            "compare",
            "report",
        ]
    )


def test_a_new_tap_computes_that_tap_and_an_old_one_nothing(project: Project) -> None:
    project.repro(small())
    params = small()
    params["extract"]["glyphs"]["taps"]["block1"] = {"node": "block1", "pool": "mean"}
    ran, output = project.repro(params, "extract@glyphs")
    assert ran == ["extract@glyphs"]
    assert "block1: 1,797 rows to compute, 0 known" in output
    assert "block3: 0 rows to compute, 1,797 known" in output


def test_a_wrong_setting_stops_the_first_stage_with_every_problem(project: Project) -> None:
    params = small()
    params["split"]["digits"]["taget"] = "label"
    params["fit"]["digits_logistic"]["head"] = "logitsic"
    params["sample"]["digits"]["sizes"] = [20]  # changed, so that a stage starts
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    output = project.run("dvc", "repro", expect=255)
    assert "params.yaml: 2 problems" in output
    assert "split.digits: unknown key 'taget'. Did you mean 'target'" in output
    assert "fit.digits_logistic.head: unknown head 'logitsic'. Did you mean 'logistic'" in output
    assert "Traceback" not in output


def test_linear_probe_on_real_photos(assets: Path, tmp_path: Path) -> None:
    """README's "Your own images": Caltech photos, 60 training and 20 test images a class."""
    with tarfile.open(assets / "images/office_caltech10.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    weights = next((assets / "weights").glob("mobilenet_v2-*.pth"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {
        "sample": {},
        "pretrain": {},
        "prepare": {"photos": {"root": str(tmp_path / "office_caltech10/caltech")}},
        "freeze": {
            "mobilenet": {
                "source": "torchvision",
                "model": "mobilenet_v2",
                "weights": "IMAGENET1K_V1",
                "file": str(weights),
                "sha256": "b470193d7ed46a73",
            }
        },
        "extract": {"mobilenet": {"datasets": ["photos"], "taps": {"penultimate": {"node": "penultimate"}}}},
        "split": {"photos": {"datasets": ["photos"], "sizes": {"train": 60, "validation": 0, "test": 20}}},
        "fit": {"photos_logistic": {"task": "photos", "backbone": "mobilenet", "inputs": ["penultimate"]}},
        "finetune": {},
    }
    project = Project(tmp_path / "project")
    ran, _ = project.repro(params)
    assert ran == [
        "prepare@photos",
        "freeze@mobilenet",
        "extract@mobilenet",
        "split@photos",
        "audit@photos",
        "fit@photos_logistic",
        "evaluate@photos_logistic",
        "compare",
        "report",
    ]
    numbers = project.read("data/metrics/photos_logistic.json")
    assert numbers["test_rows"] == 200
    assert numbers["accuracy"] >= 0.92
