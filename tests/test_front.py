"""What a newcomer types first: `--help` of a stage, paths as text, and arguments of a wrong type."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import embed, manifest
from pipeline.backbones import serialization
from pipeline.backbones.spec import read_spec
from pipeline.cli.info import describe
from pipeline.errors import DataError, PipelineError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import as_path
from pipeline.finetune.setup import Paths
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.freeze.config import Pretrained
from pipeline.freeze.run import freeze
from pipeline.heads import saved
from pipeline.manifest import ManifestPaths
from pipeline.predictions import PredictionsFile
from pipeline.split.config import SplitConfig
from pipeline.split.run import split
from pipeline.store.features import Features
from pipeline.store.key_arrays import from_hex, to_hex
from pipeline.task import Task
from stages import project

STAGES = sorted(path.stem for path in Path(project.__file__).parent.glob("*.py") if "run(main)" in path.read_text())
NAMELESS = {"compare", "report", "settings"}
"""Stages that take no name of an entry."""


@pytest.mark.parametrize("name", STAGES)
def test_the_help_of_a_stage_says_how_to_call_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any folder, and without doing anything."""
    monkeypatch.chdir(tmp_path)
    stage = importlib.import_module(f"stages.{name}")
    for flag in ("--help", "-h"):
        monkeypatch.setattr(sys, "argv", [name, flag])
        project.run(stage.main)
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count(f"usage: python -m stages.{name} ") == 2
    assert f"`python -m stages.{name}" in said.out
    assert stage.main.__doc__.strip().splitlines()[0] in said.out
    assert ("  NAME " in said.out) == (name not in NAMELESS)
    assert ("--lr-range" in said.out) == (name == "finetune")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", STAGES)
def test_an_argument_that_a_stage_does_not_take_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = importlib.import_module(f"stages.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--verbos"])
    with pytest.raises(SystemExit, match=rf"stages.{name}: unknown option '--verbos'. Did you mean '--verbose'\?"):
        project.run(stage.main)
    monkeypatch.setattr(sys, "argv", [name, "digts", "--quiet"])
    message = f"error: python -m stages.{name}: expected options only, got 'digts'. The stage takes all of params.yaml"
    with pytest.raises(SystemExit, match=message if name in NAMELESS else "unknown entry of .* 'digts'"):
        project.run(stage.main)


NEITHER = "no/such/folder"
SETTINGS = ExtractConfig(datasets=("a",), taps={"last": {"node": "penultimate"}})
FIT = FitConfig(task="t", backbone="b", inputs=("last",))


def extract_to(out: Any) -> None:
    extract(SETTINGS, backbone=NEITHER, manifests=NEITHER, out=out, cache_root=NEITHER)


def fit_to(path: Any) -> None:
    fit(FIT, task=path, features=NEITHER, models=NEITHER, predictions=NEITHER)


def evaluate_of(path: Any) -> None:
    numbers = dict.fromkeys(("model", "numbers", "tables", "confusion", "curve"), NEITHER)
    evaluate(EvaluateConfig(), predictions=path, task=NEITHER, **numbers)


def freeze_to(folder: Any) -> None:
    freeze(Pretrained(source="pretrained", network="net"), folder, pretrained=NEITHER)


CALLS: list[tuple[str, Callable[[Any], Any], str]] = [
    ("Features.open: folder", Features.open, "not features"),
    ("Task.read: path", Task.read, "no such task"),
    ("PredictionsFile.open: path", PredictionsFile.open, "no such predictions"),
    ("load: folder", saved.load, "expected a run's folder with model.json"),
    ("manifest.read: folder", lambda path: manifest.read(path, "photos"), "no such manifest"),
    ("read: folder", serialization.read, "not a backbone"),
    ("read_spec: folder", read_spec, "not a backbone"),
    ("extract: out", extract_to, "not a backbone"),
    ("fit: task", fit_to, "no such task"),
    ("evaluate: predictions", evaluate_of, "no such predictions"),
    ("describe: path", describe, "no such file or folder"),
    ("split: manifests", lambda path: split(SplitConfig(datasets=("photos",)), path), "no such manifest"),
    ("freeze: folder", freeze_to, "not a backbone"),
    ("job: data", lambda path: embed.job("resnet18", ["penultimate"], path), "no such folder or list"),
]


@pytest.mark.parametrize(("what", "call", "message"), CALLS, ids=[what for what, _, _ in CALLS])
def test_a_path_is_text_or_a_path_and_another_type_is_named(
    what: str, call: Callable[[Any], Any], message: str
) -> None:
    for path in (NEITHER, Path(NEITHER)):
        with pytest.raises(PipelineError, match=message):
            call(path)
    for value, shown in ((3, "int 3"), (None, "NoneType None"), (b"data", "bytes b'data'")):
        with pytest.raises(TypeError, match=rf"^{what}: expected a path as str or Path, got {shown}\.$"):
            call(value)


def test_a_path_of_bytes_is_no_path() -> None:
    class Bytes:
        def __fspath__(self) -> bytes:
            return b"data"

    with pytest.raises(TypeError, match=r"a: expected a path as str or Path, got Bytes "):
        as_path(Bytes(), "a")  # type: ignore[arg-type]


def test_paths_of_a_run_are_text_or_paths() -> None:
    given: dict[str, Any] = {field.name: f"data/{field.name}" for field in fields(Paths)}
    made = Paths(**given)
    assert made == Paths(**{name: Path(path) for name, path in given.items()})
    assert Paths(**{**given, "start": None}).start is None
    with pytest.raises(TypeError, match=r"^Paths: task: expected a path as str or Path, got int 3\.$"):
        Paths(**{**given, "task": 3})
    assert ManifestPaths("data", "a").rows == Path("data/a.parquet")  # type: ignore[arg-type]


def test_one_tap_as_a_text_is_not_taken_for_a_list() -> None:
    message = r"job: taps: expected a list of texts such as \['penultimate'\], got the text 'penultimate'\."
    with pytest.raises(TypeError, match=message):
        embed.job("resnet18", "penultimate", ".")


def test_what_is_read_from_text_is_what_is_read_from_a_path(tmp_path: Path) -> None:
    rows = [{"key": f"{number:032x}", "target": "a", "split": "train"} for number in range(3)]
    file = tmp_path / "t.parquet"
    Task(pa.Table.from_pylist(rows)).write(file)
    assert Task.read(str(file)).table == Task.read(file).table


@pytest.mark.parametrize(
    ("keys", "shown", "error"),
    [
        ("0" * 32, "str '000", TypeError),
        (3, "int 3", TypeError),
        ([3], "int 3", TypeError),
        (["0" * 32, b"0" * 32], "bytes b'000", TypeError),
        (["0" * 31], "str '000", DataError),
        (["0" * 31, "0" * 33], "str '000", DataError),
        (["g" * 32], "str 'ggg", DataError),
        (["0" * 32, " " * 32], "str '   ", DataError),
    ],
)
def test_what_is_no_key_is_named(keys: Any, shown: str, error: type[Exception]) -> None:
    message = rf"^keys: expected a list of strings of 32 hex digits each, or an array of dtype S16, got {shown}"
    with pytest.raises(error, match=message):
        from_hex(keys)


def test_keys_may_come_in_any_order_of_any_iterable() -> None:
    texts = ["0" * 31 + "A", "f" * 32]
    assert to_hex(from_hex(iter(texts))) == [text.lower() for text in texts]
    assert to_hex(from_hex([])) == []
