"""The `icecore` command: what it says of every artefact and of settings, and how it fails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support import shards
from support.model_records import network
from support.projects import SHIPPED

from pipeline import manifest
from pipeline.cli import main
from pipeline.cli.extract_folder import naming_options
from pipeline.compare.config import CompareConfig
from pipeline.compare.run import compare
from pipeline.errors import StoreError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.files import write_json
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.readers.sample_key import content_key
from pipeline.store import cache, index, key_arrays
from pipeline.store.features import Features
from pipeline.store.shard_format import Layout
from pipeline.task import Task

ROOT = Path(__file__).parent.parent
PARAMS = SHIPPED
RUN = "digits_full"


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
        code, (out, error) = ended.value.code, capsys.readouterr()
        # Python prints a text that it is ended with, and ends with 1.
        return Said(1, out, error + code) if isinstance(code, str) else Said(int(code or 0), out, error)

    return run


def shell(*command: str | Path, cwd: Path) -> Said:
    """A command in a fresh process that finds this project's code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one small artefact of every kind, written by the code that writes them in earnest."""
    from pipeline.backbones import glyphs
    from pipeline.backbones import serialization as artefact

    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = [
        {"key": content_key(f"{label}{number}".encode()), "target": label, "split": split}
        for label in ("no", "yes")
        for number, split in enumerate(["train"] * 4 + ["validation", "test", "test"])
    ]
    rows.sort(key=lambda row: row["key"])
    Task(pa.Table.from_pylist(rows)).write(folder / "tasks" / "digits.parquet")

    schema = pa.schema([*manifest.FILES_SCHEMA, ("label", pa.string())])
    files = [{"key": row["key"], "path": f"{row['key']}.png", "size": 9, "label": row["target"]} for row in rows]
    paths = manifest.ManifestPaths(folder / "manifests", "digits")
    paths.files.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(files, schema=schema), paths.rows)
    pq.write_table(pa.Table.from_pylist(files, schema=manifest.FILES_SCHEMA), paths.files)

    artefact.write(
        folder / "backbones" / "tiny",
        glyphs.GlyphNet(classes=2, widths=(4,)),
        architecture={"family": "glyphs", "classes": 2, "widths": [4]},
        origin={"source": "pretrained"},
        inputs=glyphs.INPUT,
        classes=["no", "yes"],
    )

    tap = folder / "features" / "tiny" / "penultimate"
    values = random.normal(size=(len(rows), 3)).astype(np.float16)
    layout = Layout("ab" * 32, "float16", (3,))
    order = np.argsort(key_arrays.from_hex(row["key"] for row in rows))
    held = key_arrays.from_hex(row["key"] for row in rows)[order]
    index.commit(
        tap,
        identity={"node": "penultimate", "pool": "none", "dtype": "float16", "weights": "cd" * 32},
        layout=layout,
        shards=[shards.write(tap, held, values[order], layout)],
        keys=[held],
        wanted=held,
        rejected={},
    )

    fit(
        FitConfig(task="digits", backbone="tiny", inputs=("penultimate",), validation="split"),
        task=folder / "tasks" / "digits.parquet",
        features=folder / "features" / "tiny",
        models=folder / "models" / RUN,
        predictions=folder / "predictions" / f"{RUN}.parquet",
    )
    evaluate(
        EvaluateConfig(resamples=100),
        predictions=folder / "predictions" / f"{RUN}.parquet",
        task=folder / "tasks" / "digits.parquet",
        model=folder / "models" / RUN,
        numbers=folder / "metrics" / f"{RUN}.json",
        tables=folder / "plots" / f"{RUN}.json",
        confusion=folder / "plots" / "confusion" / f"{RUN}.csv",
        curve=folder / "plots" / "curves" / f"{RUN}.csv",
    )
    compare(
        CompareConfig(resamples=100),
        task=folder / "tasks" / "digits.parquet",
        predictions=folder / "predictions",
        runs={RUN: json.loads((folder / "plots" / f"{RUN}.json").read_text())},
        out=folder / "comparisons" / "digits.json",
    )
    return folder


# Help ----------------------------------------------------------------------------------------------------------------

COMMANDS = [command.callback.__name__ for command in main.app.registered_commands if command.callback]


def test_help_loads_no_library_that_is_slow_to_load(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pipeline.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "finally:\n    print('loaded', *sys.modules, file=sys.stderr)"
    )
    said = shell(sys.executable, "-c", code, "--help", cwd=tmp_path)
    assert said.code == 0
    assert "dvc repro" in said.out
    loaded = said.error.split()
    assert "typer" in loaded
    slow = {"torch", "torchvision", "sklearn", "skops", "scipy", "matplotlib", "h5py", "pyarrow", "numpy", "pandas"}
    assert not slow & set(loaded)


def test_help_lists_every_command(icecore: Command) -> None:
    said = icecore("--help")
    assert said.code == 0
    assert {"info", "check", "leaderboard"} <= set(COMMANDS)
    assert all(f"  {name} " in said.out for name in COMMANDS)


def test_help_groups_commands_by_what_people_want(icecore: Command) -> None:
    lines = icecore("--help").out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    expected = ["Options:", "Vectors of a folder:", "A project:", "A trained model:", "Results:", "Stored features:"]
    assert headings == expected
    vectors = lines[lines.index("Vectors of a folder:") : lines.index("A project:")]
    assert {line.split()[0] for line in vectors[1:] if line} == {"extract", "layers"}


def test_no_arguments_show_the_help(icecore: Command) -> None:
    said = icecore()
    assert "Usage:" in said.out + said.error


PARTS = [
    (str(group.name), str(command.name))
    for group in main.app.registered_groups
    if group.typer_instance is not None
    for command in group.typer_instance.registered_commands
]


@pytest.mark.parametrize("words", [*((name,) for name in COMMANDS), *PARTS], ids=" ".join)
def test_the_help_of_a_command_has_an_example_of_it(icecore: Command, words: tuple[str, ...]) -> None:
    said = icecore(*words, "--help")
    assert said.code == 0
    examples = [line.strip() for line in said.out.splitlines() if line.strip().startswith("icecore ")]
    assert examples
    assert all(tuple(example.split()[1 : 1 + len(words)]) == words for example in examples)


def test_an_unknown_option_is_an_error_of_use(icecore: Command) -> None:
    said = icecore("info", "--jsn", "x")
    assert said.code == 2
    assert "--jsn" in said.error


# info ----------------------------------------------------------------------------------------------------------------

ARTEFACTS = {
    "manifests/digits.parquet": ("manifest", ["rows: 14", "key: string", "rows by label:", "no: 7", "yes: 7"]),
    "manifests/files/digits.parquet": ("manifest", ["rows: 14", "path: string"]),
    "backbones/tiny": ("backbone", ["family: glyphs", "penultimate: 4", "block1: 4×16×16", "classes: no, yes"]),
    "features/tiny/penultimate": ("features", ["samples: 14", "dtype: float16", "node: penultimate", "shape: 3"]),
    "tasks/digits.parquet": ("task", ["rows by split:", "test: 4", "train: 8", "rows by target:", "yes: 7"]),
    f"models/{RUN}": ("model", ["head: logistic", "heads: logistic.penultimate.all", "logistic: probability"]),
    f"predictions/{RUN}.parquet": ("predictions", ["rows: 6", "predicted: string", "scores:logistic: probability"]),
    f"metrics/{RUN}.json": ("metrics", ["test_rows: 4", "input: penultimate"]),
    "comparisons/digits.json": ("comparison", ["task: digits", "metric: accuracy", "test_rows: 4"]),
    f"plots/{RUN}.json": ("evaluation", [f"run: {RUN}", "classes: no, yes"]),
}


def test_info_knows_teachers_and_the_metrics_of_stages(icecore: Command, tmp_path: Path) -> None:
    folder = tmp_path / "teachers" / "tuned"
    write_json(folder / "teacher.json", {"format": 1, "columns": {"logits": {"address": "ab" * 32}}, "top_k": None})
    assert "artefact: teacher\n" in icecore("info", folder).out
    for name, content in {
        "extraction metrics": {"samples": 3, "rows_computed": 6},
        "distillation metrics": {"student": {"parameters": 10}, "teachers": {}},
        "digest": {"weights_digest": "ab"},
        "card": {"cards": []},
    }.items():
        write_json(tmp_path / "x.json", content)
        assert f"artefact: {name}" in icecore("info", tmp_path / "x.json").out.splitlines()


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", b"\xd7: 2"), ("ascii", b"\xc3\x97: 2")])
def test_what_a_stream_cannot_encode_ends_nothing(tmp_path: Path, encoding: str, shown: bytes) -> None:
    write_json(tmp_path / "run.json", {"test_rows": 1, "×": 2})
    command = [sys.executable, "-m", "pipeline.cli.main", "info", str(tmp_path / "run.json")]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout.splitlines()  # click writes UTF-8 where the encoding is said to be ASCII


def test_a_reader_that_stops_reading_ends_the_command_quietly(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"test_rows": 1, "long": list(range(100_000))})  # more than a pipe holds
    command = f"{sys.executable} -m pipeline.cli.main info {tmp_path / 'run.json'} --json | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=False)
    assert done.stdout == b"{\n"
    assert done.stderr == b""


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("path", ARTEFACTS)
def test_info_says_what_an_artefact_is_and_what_is_in_it(icecore: Command, data: Path, path: str) -> None:
    kind, expected = ARTEFACTS[path]
    said = icecore("info", data / path)
    assert (said.code, said.error) == (0, "")
    lines = [line.strip() for line in said.out.splitlines()]
    assert lines[:2] == [f"path: {data / path}", f"artefact: {kind}"]
    assert set(expected) <= set(lines)


@pytest.mark.parametrize("path", ARTEFACTS)
def test_info_as_json_is_json(icecore: Command, data: Path, path: str) -> None:
    said = icecore("info", data / path, "--json")
    assert (said.code, said.error) == (0, "")
    found = json.loads(said.out, parse_constant=no_constant)
    assert (found["path"], found["artefact"]) == (str(data / path), ARTEFACTS[path][0])


def test_info_as_json_has_what_the_files_have(icecore: Command, data: Path) -> None:
    def found(path: str) -> Any:
        return json.loads(icecore("info", data / path, "--json").out)

    assert found("tasks/digits.parquet")["rows by split"] == {"test": 4, "train": 8, "validation": 2}
    features = found("features/tiny/penultimate")
    assert features["bytes"] == sum(path.stat().st_size for path in (data / "features").rglob("*.h5"))
    metrics = json.loads((data / "metrics" / f"{RUN}.json").read_text())
    assert found(f"metrics/{RUN}.json").items() >= metrics.items()
    assert found(f"models/{RUN}")["settings"]["inputs"] == ["penultimate"]


def test_info_of_a_task_counts_labels_one_by_one_and_numbers_not_at_all(icecore: Command, tmp_path: Path) -> None:
    columns = {"key": ["a", "b"], "split": ["train", "test"]}
    for kind, targets in {"multilabel": [["sun", "sea"], ["sun"]], "regression": [1.5, 2.5]}.items():
        table = pa.table(columns | {"target": targets}).replace_schema_metadata({"kind": kind})
        Task(table).write(tmp_path / f"{kind}.parquet")
    found = json.loads(icecore("info", tmp_path / "multilabel.parquet", "--json").out)
    assert (found["kind"], found["rows by target"]) == ("multilabel", {"sea": 1, "sun": 2})
    found = json.loads(icecore("info", tmp_path / "regression.parquet", "--json").out)
    assert (found["kind"], found["rows by split"]) == ("regression", {"test": 1, "train": 1})
    assert "rows by target" not in found


def test_info_of_an_audit_has_what_it_has(icecore: Command, tmp_path: Path) -> None:
    write_json(tmp_path / "digits.audit.json", {"task": "digits", "byte_duplicates": {"excluded": 3}})
    lines = [line.strip() for line in icecore("info", tmp_path / "digits.audit.json").out.splitlines()]
    assert {"artefact: audit", "task: digits", "excluded: 3"} <= set(lines)


def test_a_long_list_is_cut_and_counted(icecore: Command, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"test_rows": 1, "short": list(range(12)), "long": list(range(13))})
    lines = icecore("info", tmp_path / "run.json").out.splitlines()
    assert "short: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11" in lines
    assert "long: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (13 in all)" in lines


def test_info_of_nothing_says_so(icecore: Command, tmp_path: Path) -> None:
    said = icecore("info", tmp_path / "nothing")
    assert said == Said(1, "", f"error: {tmp_path / 'nothing'}: no such file or folder.")


@pytest.mark.parametrize("name", ["folder", "notes.txt"])
def test_info_of_what_is_no_artefact_says_what_was_expected(icecore: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    said = icecore("info", tmp_path / name)
    assert (said.code, said.out) == (1, "")
    assert said.error.startswith(
        f"error: {tmp_path / name}: no artefact of icecore. Expected a folder with backbone.json"
    )


@pytest.mark.parametrize("columns", [["a"], ["target"], ["predicted"], ["path", "label"], ["target", "split"]])
def test_info_of_a_foreign_table_says_so(icecore: Command, tmp_path: Path, columns: list[str]) -> None:
    pq.write_table(pa.table({name: ["x"] for name in columns}), tmp_path / "foreign.parquet")
    said = icecore("info", tmp_path / "foreign.parquet")
    assert (said.code, said.out) == (1, "")
    assert "foreign.parquet: a Parquet file, but no manifest, task or predictions of icecore." in said.error


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": 1}', "3"])
def test_info_of_foreign_json_says_so(icecore: Command, tmp_path: Path, content: str) -> None:
    (tmp_path / "foreign.json").write_text(content)
    said = icecore("info", tmp_path / "foreign.json")
    assert (said.code, said.out) == (1, "")
    assert "foreign.json: a JSON file, but no metrics of an icecore run." in said.error


@pytest.mark.parametrize("name", ["damaged.parquet", "damaged.json", "model.json"])
def test_info_of_a_damaged_file_names_it(icecore: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"accuracy": ')
    path = tmp_path if name == "model.json" else tmp_path / name
    said = icecore("info", path)
    assert (said.code, said.out) == (1, "")
    assert said.error.startswith(f"error: {path}: damaged, or not what its name says: ")


# layers --------------------------------------------------------------------------------------------------------------


def test_layers_lists_modules_with_their_shapes_sizes_and_costs(icecore: Command, data: Path) -> None:
    said = icecore("layers", data / "backbones" / "tiny")
    assert (said.code, said.error) == (0, "")
    lines = {line.split()[0]: line.split() for line in said.out.splitlines() if line}
    assert lines["node"] == ["node", "alias", "kind", "activation", "shape", "none", "mean", "mean+std", "avg2x2",
                             "token", "cost"]  # fmt: skip
    assert lines["input"][1:] == ["input", "–", "1×32×32", "2.0", "kB", "2", "B", "4", "B", "8", "B", "–", "0.0%"]
    assert lines["block1.1"][1:4] == ["BatchNorm2d", "pre:", "native_batch_norm"]
    assert lines["block1.2"][1:5] == ["ReLU", "post:", "relu", "4×32×32"]
    assert lines["logits"][-1] == "100.0%"
    assert "penultimate: the input of classifier, the last layer\n" in said.out
    assert "bytes per sample in float16" in said.out


def test_layers_as_json_has_a_size_for_each_pooling_that_fits(icecore: Command, data: Path) -> None:
    found = {row["node"]: row for row in json.loads(icecore("layers", data / "backbones" / "tiny", "--json").out)}
    assert found["block1"]["bytes"] == {
        "none": 2048, "flatten": 2048, "mean": 8, "max": 8, "gem": 8, "mean+std": 16, "avg2x2": 32,
    }  # fmt: skip
    assert found["penultimate"]["bytes"] == {"none": 8, "flatten": 8}
    assert found["block1.2"].items() >= {
        "aliases": [], "kind": "ReLU", "operation": "relu", "activation": "post", "shape": [4, 32, 32], "layout": "CHW",
        "mixed": False,
    }.items()  # fmt: skip
    assert found["logits"]["share"] == 1


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a backbone that has functions, aliases and a name."""
    from torchvision import models

    from pipeline.backbones import serialization as artefact
    from pipeline.backbones.spec import InputSpec
    from pipeline.readers.image import ImageSpec

    root = tmp_path_factory.mktemp("residual")
    artefact.write(
        root / "data" / "backbones" / "net",
        models.resnet18(num_classes=2),
        architecture={"family": "torchvision", "name": "resnet18", "num_classes": 2},
        origin={},
        inputs=InputSpec(image=ImageSpec(resize=(32, 32)), mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    return root


def test_layers_finds_a_backbone_by_its_name_and_shows_functions_if_asked(
    icecore: Command, residual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(residual)

    def nodes(*options: str) -> list[str]:
        return [row["node"] for row in json.loads(icecore("layers", "net", "--json", *options).out)]

    assert nodes() == [
        "input", "conv1", "bn1", "relu", "maxpool", "layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2",
        "layer3.0", "layer3.1", "layer3", "layer4.0", "layer4.1", "layer4", "avgpool", "fc", "penultimate", "logits",
    ]  # fmt: skip
    assert {"layer1.0.add", "layer1.0.conv1"} <= set(nodes("--all"))
    assert nodes("--match", "RES3") == ["layer2"]
    assert nodes("--match", "layer2.0.bn") == ["layer2.0.bn1", "layer2.0.bn2"]
    assert set(nodes("--match", "basicblock")) == {f"layer{a}.{b}" for a in (1, 2, 3, 4) for b in (0, 1)}
    assert "res3" in icecore("layers", "net", "--match", "layer2").out.split()


def test_layers_of_any_model_need_no_project_and_no_weights(
    icecore: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {row["node"]: row for row in json.loads(icecore("layers", "squeezenet1_1", "--json").out)}
    assert found["features.12"]["shape"] == [512, 13, 13]
    assert found["penultimate"]["meaning"] == "the mean over positions of the input of classifier.1, the last layer"
    assert list(tmp_path.iterdir()) == []
    said = icecore("layers", "squeezenet1_2")
    assert (said.code, said.out) == (1, "")
    assert "error: unknown backbone 'squeezenet1_2'. Did you mean 'squeezenet1_1'" in said.error
    said = icecore("layers", "backbones/squeezenet1_1")
    assert "error: backbones/squeezenet1_1: not a backbone (backbone.json is missing)." in said.error


def test_layers_that_match_nothing_and_backbones_that_are_none_are_said(icecore: Command, residual: Path) -> None:
    folder = residual / "data" / "backbones" / "net"
    said = icecore("layers", folder, "--match", "layer1.0.add")
    assert (said.code, said.out) == (1, "")
    assert "error: expected nodes that match 'layer1.0.add', got none of " in said.error
    assert "`--all` shows functions too." in said.error
    assert "--all" not in icecore("layers", folder, "--all", "--match", "conv9_9").error
    said = icecore("layers", residual)
    assert f"{residual}: not a backbone (backbone.json is missing)" in said.error


def test_layers_marks_nodes_that_depend_on_their_batch_and_large_sizes_are_readable() -> None:
    from pipeline.backbones.spec import Tap
    from pipeline.inference import node_table as layers
    from pipeline.text import human

    tap = Tap(shape=(512, 28, 28), layout="CHW", mixed=True)
    row = {"node": "bn", "aliases": [], "kind": "BatchNorm2d", "operation": "x", "activation": None, "mixed": True,
           "shape": list(tap.shape), "bytes": layers.sizes(tap), "share": 0.5}  # fmt: skip
    line = layers.text([row]).splitlines()[2].split()
    assert line[-1] == "mixed"
    assert "802.8 kB" in layers.text([row])
    assert human(51_380_224) == "51.4 MB"


# check ---------------------------------------------------------------------------------------------------------------


def wrong_params(path: Path) -> Path:
    params = yaml.safe_load(PARAMS.read_text())
    params["fit"][RUN] |= {"head": "logistics", "inputs": ["pixels"]}
    params["freeze"]["glyphs"]["network"] = "glyph"
    params["slpit"] = {}
    path.write_text(yaml.safe_dump(params))
    return path


def test_check_finds_no_problem_in_the_projects_own_settings(icecore: Command) -> None:
    said = icecore("check", PARAMS)
    assert (said.code, said.error) == (0, "")
    fits = len(yaml.safe_load(PARAMS.read_text())["fit"])
    assert f"{PARAMS}: no problems (" in said.out
    assert f"{fits} fit" in said.out


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("benchmarks/recipes/*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_without_a_problem(icecore: Command, recipe: Path) -> None:
    said = icecore("check", recipe, "--fast")  # the photos are the reader's
    assert (said.code, said.error) == (0, "")


def test_check_prints_every_problem_and_ends_with_an_error(icecore: Command, tmp_path: Path) -> None:
    params = wrong_params(tmp_path / "params.yaml")
    said = icecore("check", params)
    assert (said.code, said.out) == (1, "")
    first, *problems = said.error.splitlines()
    assert first == f"error: {params}: 3 problems"
    assert len(problems) == 3
    assert "unknown section 'slpit'. Did you mean 'split'" in said.error
    assert f"fit.{RUN}.head: unknown head 'logistics'. Did you mean 'logistic'" in said.error
    assert "freeze.glyphs.network: unknown pretrained network 'glyph'. Did you mean 'glyphs'" in said.error
    assert "Traceback" not in said.error


def test_settings_lists_the_keys_of_a_section(icecore: Command) -> None:
    said = icecore("settings", "report")
    expected = (
        "report: Settings of the report.\n  report.title: text; default icecore report\n      title of the page\n"
    )
    assert said == Said(0, expected, "")
    (title,) = json.loads(icecore("settings", "report", "--json").out)
    assert title == {
        "key": "report.title",
        "type": "text",
        "default": "default icecore report",
        "meaning": "title of the page",
    }
    assert "unknown section 'reprot'. Did you mean 'report'" in icecore("settings", "reprot").error
    assert "split.NAME.sizes.train: number; default 0.6" in icecore("settings").out


def test_check_of_missing_settings_says_where_to_run_it(
    icecore: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = icecore("check")
    assert said == Said(1, "", "error: params.yaml: no such file. Run the command in the root of an icecore project.")


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- a", "expected a mapping of sections")])
def test_check_of_what_are_no_settings_says_so(icecore: Command, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    said = icecore("check", tmp_path / "params.yaml")
    assert said.code == 1
    assert message in said.error


# leaderboard ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose only run was evaluated."""
    params = yaml.safe_load(PARAMS.read_text())
    params["fit"] = {RUN: params["fit"][RUN]}
    params["finetune"] = params["teach"] = params["distill"] = {}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(data / "plots", tmp_path / "data" / "plots")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
def test_the_leaderboard_has_every_run_and_where_the_report_lies(icecore: Command) -> None:
    said = icecore("leaderboard")
    assert (said.code, said.error) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].split()[:4] == ["task", "run", "head", "input"]
    assert lines[2].split()[:4] == ["digits", RUN, "logistic", "penultimate"]
    assert lines[-1] == f"report: {Path('data', 'report', 'index.html')}"


def test_the_leaderboard_as_json_has_the_numbers_of_the_selected_input(icecore: Command, project: Path) -> None:
    [row] = json.loads(icecore("leaderboard", "--json").out, parse_constant=no_constant)
    selected = json.loads((project / "data" / "plots" / f"{RUN}.json").read_text())["selected"]
    assert row == {"run": RUN, "task": "digits", **selected}


def test_the_leaderboard_names_runs_that_were_not_evaluated(icecore: Command, project: Path) -> None:
    (project / "data" / "plots" / f"{RUN}.json").unlink()
    said = icecore("leaderboard")
    assert (said.code, said.out) == (1, "")
    assert f"no evaluation of {RUN}. Run `icecore repro`." in said.error


def test_the_leaderboard_of_some_runs_names_those_that_it_lacks(icecore: Command, project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["fit"]["new"] = params["fit"][RUN]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    said = icecore("leaderboard")
    assert (said.code, said.error) == (0, "")
    assert RUN in said.out
    assert "not evaluated: new. Run `icecore repro`." in said.out.splitlines()


def test_the_leaderboard_notes_a_network_below_the_probe_of_its_backbone(icecore: Command, project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    run = params["fit"][RUN]
    tuned = {"task": run["task"], "backbone": run["backbone"], "start": "backbone", "input": "pixels"}
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "finetune": {"tuned": tuned}}))
    tables = json.loads((project / "data" / "plots" / f"{RUN}.json").read_text())
    for row in tables["table"]:
        row["accuracy"] = row["validation_accuracy"] = 0.125
    evaluated = tables["made_from"]["settings"]["backbone"]
    tables |= {"run": "tuned", "made_from": network("digits", settings={"backbone": evaluated})}
    (project / "data" / "plots" / "tuned.json").write_text(json.dumps(tables))
    said = icecore("leaderboard")
    assert (said.code, said.error) == (0, "")
    [note] = [line for line in said.out.splitlines() if line.startswith("note: ")]
    assert note.startswith(f"note: tuned is below the frozen probe of its own backbone, {RUN}: accuracy 0.125 against")


def test_the_cache_is_listed_verified_repaired_and_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, icecore: Command
) -> None:
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path))
    identity = {"node": "block1", "pool": "mean", "dtype": "float32", "architecture": {"name": "net"}}
    column = cache.column(tmp_path, identity)
    keys = key_arrays.from_hex(sorted(content_key(bytes([n])) for n in range(3)))
    record = shards.add(column, keys, np.ones((3, 4), np.float32), provenance={})
    listed = icecore("cache", "list").out
    assert column.address[:12] in listed
    assert "net block1 mean float32" in listed
    assert json.loads(icecore("cache", "list", "--json").out)[0]["rows"] == 3
    assert "1 shard, 0 damaged" in icecore("cache", "verify").out
    path = column.path_of(record)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert icecore("cache", "verify").code == 0
    full = icecore("cache", "verify", "--full")
    assert full.code == 1
    assert "the shard is damaged" in full.out
    assert "1 damaged and dropped" in icecore("cache", "repair").out
    assert column.records() == []
    assert "0 columns removed" in icecore("cache", "prune", "--unused-for", "1d").out
    assert "expected a size" in icecore("cache", "prune", "--max-size", "much").error
    assert "1 column removed" in icecore("cache", "prune", "--unused-for", "0h").out


def test_features_are_exported_to_parquet(data: Path, tmp_path: Path, icecore: Command) -> None:
    tap = data / "features" / "tiny" / "penultimate"
    said = icecore("features", "export", tap, tmp_path / "out.parquet")
    rows = len(Features.open(tap))
    assert said.out == f"{tmp_path / 'out.parquet'}: {rows:,} rows\n"
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == rows


def test_features_are_exported_in_the_format_of_the_suffix(data: Path, tmp_path: Path, icecore: Command) -> None:
    tap = data / "features" / "tiny" / "penultimate"
    expected = Features.open(tap).load()
    assert icecore("features", "export", tap, tmp_path / "out.npy").out == f"{tmp_path / 'out.npy'}: 14 rows\n"
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert icecore("features", "export", tap, tmp_path / "out.f32").code == 0
    assert np.array_equal(np.fromfile(tmp_path / "out.f32", "<f4").reshape(14, 3), expected)
    said = icecore("features", "export", tap, tmp_path / "out.csv")
    assert (said.code, said.out) == (1, "")
    assert "expected a name that ends in .parquet, .npy, .f32, got '.csv'" in said.error


# extract -------------------------------------------------------------------------------------------------------------


def test_a_folder_is_embedded_and_only_what_is_new_is_computed(
    data: Path, tmp_path: Path, icecore: Command, image_folder: Callable[..., Path]
) -> None:
    photos, out = image_folder(("cat",), each=3), tmp_path / "vectors"
    (photos / "cat" / "copy.png").write_bytes((photos / "cat" / "000.png").read_bytes())
    command = ["extract", "--backbone", data / "backbones" / "tiny", "--data", photos, "--out", out]
    command += ["--engine", "torch", "--tap", "penultimate", "--tap", "block1:mean"]
    said = icecore(*command)
    assert said.code == 0, said.error
    lines = said.out.splitlines()
    assert "penultimate: 3 rows to compute, 0 known; 1 shard, 8.3 kB" in lines
    assert any(line.startswith("penultimate: stored shard ") and "3 of 3 samples done" in line for line in lines)
    assert f"{out}: 3 samples, 0 rejected; rows of all taps: 6 to compute, 0 reused" in lines
    assert lines[-4:] == [
        f"1 duplicate: see {out / 'excluded.csv'}",
        f"{out / 'penultimate'}: 3 rows",
        f"{out / 'block1-mean'}: 3 rows",
        f"{out / 'files.parquet'}: the file of each row",
    ]
    assert "penultimate: 0 rows to compute, 3 known" in icecore(*command).out
    assert icecore(*command, "--quiet") == Said(0, "", "")
    assert icecore("info", out / "block1-mean").code == 0


def test_the_plan_of_a_folder_is_printed_and_nothing_is_extracted(
    data: Path, tmp_path: Path, icecore: Command, image_folder: Callable[..., Path]
) -> None:
    photos, out = image_folder(("cat",), each=3), tmp_path / "vectors"
    command = ["extract", "--backbone", data / "backbones" / "tiny", "--data", photos, "--out", out]
    command += ["--engine", "torch", "--plan"]
    said = icecore(*command)
    assert said.code == 0, said.error
    first, room = said.out.splitlines()
    assert first == "penultimate: 3 rows to compute, 0 known; 1 shard, 8.3 kB"
    assert " needed (24 B of them while it runs), " in room  # four float16 of three rows
    assert not (out / "penultimate").exists()
    assert not (tmp_path / "feature-cache").exists()
    assert len(pq.read_table(out / "files.parquet")) == 3
    assert icecore(*command[:-1]).code == 0
    assert icecore(*command).out.splitlines() == ["penultimate: 0 rows to compute, 3 known"]


def test_a_plan_that_does_not_fit_is_printed_and_ends_with_an_error(
    data: Path,
    tmp_path: Path,
    icecore: Command,
    image_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.extract.disk_forecast.free_disk", lambda _: 10)
    out = tmp_path / "vectors"
    where = ["--data", image_folder(("cat",), each=3), "--out", out]
    said = icecore("extract", "--backbone", data / "backbones" / "tiny", *where, "--plan")
    assert said.code == 1
    assert said.out.startswith("penultimate: 3 rows to compute, 0 known")
    assert "error: the features do not fit on the disk" in said.error


def test_a_draft_is_no_setting_of_a_backbone_that_has_its_preprocessing(
    data: Path, tmp_path: Path, icecore: Command
) -> None:
    where = ["--data", tmp_path, "--out", tmp_path / "out"]
    said = icecore("extract", "--backbone", data / "backbones" / "tiny", *where, "--draft")
    assert said.code == 1
    assert "Freeze it anew with `draft: true` in `input`." in said.error


def test_the_tap_is_penultimate_where_none_is_named(
    data: Path, tmp_path: Path, icecore: Command, image_folder: Callable[..., Path]
) -> None:
    photos, out = image_folder(("cat",), each=1), tmp_path / "vectors"
    said = icecore("extract", "--backbone", data / "backbones" / "tiny", "--data", photos, "--out", out, "--quiet")
    assert said == Said(0, "", "")
    assert Features.open(out / "penultimate").shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet5O"], "unknown backbone 'resnet5O'. Did you mean 'resnet50'"),
        (["--backbone", "resnet50", "--tap", "layer3:men"], "extract.taps.layer3-men.pool: unknown pooling"),
        (
            ["--backbone", "resnet50", "--data", "nowhere"],
            "error: nowhere: no such folder or list. Expected a folder of",
        ),
        (["--backbone", "resnet50", "--dtype", "float64"], "unknown value 'float64'. Did you mean 'float16'"),
        (["--backbone", "resnet50", "--workers", "0"], "extract.run.workers"),
        (["--backbone", "resnet50", "--workers", "many"], "extract.run.workers"),
        (
            ["--backbone", "resnet50", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"],
            "a scheduler has its own workers: leave out `workers`, or `scheduler`",
        ),
    ],
)
def test_what_cannot_be_embedded_is_said_before_anything_is_done(
    tmp_path: Path, icecore: Command, arguments: list[str], message: str
) -> None:
    (tmp_path / "photos").mkdir()
    said = icecore("extract", "--data", tmp_path / "photos", "--out", tmp_path / "out", *arguments)
    assert (said.code, said.out) == (1, "")
    assert message in said.error
    assert not (tmp_path / "out").exists()


def test_what_the_system_refuses_is_said_without_a_traceback(data: Path, tmp_path: Path, icecore: Command) -> None:
    (tmp_path / "file").touch()
    said = icecore("features", "export", data / "features" / "tiny" / "penultimate", tmp_path / "file" / "out.parquet")
    assert said.code != 0
    assert "error: " in said.error
    assert "Not a directory" in said.error or "File exists" in said.error


def test_a_user_without_a_home_folder_is_told_of_the_cache() -> None:
    code = (
        "import os; import platformdirs.unix; from pipeline.store import location\n"
        "for name in ('HOME', 'ICECORE_CACHE', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
        "if os.getuid() == 0: os.setuid(12345)  # of whom the system knows no more, as of `docker --user`\n"
        "else: os.environ['XDG_CACHE_HOME'] = ''; os.path.expanduser = lambda path: path\n"
        "try: location.default_root()\n"
        "except Exception as error: print(f'{type(error).__name__}: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "StoreError: the feature cache: this user has no home folder. Set ICECORE_CACHE to a folder for it.\n"
    assert done.stdout == expected, done.stderr


def test_errors_of_a_one_off_extraction_name_its_options(icecore: Command, data: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "objects": [[{"a": 1.0}]]}), tmp_path / "a.parquet")
    (tmp_path / "photos" / "x").mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    shutil.copy(tmp_path / "a.parquet", tmp_path / "shards")
    expected = {
        "a.parquet": (["--image", "image"], "`columns` is --columns here."),
        "shards": ([], "`image` is --image here."),
        "photos": (
            [],
            f"error: {tmp_path / 'photos'}: there are no files in it. Give a folder, a list or an archive with files.",
        ),
    }
    for name, (options, line) in expected.items():
        backbone = data / "backbones" / "tiny"
        found = icecore(
            "extract", "--backbone", backbone, "--data", tmp_path / name, "--out", tmp_path / "out", *options
        )
        assert found.code == 1
        assert found.error.splitlines()[-1] == line
    line = "`disk` is a setting of a project's params.yaml, see"
    with pytest.raises(StoreError, match=rf"(?s)`disk: warn` .*\n{line}"), naming_options():
        raise StoreError("too little room: `disk: warn` tries it all the same")
