"""`icecore check` looks at what params.yaml names: data, weights, models, nodes, prepared data sets, starts of runs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.files import sha256_file
from pipeline.manifest import ManifestPaths
from pipeline.readers.sample_key import content_key
from pipeline.settings.params import with_lines
from stages import check_files_and_models, project

Problems = Callable[[str], list[str]]

BACKBONE = "freeze: {net: {source: torchvision, model: squeezenet1_1, weights: IMAGENET1K_V1}}\n"
TAPS = "extract: {net: {datasets: [pets], taps: {last: {node: penultimate}, fire: {node: fire9, pool: mean}}}}\n"
DATA = "prepare: {pets: {root: pets}, more: {root: pets}}\n"
TASK = "split: {pets: {datasets: [pets], few_shot: {labels_per_class: 5}}, both: {datasets: [pets, more]}}\n"
SOME = "<digest of some.pth>"
PROJECT = DATA + BACKBONE + TAPS + TASK
OWN = (
    "freeze: {a: {source: module, factory: ownnets.small.Small, arguments: {width: 8}, seed: 0, "
    "input: {resize: [8, 8], mean: [0, 0, 0], std: [1, 1, 1]}}}"
)
NETWORKS = """
from torch import nn

class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(3, width, 3)

    def forward(self, images):
        return self.layer(images).mean((2, 3))

class Broken(nn.Module):
    def __init__(self):
        raise RuntimeError("no server")
"""


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Problems:
    """A function that returns the problems of a params.yaml, in a project with a folder of pets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ownnets"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "0.png").touch()

    def check(text: str) -> list[str]:
        Path("params.yaml").write_text(text)
        values, found = project.examine()
        return [*found, *check_files_and_models.find_problems(values)]

    return check


def test_what_is_right_has_no_problem(problems: Problems) -> None:
    run = "fit: {probe: {task: pets, backbone: net, inputs: [last, fire]}}\n"
    tuned = (
        "finetune: {tuned: {task: pets, backbone: net, start: probe, input: pixels, train: {from_tap: fire9},"
        " unfreeze: {1: fire8}}}\n"
    )
    sample = "sample: {digits: {source: digits}}\n"
    made = DATA.replace("}\n", ", digits: {root: data/raw/digits}, far: {root: 's3://bucket/photos'}}\n")
    assert problems(sample + made + BACKBONE + TAPS + TASK + run + tuned) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "prepare: {a: {root: nowhere}}",
            "prepare.a: nowhere: no such folder or list. Set `root` to the folder, ",
        ),
        (
            "prepare: {a: {root: .}}",
            "prepare.a.root: expected a folder that holds no outputs of stages, got ., with data",
        ),
        (
            "prepare: {a: {root: pets, folders: [cat, emu]}}",
            "prepare.a: pets/emu: no such folder. `folders` names",
        ),
        (
            "prepare: {a: {root: some.csv, base: nowhere}}",
            "prepare.a.base: nowhere: no such folder. Set it to the folder that",
        ),
        (
            "prepare: {a: {root: some.csv, path: file}}",
            "prepare.a: some.csv: the list's columns are not as expected: unkn",
        ),
        (
            "prepare: {a: {root: some.csv, columns: [lable]}}",
            "prepare.a: some.csv: the list's columns are not as expecte",
        ),
        (
            "freeze: {a: {source: torchvision, model: squeezenet1_2}}",
            "freeze.a: unknown torchvision classification model 'squeezenet1_2'. Did you mean 'squeezenet1_1'",
        ),
        (
            "freeze: {a: {source: torchvision, model: squeezenet1_1, weights: V2}}",
            "freeze.a: squeezenet1_1: unknown weights 'V2'. Expected one of: DEFAULT, IMAGENET1K_V1.",
        ),
        (
            BACKBONE.replace("IMAGENET1K_V1", "IMAGENET1K_V1, file: nowhere.pth, sha256: '12345678'"),
            "freeze.net.file: nowhere.pth: no such file. Name the file of weights.",
        ),
        (
            BACKBONE.replace("IMAGENET1K_V1", "IMAGENET1K_V1, file: some.pth, sha256: '12345678'"),
            "freeze.net.file: some.pth: expected a SHA-256 that begins with 12345678, got ",
        ),
        (
            BACKBONE.replace("IMAGENET1K_V1", "IMAGENET1K_V1, input: {mode: L, mean: [0.5, 0.5]}"),
            "freeze.net: `input` makes no image:",
        ),
        (
            "freeze: {a: {source: module, factory: nowhere.Net, seed: 0, input: {resize: [8, 8], mean: [0, 0, 0], std: "
            "[1, 1, 1]}}}",
            "freeze.a: nowhere:Net: expected a module that Python can import, but there is no module 'nowhere'.",
        ),
        ("freeze: {a: {source: folder, folder: nowhere, digest: '12345678'}}", "freeze.a: nowhere"),
        (
            DATA + BACKBONE + TAPS.replace("fire9, pool: mean", "fire10"),
            "extract.net.taps.fire: unknown node 'fire10'. Did you mean 'fire9'",
        ),
        (
            DATA + BACKBONE + TAPS.replace("mean", "cls"),
            "extract.net.taps.fire: pooling 'cls' needs tokens, but a row has the shape (512, 13, 13). Use none or ",
        ),
        (
            DATA
            + BACKBONE
            + TASK
            + "finetune: {a: {task: pets, backbone: net, start: backbone, input: pixels, train: {from_tap: no}}}",
            "finetune.a.train.from_tap: unknown node 'no'.",
        ),
        (
            DATA + BACKBONE + TAPS.replace("fire9, pool: mean", "Penultimat"),
            "extract.net.taps.fire: unknown node 'Penultimat'. Did you mean 'penultimate'? `icecore layers "
            "squeezenet1_1` lists its nodes.",
        ),
        (
            "freeze: {a: {source: torchvision, model: mobilenet_v2, file: some.pth, sha256: '" + SOME + "'}}",
            "freeze.a: mobilenet_v2: expected `weights` with `file`, since the model's published weights diff",
        ),
        (
            OWN.replace("Small", "Smal"),
            "freeze.a: ownnets.small: unknown name 'Smal'. Did you mean 'Small'",
        ),
        (
            OWN.replace("width: 8", "widht: 8"),
            "freeze.a: ownnets.small:Small: expected a network for the arguments {'widht': 8}, got TypeError: ",
        ),
        (
            OWN.replace("Small", "Broken").replace("{width: 8}", "{}"),
            "freeze.a: ownnets.small:Broken: expected a network for the arguments {}, got RuntimeError: no server. Co",
        ),
        (
            OWN.replace("ownnets.small.Small", "ownnets/small.py"),
            "freeze.a.factory: expected the import path of a class or a function, such as mynets.small.Net for the c",
        ),
        (
            OWN.replace("seed: 0", f"file: some.pth, sha256: '{SOME}'"),
            "freeze.a: ownnets.small:Small from some.pth: the weights do not fit the architecture, 3 keys differ. The ",
        ),
        (
            PROJECT + "fit: {a: {task: pets, backbone: net, inputs: [last], head: knn, params: {neighbours: 5}}}",
            "fit.a.params.neighbours: knn (KNeighborsClassifier): unknown parameter 'neighbours'. Did you mean 'n_neig",
        ),
        (
            PROJECT + "fit: {a: {task: pets, backbone: net, inputs: [last], head: sklearn.svm.SVCC}}",
            "fit.a.head: head 'sklearn.svm:SVCC': expected a class of scikit-learn's kind with fit, predict, get_par",
        ),
        (
            PROJECT
            + "fit: {a: {task: pets, backbone: net, inputs: [last], head: {knn: {}, forest: {n_estimators: 0}}}}",
            "fit.a.head.forest.n_estimators: forest (RandomForestClassifier): expected a whole number in the range [1,",
        ),
        (
            PROJECT + "fit: {a: {task: pets, backbone: net, inputs: [last], head: knn, params: {weights: far}}}",
            "fit.a.params.weights: knn (KNeighborsClassifier): expected one of distance, uniform, a callable or null, "
            "got 'far'.",
        ),
        (
            PROJECT + "fit: {a: {task: pets, backbone: net, inputs: [last], search: {parameter: C, values: [0, 1]}}}",
            "fit.a.search.values: logistic (LogisticRegression): expected a number in the range (0.0, inf] for C, got ",
        ),
        (
            PROJECT + "fit: {none: {task: pets, backbone: net, inputs: [last], head: lda, params: {shrink: 1}}}",
            "fit.none.params.shrink: lda (LinearDiscriminantAnalysis): unknown parameter 'shrink'. Did you mean 'shri",
        ),
        (
            DATA + BACKBONE + TASK + "fit: {a: {task: pets, backbone: net, inputs: [last]}}",
            "fit.a.backbone: `freeze` has an entry 'net', and `extract` has none. Add `extract.net`, or name one of",
        ),
        (
            DATA + BACKBONE + TAPS + "fit: {a: {task: more, backbone: net, inputs: [last]}}",
            "fit.a.task: `prepare` has an entry 'more', and `split` has none. Add `split.more`, or name one of: (the",
        ),
        (
            "prepare: {list: {root: some.csv}}\nsplit: {a: {datasets: [list], group: patient}}",
            "split.a: list: unknown column 'patient'. Expected one of: label.",
        ),
    ],
)
def test_what_is_not_there_is_the_one_problem(problems: Problems, text: str, problem: str) -> None:
    torch.save({"weight": torch.zeros(1)}, "some.pth")
    Path("some.csv").write_text("path,label\n0.png,cat\n1.png,dog\n")
    Path("ownnets").mkdir()
    Path("ownnets/__init__.py").touch()
    Path("ownnets/small.py").write_text(NETWORKS)
    assert not sha256_file(Path("some.pth")).startswith("12345678")
    digest = sha256_file(Path("some.pth"))
    (line,) = [one for one in problems(text.replace(SOME, digest)) if not one.startswith("fit.none: expected another")]
    assert line.startswith(problem)


MISTAKES = """
prepare:
  pets: {root: pets, chek: header}
freeze:
  net: {source: torchvison, model: squeezenet1_1}
extract:
  net: {datasets: [pets], taps: {last: {node: penultimat}, fire: {node: fire9, pol: mean}}, batch_size: many}
split:
  pets: {datasets: pets, target: lable}
fit:
  a: {tsk: pest, backbone: net, inputs: [lst]}
  b: {task: pets, backbone: net, head: knn, params: {neighbours: 5}}
  none: {task: pets, backbone: nett, inputs: [last]}
  2024: {task: pets, backbone: net, inputs: [last], refit: maybe}
finetune:
  t: {task: pets, backbone: net, start: bb, input: pixels, epochs: 0, unfreeze: {1: fir7}}
reprot: {}
"""
FOUND = """
unknown section 'reprot'. Did you mean 'report'; 17
prepare.pets: unknown key 'chek'. Did you mean 'check'; 3
freeze.net.source: unknown value 'torchvison'. Did you mean 'torchvision'; 5
extract.net.taps.fire: unknown key 'pol'. Did you mean 'pool'; 7
extract.net.batch_size: expected a whole number or auto, got 'many'.; 7
split.pets.datasets: expected a list, got 'pets'.; 9
fit.a: unknown key 'tsk'. Did you mean 'task'; 11
fit.b.inputs: this key is missing.; 12
fit.2024: expected text as a name, got 2024; 14
fit.2024.refit: expected true or false, got 'maybe'.; 14
fit.none: expected another name, since `teacher: none` means no teacher.; 13
fit.a.task: unknown task 'pest'. Did you mean 'pets'; 11
fit.a.inputs: unknown tap 'lst'. Did you mean 'last'; 11
fit.none.backbone: unknown backbone 'nett'. Did you mean 'net'; 13
finetune.t.start: unknown start 'bb'. Did you mean 'b'; 16
finetune.t.epochs: expected greater than or equal to 1, got 0.; 16
finetune.t: `unfreeze` has nothing to add where all is trained; 16
extract.net.taps.last: unknown node 'penultimat'. Did you mean 'penultimate'?; 7
finetune.t.unfreeze.1: unknown node 'fir7'; 16
split.pets: pets: unknown column 'lable'. Did you mean 'label'; 9
fit.b.params.neighbours: knn (KNeighborsClassifier): unknown parameter 'neighbours'. Did you mean 'n_neighbors'; 12
"""


def test_no_mistake_hides_another_and_each_has_its_line(problems: Problems) -> None:
    found = with_lines(problems(MISTAKES), Path("params.yaml"))
    expected = [line.split("; ") for line in FOUND.strip().splitlines()]
    for message, line in expected:
        (one,) = [text for text in found if text.startswith(message)]
        assert one.endswith(f" (line {line})"), one
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("group: patient", "unknown column 'patient'. Expected one of: label."),
        ("levels: [family]", "unknown column 'family'. Expected one of: label."),
        ("by: domain, domains: {train: [cats], test: [dogs]}", "`domains` of a task on pets: unknown domain 'cats'."),
        ("target: lable", "unknown column 'lable'. Did you mean 'label'?"),
        ("rename: {emu: bird}", "`rename` of a task on pets: unknown class 'emu'."),
        ("use: {val: test}", "`use` of a task on pets: the data have no splits. Leave it out."),
    ],
)
def test_tasks_are_tried_on_data_sets_before_and_after_they_are_prepared(
    problems: Problems, options: str, problem: str
) -> None:
    text = f"prepare: {{pets: {{root: pets}}}}\nsplit: {{pets: {{datasets: [pets], {options}}}}}\n"
    (line,) = problems(text)
    assert line.startswith("split.pets: ")
    assert problem in line
    assert line.endswith("(By the names of files and the lists.)")
    keys = [content_key(str(row).encode()) for row in range(40)]
    paths = ManifestPaths(project.MANIFESTS, "pets").rows
    paths.parent.mkdir(parents=True)
    pq.write_table(pa.table({"key": keys, "path": keys, "label": ["cat", "dog"] * 20}), paths)
    (line,) = problems(text)
    assert line.startswith("split.pets: ")
    assert problem in line
    assert line.endswith("(By the last `icecore repro prepare@pets`.)")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "fit: {a: {task: both, backbone: net, inputs: [last]}}",
            "fit.a.task: both uses more, which net is not extracted for. Add to `extract.net.datasets`, or leave",
        ),
        (
            "finetune: {a: {task: both, backbone: net, start: backbone, input: features, tap: map}}",
            "finetune.a.task: both uses more, which net is not extracted for.",
        ),
        (
            "fit: {a: {task: pets, backbone: net, inputs: [fire, [fire, last]]}}\n"
            "finetune: {b: {task: pets, backbone: net, start: a, input: pixels}}",
            "finetune.b.start: expected a run of fit with a head on the input of the last layer, got a on fire, fi",
        ),
        (
            "fit: {a: {task: pets, backbone: net, inputs: [last], head: forest}}\n"
            "finetune: {b: {task: pets, backbone: net, start: a, input: pixels}}",
            "finetune.b.start: expected a run of fit with one linear head, got a with forest. Fit `head: logistic`",
        ),
        (
            "fit: {a: {task: pets, backbone: net, inputs: [last], labels_per_class: [1, 5]}}\n"
            "finetune: {b: {task: pets, backbone: net, start: a, input: pixels, labels_per_class: [2]}}",
            "finetune.b.start: expected a run of fit with `labels_per_class: [2]`, got a with [1, 5].",
        ),
    ],
)
def test_runs_over_rows_not_extracted_and_starts_without_a_head(problems: Problems, text: str, problem: str) -> None:
    backbone = "freeze: {net: {source: folder, folder: nowhere, digest: '12345678'}}\n"
    taps = TAPS.replace("}}}}\n", "}, map: {node: fire9}}}}\n")
    first, *_ = problems(DATA + backbone + taps + TASK + text)
    assert first.startswith(problem)
