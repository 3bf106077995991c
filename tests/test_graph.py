"""What a stage waits for, by DVC's own graph: what it reads, and as little else as DVC can say."""

import json
import sys

import pytest
from support.projects import Project, default

ANCESTORS = """
import json, networkx
from dvc.repo import Repo
graph = Repo(".").index.graph
print(json.dumps({one.addressing: sorted(s.addressing for s in networkx.descendants(graph, one)) for one in graph}))
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every stage of the default settings and of two more backbones, with the stages that run before it."""
    made = Project(tmp_path_factory.mktemp("graph") / "project")
    params = default()
    network = {"source": "torchvision", "model": "squeezenet1_1"}
    params["freeze"] |= {"other": network, "unstored": network}
    params["extract"]["other"] = {"datasets": ["glyphs"], "taps": {"penultimate": {"node": "penultimate"}}}
    run = params["finetune"]["digits_tuned"]
    params["finetune"] |= {"unstored_tuned": run | {"backbone": "unstored"}}
    params["teach"] = {
        "network": {"run": "unstored_tuned", "backbone": "unstored", "datasets": ["digits"]},
        "plain": {"run": "backbone", "backbone": "unstored", "datasets": ["digits"]},
        "head": params["teach"]["head"],
    }
    params["distill"] = {"student": params["distill"]["student_tuned"] | {"teacher": "network"}}
    made.write(params)
    made.run("icecore", "check")
    shown: dict[str, list[str]] = json.loads(made.run(sys.executable, "-c", ANCESTORS).splitlines()[-1])
    return {stage: set(found) for stage, found in shown.items()}


@pytest.mark.parametrize(
    ("stage", "extractions"),
    [
        ("finetune@digits_tuned", set()),  # from pixels
        ("finetune@digits_from_block1", {"extract@glyphs"}),
        ("finetune@unstored_tuned", set()),
        ("teach@network", set()),
        ("teach@plain", set()),
        ("teach@head", {"extract@glyphs"}),  # through the run of fit
        ("fit@digits_full", {"extract@glyphs"}),
        ("distill@student", {"extract@glyphs"}),  # through the teacher `head`: a stage of distill waits for all of them
    ],
)
def test_a_stage_waits_for_the_extractions_that_it_may_read(
    before: dict[str, set[str]], stage: str, extractions: set[str]
) -> None:
    assert {one for one in before[stage] if one.startswith("extract@")} == extractions


def test_nothing_but_the_report_waits_for_audits(before: dict[str, set[str]]) -> None:
    assert {stage for stage, found in before.items() if any(one.startswith("audit@") for one in found)} == {"report"}
    assert before["report"] >= {"audit@digits", "audit@parity"}
