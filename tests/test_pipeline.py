"""The whole pipeline, by `dvc repro`, in a copy of the project: what runs, what is left alone, and what comes out."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.projects import Project, default, small, write_digits
from test_sharing import are_whole, lie_once, objects

from pipeline.model_record import write_digest

pytestmark = pytest.mark.usefixtures("one_core")  # stages wait for threads while other tests run

BLOCKS = "import torch\n\nACTIVATION = torch.relu\n"
NET = """\
from torch import nn

from mynets.blocks import ACTIVATION


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, stride=4), nn.Linear(256, 10)

    def forward(self, images):
        return self.last(ACTIVATION(self.first(images)).flatten(1))
"""


def listed() -> dict[str, Any]:
    """The small settings with the digits as a list, where a label changes without an image or what the network saw."""
    params = small()
    for section in ("sample", "audit", "finetune", "teach", "distill"):  # which may be left out
        del params[section]
    params["prepare"] = {"digits": {"root": "digits.csv", "base": "."}, "folders": {"root": "digits"}}
    params["pretrain"]["glyphs"]["dataset"] = "folders"
    # Unpooled: a network is trained from it.
    params["extract"]["glyphs"]["taps"]["whole"] = {"node": "block2", "dtype": "float32"}
    return params


def more() -> dict[str, Any]:
    """The settings with another task and head, networks trained further, and a student of the user's own code."""
    params, real = listed(), default()
    params["split"]["parity"] = real["split"]["parity"]
    knn = {"inputs": ["block3"], "head": "knn", "params": {"n_neighbors": 1}}
    params["fit"]["parity_knn"] = real["fit"]["parity_logistic"] | knn
    tuned = {"task": "digits", "backbone": "glyphs", "start": "backbone", "input": "pixels"}
    tuned |= {"labels_per_class": [5], "epochs": 1, "learning_rate": 0.002}
    params["finetune"] = {"tuned": tuned, "from_block2": tuned | {"input": "features", "tap": "whole"}}
    own = {"source": "module", "factory": "mynets.net:Net", "seed": 0}
    params["freeze"]["small"] = own | {"input": real["freeze"]["small"]["input"]}
    params["teach"] = {"tuned": {"run": "tuned", "backbone": "glyphs", "datasets": ["digits"]}}
    student = real["distill"]["student_tuned"] | {"labels_per_class": [5], "epochs": 1}
    params["distill"] = {"student": student}
    return params


@pytest.fixture(scope="module")
def project(one_core: None, tmp_path_factory: pytest.TempPathFactory) -> Project:  # noqa: ARG001
    made = Project(tmp_path_factory.mktemp("small") / "project")
    write_digits(made.root / "digits")
    images = sorted(made.root.glob("digits/*/*.png"))
    rows = [f"{path.relative_to(made.root)},{path.parent.name}" for path in images]
    (made.root / "digits.csv").write_text("\n".join(["path,label", *rows]))
    (made.root / "mynets").mkdir()
    for name, code in (("__init__", ""), ("blocks", BLOCKS), ("net", NET)):
        (made.root / f"mynets/{name}.py").write_text(code)
    made.set_up(listed())
    return made


def test_every_artefact_lies_where_the_design_says(project: Project) -> None:
    expected = [
        "data/manifests/digits.parquet",
        "data/manifests/digits.excluded.csv",
        "data/backbones/glyphs/backbone.json",
        "data/backbones/glyphs/weights.safetensors",
        "data/features/glyphs/block3/index.json",
        "data/tasks/digits.parquet",
        "data/audits/digits.json",
        "data/models/digits_logistic/model.json",
        "data/predictions/digits_logistic.parquet",
        "data/metrics/runs/digits_logistic.json",
        "data/plots/confusion/digits_logistic.csv",
        "data/plots/curves/digits_logistic.csv",
        "data/comparisons/digits.json",
        "data/report/index.html",
    ]
    assert [path for path in expected if not (project.root / path).is_file()] == []
    assert pq.read_metadata(project.root / "data/manifests/digits.parquet").num_rows == 300
    assert project.read("data/features/glyphs/block3/index.json")["stored"] == 300
    assert "digits_logistic" in (project.root / "data/report/index.html").read_text()


def test_nothing_runs_the_second_time(project: Project) -> None:
    project.settle(listed())
    ran, output = project.repro(listed())
    assert ran == []
    assert "up to date" in output


def test_the_leaderboard_and_the_metrics_are_shown(project: Project) -> None:
    project.settle(listed())
    assert "report: data/report/index.html" in project.run("icecore", "leaderboard")
    assert "accuracy" in project.run("dvc", "metrics", "show")
    assert "extract@glyphs" in project.run("dvc", "dag")


def test_the_plots_of_dvc_are_drawn_without_a_network(project: Project) -> None:
    project.settle(listed())
    project.run("dvc", "plots", "show", "--out", "plots")
    page = (project.root / "plots" / "index.html").read_text()
    assert page.count("vegaEmbed(") == 3  # that of training is empty where nothing is trained further
    assert '"predicted": "3"' in page
    assert '"labels": "5"' in page


def test_a_change_of_labels_does_not_extract(project: Project) -> None:
    project.settle(listed())
    path = project.root / "digits.csv"
    head, first, *rest = path.read_text().splitlines()
    assert first.endswith(",0")
    path.write_text("\n".join([head, first[:-1] + "8", *rest]))
    ran, _ = project.repro(listed())
    assert sorted(ran) == sorted(
        [
            "prepare@digits",
            "split@digits",
            "audit@digits",
            "fit@digits_logistic",
            "evaluate",
            "compare",
            "report",
        ]
    )


def test_another_task_with_its_head_and_training_run_their_own_stages_and_extract_nothing(project: Project) -> None:
    project.settle(listed())
    unextracted = more()  # a tap for which a run from pixels does not wait
    unextracted["extract"]["glyphs"]["taps"]["unread"] = {"node": "block1", "pool": "max"}
    first, before = project.repro(unextracted, "teach@tuned")
    rest, output = project.repro(more())
    ran, output = first + rest, before + output
    assert sorted(first) == ["finetune@tuned", "teach@tuned"]
    heads = ["split@parity", "audit@parity", "fit@parity_knn"]
    runs = ("tuned", "from_block2")
    trained = ["freeze@small", *(f"finetune@{run}" for run in runs), "teach@tuned", "distill@student"]
    assert sorted(ran) == sorted(
        [*heads, *trained, "evaluate", "compare", "report"]
    )  # digits_logistic is not fitted again
    assert "Stage 'extract@glyphs' didn't change, skipping" in output
    audit = project.read("data/audits/parity.json")
    assert list(audit["classes"]["test"]) == ["even", "odd"]
    assert audit["near_duplicates"]["tap"] == "penultimate"
    assert re.search(r"^digits_logistic: accuracy .*, as before$", output, re.MULTILINE)
    assert re.search(r"^student: accuracy [^,]*, [^,]*$", output, re.MULTILINE)
    assert re.search(r"^n5-draw0: \d+ samples per epoch, 50 with labels; teachers: tuned$", output, re.MULTILINE)
    assert project.read("data/models/student/model.json")["teachers"][0]["run"] == "tuned"
    assert list(project.read("data/metrics/distill/student.json")["teachers"]) == ["tuned"]
    assert re.search(r"^block2: 50 rows, .* stored; ", output, re.MULTILINE)
    for run in runs:
        made = project.read(f"data/models/{run}/model.json")
        assert made["fits"][0]["frozen"]["before"] == made["fits"][0]["frozen"]["after"]
        assert (project.root / f"data/models/{run}/backbone/backbone.json").is_file()
        assert project.read(f"data/metrics/runs/{run}.json")["test_rows"] > 50
    made_by_stages = ["digits_logistic", "from_block2", "parity_knn", "student", "tuned"]
    assert sorted(path.name for path in (project.root / "data/models").iterdir()) == made_by_stages
    digests = [path.parent.name for path in (project.root / "data/model_digests").glob("*/digest.json")]
    assert sorted(digests) == made_by_stages
    comparisons = (project.root / "data/comparisons/digits.json").read_text()
    assert all(run in comparisons for run in (*runs, "student", "digits_logistic"))


def test_the_digest_of_a_model_follows_from_the_names_and_contents_of_its_files(
    tmp_path: Path,
) -> None:
    model = tmp_path / "models/run"
    (model / "backbone").mkdir(parents=True)
    digests = []
    for name, text in (("model.json", "1"), ("model.json", "1"), ("model.json", "2"), ("backbone/model.json", "1")):
        (model / name).write_text(text)
        write_digest(model, tmp_path / "model_digests/run")
        digests.append((tmp_path / "model_digests/run/digest.json").read_text())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_no_stage_writes_into_a_file_that_dvc_keeps(project: Project) -> None:
    params = more()
    project.settle(params)
    before = {path: path.stat().st_mtime_ns for path in objects(project)}
    params["split"]["digits"]["seed"] = 1
    params["report"]["title"] = "another"
    project.write(params)
    project.by_hand(*project.run("dvc", "stage", "list", "--name-only").split())
    ran, _ = project.repro(params, "fit@digits_logistic")
    assert sorted(ran) == ["fit@digits_logistic", "split@digits"]  # no audit: the report alone reads it
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert are_whole(project)
    assert lie_once(project)


def test_dvc_freezes_a_network_again_when_a_module_changes_that_its_code_imports(project: Project) -> None:
    params = more()
    project.repro(params, "freeze@small")
    before = project.read("data/backbones/small/backbone.json")
    assert project.repro(params, "freeze@small")[0] == []
    (project.root / "mynets/blocks.py").write_text(BLOCKS.replace("relu", "tanh"))
    assert project.repro(params, "freeze@small")[0] == ["freeze@small"]
    after = project.read("data/backbones/small/backbone.json")
    assert before["architecture"]["code"]["mynets.blocks"] != after["architecture"]["code"]["mynets.blocks"]


def test_a_new_tap_computes_that_tap_and_an_old_one_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "preloaded", False)
    params = listed()
    params["extract"]["glyphs"]["taps"]["block1"] = {"node": "block1", "pool": "mean"}
    ran, output = project.repro(params, "extract@glyphs")
    assert ran == ["extract@glyphs"]
    assert "block1: 300 rows to compute, 0 known" in output
    assert "block3: 0 rows to compute, 300 known" in output


def test_a_wrong_setting_stops_the_first_stage_with_every_problem(project: Project) -> None:
    params = listed()
    params["split"]["digits"]["taget"] = "label"
    params["fit"]["digits_logistic"]["head"] = "logitsic"
    params["prepare"]["digits"]["check"] = "header"  # changed, so that a stage starts
    project.write(params)
    output = project.run("dvc", "repro", expect=255)
    assert "params.yaml: 2 problems" in output
    assert "split.digits: unknown key 'taget'. Did you mean 'target'" in output
    assert "fit.digits_logistic.head: unknown head 'logitsic'. Did you mean 'logistic'" in output
    assert "Traceback" not in output
