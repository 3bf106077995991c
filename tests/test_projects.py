"""Projects in any folder: what `icecore init`, `add`, `demo` and `run` write, refuse and run; and upgrades."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from support.projects import SHIPPED

import pipeline
from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import read_spec
from pipeline.cli import main, project_new
from pipeline.errors import ConfigError, DataError, MissingExtraError
from pipeline.freeze.outline import Outline
from pipeline.projects import code, skeleton
from pipeline.projects.backbone import NamedBackbone
from pipeline.projects.changed_options import changed_backbone_options
from pipeline.projects.data_summary import summarize
from pipeline.projects.pipeline_text import pipeline_text
from stages import project as stages

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
DVC: Mapping[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())


class Said(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    error: str


Command = Callable[..., Said]


@pytest.fixture
def icecore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs the command in this process, and returns what a shell would see."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["icecore", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        status, (out, error) = ended.value.code, capsys.readouterr()
        return Said(1, out, error + status) if isinstance(status, str) else Said(int(status or 0), out, error)

    return run


def write_images(folder: Path, classes: tuple[str, ...] = ("Äpfel", "Birnen"), *, each: int = 8) -> Path:
    """Write class folders of small images whose classes differ in brightness."""
    random = np.random.default_rng(0)
    for place, label in enumerate(classes):
        for number in range(each):
            path = folder / label / f"Bild {number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(100 * place, 100 * place + 99, (16, 16), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small backbone."""
    folder = tmp_path_factory.mktemp("backbones") / "tiny net"
    settings = {"family": "glyphs", "classes": 2, "widths": [4, 4, 8]}
    module = glyphs.GlyphNet(classes=2, widths=(4, 4, 8))
    serialization.write(folder, module, architecture=settings, origin={}, inputs=glyphs.INPUT, classes=["n", "y"])
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of photos below the working directory, in a path with blanks and letters that are not ASCII."""
    place = tmp_path / "mein Ordner é"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "cache"))
    return write_images(Path("meine Fotos"))


# dvc.yaml and the code of stages --------------------------------------------------------------------------------------


def test_a_project_has_the_stages_of_the_repository_with_digests_in_the_place_of_code() -> None:
    own = yaml.safe_load(pipeline_text())
    assert {key: own[key] for key in DVC if key != "stages"} == {key: DVC[key] for key in DVC if key != "stages"}
    assert list(own["stages"]) == list(DVC["stages"])
    for name, stage in DVC["stages"].items():
        here, there = own["stages"][name], stage
        assert here.get("foreach") == there.get("foreach")
        here, there = here.get("do", here), there.get("do", there)
        assert here["cmd"] == there["cmd"].replace(f"python -m stages.{name}", f"icecore stage {name}")
        assert here.get("deps", []) == [dep for dep in there["deps"] if not dep.startswith(("pipeline/", "stages/"))]
        assert here["params"] == [*there.get("params", []), {".icecore/code.json": [f"stages.{name}"]}]
        assert (here["outs"], here["desc"]) == (there["outs"], there["desc"])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of some code, as that of the installed package, and a project beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("stages/fit.py", "stages/evaluate.py", "pipeline/metrics.py"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, name)
    shutil.copytree(ROOT / "pipeline/report", "pipeline/report", ignore=shutil.ignore_patterns("__pycache__"))
    listed = {
        "fit": ["stages/fit.py", "pipeline/metrics.py"],
        "evaluate": ["stages/evaluate.py", "pipeline/metrics.py"],
        "report": ["pipeline/report"],
    }
    table = {name: {"cmd": "x", "deps": [*paths, "data/x"], "outs": []} for name, paths in listed.items()}
    Path("stages.yaml").write_text(yaml.safe_dump({"stages": table}))
    monkeypatch.setattr(code, "INSTALLED", tmp_path)
    monkeypatch.setattr(code, "STAGES", tmp_path / "stages.yaml")
    code.code_of_stages.cache_clear()
    Path("project/.dvc").mkdir(parents=True)
    Path("project/dvc.yaml").write_text("params: [.icecore/code.json]")
    yield tmp_path
    code.code_of_stages.cache_clear()


def add(path: str, text: str) -> None:
    Path(path).write_text(Path(path).read_text() + text)


def test_an_upgrade_changes_the_digests_of_the_stages_whose_code_does_something_else(installed: Path) -> None:
    root = installed / "project"
    assert code.update_digests(root) == ["evaluate", "fit", "report"]
    assert code.update_digests(root) == []
    add("pipeline/metrics.py", "\n# A comment.\n")
    Path("pipeline/report/__pycache__").mkdir()
    Path("pipeline/report/__pycache__/run.cpython-311.pyc").write_bytes(b"x")
    assert code.update_digests(root) == []
    add("pipeline/metrics.py", "\nMORE = 1\n")
    assert code.update_digests(root) == ["evaluate", "fit"]
    add("pipeline/report/page.html", "<br>")  # no Python
    assert code.update_digests(root) == ["report"]
    read = json.loads((root / code.DIGESTS).read_text())
    assert (read["icecore"], list(read["stages"])) == (pipeline.__version__, ["evaluate", "fit", "report"])


def test_a_stage_that_runs_notes_its_own_code_alone(installed: Path) -> None:
    root = installed / "project"
    code.update_digests(root)
    before = json.loads((root / code.DIGESTS).read_text())["stages"]
    add("pipeline/metrics.py", "\nMORE = 1\n")
    code.update_stage_digest("fit", root)
    after = json.loads((root / code.DIGESTS).read_text())["stages"]
    assert [name for name in after if after[name] != before[name]] == ["fit"]
    assert code.update_digests(root) == ["evaluate"]


def test_damaged_digests_are_written_anew_and_other_projects_have_none(installed: Path) -> None:
    root = installed / "project"
    for name in (code.DIGESTS, code.KNOWN):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{")
    assert code.update_digests(root) == ["evaluate", "fit", "report"]
    (root / "dvc.yaml").write_text("stages: {}")
    add("pipeline/metrics.py", "\nMORE = 1\n")
    assert code.update_digests(root) == []
    assert code.update_digests(installed) == []
    assert not (installed / ".icecore").exists()


# What images hold -----------------------------------------------------------------------------------------------------


def write_list(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def rows(header: str, *values: str) -> str:
    """A list of the images of `photos`, with values in turn."""
    files = sorted(path.as_posix() for path in Path("meine Fotos").rglob("*.png"))
    lines = [f"{file},{values[number % len(values)]}" for number, file in enumerate(files)]
    return "\n".join([header, *lines, ""])


# A list's header and values, its options, and what is made of it: kind, target, and the column of paths.
LISTS = {
    "label": ("path,label", ("a", "b"), {}, ("classification", ("label",), "path")),
    "other names": ("file,species", ("a", "b"), {}, ("classification", ("species",), "file")),
    "unknown names": ("wo,was", ("a", "b"), {}, ("classification", ("was",), "wo")),
    "target": ("path,a,b", ("x,1", "y,2"), {"targets": ["b"]}, ("classification", ("b",), "path")),
    "fractions": ("path,age", ("1.5", "2.25", "3.125"), {}, ("regression", ("age",), "path")),
    "flags": ("path,a,b", ("0,1", "1,0", "1,1"), {"targets": ["a", "b"]}, ("multilabel", ("a", "b"), "path")),
    "labels": ("path,tags", ("a;b", "a", "b"), {}, ("multilabel", ("tags",), "path")),
    "a semicolon in a name": ("path,name", ("a;nother", "b;nother"), {}, ("classification", ("name",), "path")),
    "split": ("path,label,split", ("a,train", "b,test"), {}, ("classification", ("label",), "path")),
}


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("name", LISTS)
def test_a_list_says_its_task(name: str, network: Path, icecore: Command) -> None:
    header, values, options, (kind, targets, path) = LISTS[name]
    labels = write_list("Liste.csv", rows(header, *values))
    found = summarize(None, labels=labels, **options)
    assert (found.kind, found.targets, found.config.get("path", "path")) == (kind, targets, path)
    assert found.rows == 16
    if name not in ("other names", "fractions", "labels"):
        return
    chosen = [word for target in options.get("targets", ()) for word in ("--target", target)]
    said = icecore("init", "neu", "--list", labels, "--backbone", network, *chosen)
    assert said.code == 0, said.error
    assert said.out.startswith(f"{Path(labels).resolve()}: 16 images")


def test_many_whole_numbers_are_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("meine Fotos"), ("one",), each=30)
    assert summarize(None, labels=write_list("a.csv", rows("path,n", *map(str, range(30))))).kind == "regression"
    assert summarize(None, labels=write_list("b.csv", rows("path,n", "3", "5"))).kind == "classification"


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("nowhere", {}, r"^nowhere: no such folder or list\. Expected a folder of class folders, <class>/\*\.jpg\.$"),
        ("empty", {}, r"empty: there are no files in it\. Give a folder, a list"),
        ("texts", {}, r"texts: there are no images in it\. Give a folder, a list"),
        (
            "flat",
            {},
            r"flat: no classes: the images are not in class folders\. Expected <class>/\*\.jpg",
        ),
        (
            "single",
            {},
            r"single: expected at least two classes, got one: all\. Put the images",
        ),
        (
            None,
            {"labels": "nowhere.csv"},
            r"^nowhere\.csv: no such list\. Expected a \.csv or \.parquet file",
        ),
        (
            "flat.txt",
            {"labels": "l.csv"},
            r"^flat\.txt: no such folder\. Expected the folder that the paths",
        ),
        (
            "empty",
            {"labels": "l.csv"},
            r"^l\.csv: expected a column of paths of files b.*empty, got path, a, b\. .*png",
        ),
        (None, {"labels": "l.csv"}, r"(?s)got several; name one with `--target`\n  - a: x, y\n  - b: 1, 2$"),
        (None, {"labels": "l.csv", "targets": ["c"]}, r"unknown column of labels 'c'\. Expected one of: a, b\.$"),
    ],
)
def test_images_without_a_task_are_refused(
    images: str | None, options: Any, message: str, photos: Path, icecore: Command
) -> None:
    for name, folder in (("texts/a/b.txt", "texts/a"), ("flat.txt", ".")):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    Path("empty").mkdir()
    Path("flat").mkdir()
    write_images(Path("single"), ("all",))
    for number in (1, 2):
        shutil.copy(photos / "Birnen" / f"Bild {number}.png", f"flat/{number}.png")
    write_list("l.csv", "path,a,b\nflat/1.png,x,1\nflat/2.png,y,2\n")
    with pytest.raises(DataError, match=message):
        summarize(images, **options)
    words = ["--images", images] if images else ["--list", "l.csv"]
    said = icecore("init", "neu/innen", *words)
    assert (said.code, Path("neu").exists()) == (1, False)


def test_splits_and_containers_are_seen(photos: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(photos, Path("split") / split)
    found = summarize("split")
    assert found.splits == {"train": 16, "validation": 16}
    assert found.describe() == (
        "32 images of 2 classes (Birnen 16, Äpfel 16); the data give the split: 16 train, 16 validation."
    )
    images = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * 8}), "bilder.parquet")
    assert summarize("bilder.parquet", image="image").classes == {"a": 8, "b": 8}


# init -----------------------------------------------------------------------------------------------------------------


def test_a_project_is_filled_in_and_checked(photos: Path, network: Path, icecore: Command) -> None:
    said = icecore("init", "Projekt ß", "--images", photos, "--backbone", network)
    assert said.code == 0, said.error
    assert said.out.endswith("next:\n  cd 'Projekt ß'\n  icecore repro\n")
    text = Path("Projekt ß/params.yaml").read_text()
    assert "# The data: 16 images of 2 classes (Birnen 8, Äpfel 8).\n" in text
    params = yaml.safe_load(text)
    digest = read_spec(network).weights_digest[:16]
    assert params["prepare"] == {"photos": {"root": photos.resolve().as_posix()}}
    assert params["freeze"] == {"tiny-net": {"source": "folder", "folder": str(network), "digest": digest}}
    assert params["extract"] == {"tiny-net": {"datasets": ["photos"], "taps": {"penultimate": {"node": "penultimate"}}}}
    sizes = {"train": 0.6, "validation": 0.2, "test": 0.2}
    few = {"labels_per_class": 2, "draws": 5}
    assert params["split"] == {"photos": {"datasets": ["photos"], "sizes": sizes, "stratify": True, "few_shot": few}}
    run = {"task": "photos", "backbone": "tiny-net", "inputs": ["penultimate"], "head": "logistic"}
    assert params["fit"] == {"photos_tiny-net": run, "few_labels_tiny-net": run | {"labels_per_class": [1, 2]}}
    with_digests = json.loads(Path("Projekt ß/.icecore/code.json").read_text())["stages"]
    assert list(with_digests) == list(DVC["stages"])


def test_images_in_the_project_have_paths_of_its_own(photos: Path, network: Path, icecore: Command) -> None:
    assert icecore("init", ".", "--images", photos, "--backbone", network).code == 0
    assert yaml.safe_load(Path("params.yaml").read_text())["prepare"] == {"photos": {"root": "meine Fotos"}}
    assert icecore("check").out.startswith("params.yaml: no problems (")
    said = icecore("init", ".", "--images", photos)
    assert said.error.startswith(
        "error: .: expected a folder without a project, got one with params.yaml, dvc.yaml, .dvc, .icecore/code.json, "
        "data. Nothing was written. Choose another folder, or move these away."
    )


def test_what_the_folder_has_stays(photos: Path, network: Path, icecore: Command) -> None:
    Path("neu").mkdir()
    Path("neu/.gitignore").write_text("mine\n")
    said = icecore("init", "neu", "--images", photos, "--backbone", network)
    assert "kept as they were: .gitignore\n" in said.out
    assert Path("neu/.gitignore").read_text() == "mine\n"


@pytest.mark.usefixtures("photos")
def test_without_images_the_project_says_how_to_add_some(network: Path, icecore: Command) -> None:
    said = icecore("init", "neu", "--backbone", network)
    assert said.out.endswith("next:\n  cd neu\n  icecore add data photos /path/of/photos\n")
    assert list(yaml.safe_load(Path("neu/params.yaml").read_text())) == ["freeze"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a file"], r"error: a file: expected a folder, got a file. Choose another name."),
        (["neu", "--backbone", "mobilnet_v2"], "error: unknown backbone 'mobilnet_v2'. Did you mean 'mobilenet_v2'"),
        (
            ["neu", "--backbone", "resnet18", "--backbone", "vgg11", "--weights-file", "a file"],
            "error: --weights, --weights-file: expected one --backbone with them, got 2.",
        ),
        (
            ["neu", "--backbone", "NET", "--backbone", "NET"],
            "--backbone: expected each once, got tiny-net more",
        ),
        (
            ["neu", "--backbone", "NET", "--weights", "V1"],
            "tiny net: the folder of a backbone contains its weights.",
        ),
        (["neu", "--weights-file", "a file"], "`weights` is --weights here."),
        (["neu", "--weights-file", "missing.pth"], "error: missing.pth: no such weights file. Expected a .safetensors"),
        (
            ["meine Fotos/neu", "--backbone", "NET"],
            "meine Fotos/neu: nothing was written, since the settings would have: 1 problem\n  - prepare.photos.root",
        ),
        (["neu", "--backbone", "NET", "--list", "list.csv"], "`base` is --images, with --list, here."),
    ],
)
def test_what_makes_no_project_leaves_nothing(
    words: list[str], message: str, photos: Path, network: Path, icecore: Command
) -> None:
    Path("a file").write_text("x")
    write_list("list.csv", "path,label\nnowhere.png,a\n")
    before = sorted(Path().rglob("*"))
    said = icecore("init", *[str(network) if word == "NET" else word for word in words], "--images", photos)
    assert said.code == 1
    assert message in said.error
    assert sorted(Path().rglob("*")) == before


@pytest.mark.usefixtures("photos")
def test_a_project_needs_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dvc", None)
    with pytest.raises(MissingExtraError, match=r"^a project: expected the libraries of the extra `pipeline`, got: "):
        skeleton.write_project(Path("neu"), "report: {}\n")
    assert not Path("neu").exists()


@pytest.mark.usefixtures("photos")
def test_git_is_used_where_it_is_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_scm(folder: str, **options: bool) -> bool:
        skeleton.write_project(Path(folder), "report: {}\n", **options)
        return "no_scm" not in (Path(folder) / ".dvc/config").read_text()

    assert not has_scm("without")
    assert has_scm("own", git=True)
    subprocess.run(["git", "init", "-q", "around"], check=True)
    Path("around/.gitignore").write_text("experiments/\n")
    assert has_scm("around/below/project")
    assert not has_scm("around/experiments/project")
    added = ["git", "-C", "around", "add", "--dry-run", "."]
    listed = subprocess.run(added, capture_output=True, text=True, check=True).stdout
    assert "below/project/data/pretrained/.gitignore" in listed
    assert "below/project/.icecore/code.json" in listed
    monkeypatch.setenv("PATH", "")
    assert not has_scm("no git")
    with pytest.raises(ConfigError, match=r"^git: expected the program `git`, got none\. Install it"):
        skeleton.write_project(Path("asked"), "report: {}\n", git=True)


# add ------------------------------------------------------------------------------------------------------------------


def test_entries_are_added_and_comments_stay(photos: Path, network: Path, icecore: Command) -> None:
    assert icecore("init", ".", "--backbone", network).code == 0
    before = Path("params.yaml").read_text()
    said = icecore("add", "data", "photos", photos)
    assert said.code == 0, said.error
    assert "params.yaml: prepare.photos\nparams.yaml: extract.tiny-net\nparams.yaml: split.photos\n" in said.out
    assert said.out.endswith("add fit photos_probe --task photos\n  icecore repro prepare@photos split@photos\n")
    write_images(Path("more"), ("a", "b"))
    assert icecore("add", "data", "more", "more").code == 0
    taps = ["--tap", "block2:mean", "--tap", "penultimate"]
    said = icecore("add", "backbone", "second", network, *taps, "--data", "photos")
    assert said.out.endswith("add fit second_probe --backbone second\n  icecore repro extract@second\n")
    said = icecore("add", "fit", "knn", "--task", "photos", "--backbone", "second", "--head", "knn")
    assert said.out.endswith("next:\n  icecore repro\n  icecore wrong knn\n")
    joined = ["--tap", "block2-mean+penultimate", "--tap", "penultimate"]
    words = [*joined, "--labels-per-class", "1", "--labels-per-class", "2"]
    assert icecore("add", "fit", "few", "--task", "photos", "--backbone", "second", *words).code == 0
    text = Path("params.yaml").read_text()
    params = yaml.safe_load(text)
    assert params["extract"]["tiny-net"]["datasets"] == ["photos", "more"]
    assert params["extract"]["second"] == {
        "datasets": ["photos"],
        "taps": {"block2-mean": {"node": "block2", "pool": "mean"}, "penultimate": {"node": "penultimate"}},
    }
    assert params["fit"]["knn"] == {
        "task": "photos",
        "backbone": "second",
        "inputs": ["block2-mean", "penultimate"],
        "head": "knn",
    }
    assert params["fit"]["few"]["inputs"] == [["block2-mean", "penultimate"], "penultimate"]
    assert params["fit"]["few"]["labels_per_class"] == [1, 2]
    assert set(before.splitlines()) <= set(text.splitlines())
    assert icecore("check").code == 0


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("words", "message", "option"),
    [
        (
            ["fit", "digits_full"],
            "error: fit.digits_full: expected a new name, but `fit` already has this",
            "",
        ),
        (["fit", "new"], "error: --task: needed, unless `split` has exactly one entry; it has: digits, parity.", ""),
        (
            ["fit", "new", "--task", "digits", "--head", "logistik"],
            "fit.new.head: unknown head 'logistik'. Did",
            "`head` is --head here.",
        ),
        (["fit", "a b", "--task", "digits"], "fit.a b: a name has only letters, digits, '-' and '_'", ""),
        (
            ["fit", "new", "--task", "digits", "--tap", "blok3"],
            "unknown tap 'blok3'. Did you mean 'block3'",
            "`inputs` is --tap here.",
        ),
        (
            ["fit", "new", "--task", "digit"],
            "unknown task 'digit'. Did you mean 'digits'",
            "`task` is --task here.",
        ),
        (
            ["backbone", "glyphs", "NET"],
            "error: freeze.glyphs: expected a new name, but `freeze` already has this",
            "",
        ),
        (
            ["backbone", "new", "NET", "--tap", "blok"],
            "extract.new.taps.blok: unknown node 'blok'. Did you",
            "`taps` is --tap here.",
        ),
        (
            ["backbone", "new", "resnet18", "--source", "keras"],
            "freeze.resnet18.source: unknown",
            "`source` is --source here.",
        ),
        (
            ["data", "digits", "meine Fotos"],
            "error: prepare.digits: expected a new name, but `prepare` already ha",
            "",
        ),
        (["data", "new", "nowhere"], "error: nowhere: no such folder or list.", ""),
        (
            ["data", "new", "meine Fotos", "--list", "list.csv"],
            "Name the folder that the paths are relative to in `base`.",
            "`base` is PATH, with --list, here.",
        ),
    ],
)
def test_an_entry_that_check_refuses_is_not_written(
    words: list[str], message: str, option: str, network: Path, icecore: Command
) -> None:
    shutil.copy(SHIPPED, "params.yaml")
    write_list("list.csv", "path,label\nnowhere.png,a\n")
    said = icecore("add", *[str(network) if word == "NET" else word for word in words])
    assert said.code == 1
    assert message in said.error
    assert [line for line in said.error.splitlines() if line.endswith(" here.")] == ([option] if option else [])
    assert Path("params.yaml").read_bytes() == SHIPPED.read_bytes()
    assert [path.name for path in Path().glob(".params*")] == []


# demo, run and stages -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("name", ["demo", "default"])
def test_the_settings_of_the_demo_are_right(name: str) -> None:
    shutil.copy(SHIPPED.with_name(f"{name}.yaml"), "params.yaml")
    assert list(stages.runs(stages.settings(lines=True)))


def test_the_demo_and_a_run_want_a_folder_of_their_own(photos: Path, icecore: Command) -> None:
    message = "meine Fotos: expected an empty folder, got one with Birnen, Äpfel. Choose another."
    assert message in icecore("demo", photos).error
    assert message in icecore("run", photos, "--out", photos).error
    said = icecore("run", "nowhere")
    assert said.error.startswith("error: nowhere: no such folder or list.")
    assert not Path("nowhere-icecore").exists()


@pytest.mark.usefixtures("photos")
def test_a_network_of_the_project_itself_is_frozen_and_no_runs_are_no_error(
    network: Path, icecore: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert icecore("init", "neu", "--backbone", network).code == 0
    monkeypatch.chdir("neu")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(Path.cwd()))])
    code = "from pipeline.backbones.glyphs import GlyphNet\n\n\nclass Net(GlyphNet):\n    pass\n"
    Path("own_net_of_mine.py").write_text(code)
    source = "{source: module, factory: own_net_of_mine.Net, arguments: {classes: 2, widths: [4]}, seed: 0, "
    own = "input: {mode: L, resize: [16, 16], mean: [0.5], std: [0.5]}}"
    Path("params.yaml").write_text(f"freeze:\n  own: {source}{own}\n")
    assert icecore("check").code == 0
    listed = "no entries of extract, fit, finetune, distill; default settings of audit, evaluate, compare, report"
    assert icecore("stage", "settings").out == f"params.yaml: {listed}\n"
    for words in (("freeze", "own"), ("evaluate",), ("compare",), ("report",)):
        said = icecore("stage", *words)
        assert said.code == 0, said.error
    assert Path("data/code/module/own_net_of_mine.py").is_symlink()
    assert Path("data/report/index.html").is_file()


@pytest.mark.usefixtures("photos")
def test_a_stage_that_is_none_is_refused(icecore: Command) -> None:
    said = icecore("stage", "fitt", "x")
    assert said.error.startswith("error: unknown stage 'fitt'. Did you mean 'fit'")


def test_the_error_of_a_stage_names_the_options_of_a_run(tmp_path: Path) -> None:
    change = f"Change {tmp_path / 'params.yaml'} and run again; or remove {tmp_path}, to run with other options."
    for error, lines in (
        ("no connection: set `file` to its path, with its `sha256`.", ["`file` is --weights-file here.", change]),
        (
            "more than `max_rejected` allows",
            ["`max_rejected` is a setting of a project's params.yaml, see `icecore settings`.", change],
        ),
        ("a bug", []),
    ):
        assert project_new._name_options(error, tmp_path) == lines


@pytest.mark.parametrize(
    ("model", "weights", "file", "changed"),
    [
        ("net", None, None, []),
        ("", "V1", "a.pth", []),
        ("net", "V2", "a.pth", ["--weights V2"]),
        ("", "V1", "b.pth", ["--weights-file b.pth"]),
        ("other", "V1", "a.pth", ["--backbone other", "--weights V1", "--weights-file a.pth"]),
        ("timm_net.b", None, None, ["--backbone timm_net.b"]),
    ],
)
def test_options_of_a_backbone_are_compared_with_its_settings(
    model: str, weights: str | None, file: str | None, changed: list[str], tmp_path: Path
) -> None:
    digests = {"a.pth": "12345", "b.pth": "54321"}
    named = {"file": (tmp_path / file).as_posix(), "sha256": digests[file]} if file else {}
    name, _, tag = (model or "net").partition(".")
    asked = {"source": "timm", "model": name, "weights": tag or weights, **named}
    backbone = NamedBackbone(name, {key: value for key, value in asked.items() if value}, Outline({}, {}))
    params = {
        "freeze": {
            "net": {"source": "timm", "model": "net", "weights": "V1", "file": "../a.pth", "sha256": "1234567"},
            "timm_net": {"source": "timm", "model": "timm_net", "weights": "a"},
        }
    }
    found = changed_backbone_options(
        params, tmp_path / "project", {model: backbone}, weights=weights, weights_file=Path(file) if file else None
    )
    assert found == changed


def test_a_run_goes_on_with_the_project_of_its_folder_and_refuses_other_options(
    photos: Path, network: Path, icecore: Command
) -> None:
    assert icecore("init", "eins", "--images", photos, "--backbone", network).code == 0
    before = sorted(Path("eins").rglob("*"))
    said = icecore("run", "meine Fotos/Birnen", "--out", "eins")
    assert "eins: expected a project on " in said.error
    Path("w.pth").write_bytes(b"w")
    options = ["--backbone", "resnet18", "--weights", "IMAGENET1K_V1", "--weights-file", "w.pth"]
    empty = " No features were computed there yet."
    for words, named in (
        (options, "--backbone resnet18, --weights IMAGENET1K_V1, --weights-file w.pth"),
        (options[2:], "--weights IMAGENET1K_V1, --weights-file w.pth"),
        (["--target", "size", "--image", "bytes"], "--image bytes, --target size"),
    ):
        assert icecore("run", photos, "--out", "eins", *words).error == (
            f"error: eins: expected a project with {named}, got one with other settings. Nothing was run.{empty} "
            f"Change {Path('eins/params.yaml')}, or remove the folder, or choose another with `--out`."
        )
        (Path("eins") / "data" / "features" / "net").mkdir(exist_ok=True)
        empty = ""
    assert {*Path("eins").rglob("*")} - {*before} == {Path("eins/data/features/net")}
