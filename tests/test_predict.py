"""`icecore predict`: every kind of input and output, many images as few, what fails, and what a kill leaves."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import prediction_process
from support.odd_images import bomb
from support.trained_models import Models

from pipeline.cli import main
from pipeline.cli import predict as predictions_cli
from pipeline.errors import DataError, Interrupted
from pipeline.export.run import export
from pipeline.files import read_json, write_json
from pipeline.inference.trained_model import load
from pipeline.predict import run as predictions
from pipeline.predict.exported import load_exported
from pipeline.predict.inputs import Inputs
from pipeline.predict.output_table import Columns
from pipeline.readers import image_files
from pipeline.runtime import SILENT, Reporter
from pipeline.sources import filesystem

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("project") / "data")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Predict = Callable[..., Said]


@pytest.fixture
def predict(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Predict:
    """A function that runs `icecore predict` in an empty folder of a project; `stdin` is what it can read there."""
    models.run("marks")
    (tmp_path / "data").symlink_to(models.root)
    monkeypatch.chdir(tmp_path)

    def run(*words: object, stdin: bytes = b"") -> Said:
        monkeypatch.setattr("sys.argv", ["icecore", "predict", *map(str, words)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        code, (out, err) = ended.value.code, capsys.readouterr()
        return Said(
            code if isinstance(code, int) else int(bool(code)), out, err + (code if isinstance(code, str) else "")
        )

    return run


def photos(models: Models, count: int = 3) -> list[Path]:
    return [Path(models.files[key]) for key in models.keys[:count]]


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [Path(row["path"]).name for row in rows]


# What comes in -------------------------------------------------------------------------------------------------------


def every_kind(models: Models, folder: Path) -> tuple[list[object], list[Path]]:
    """Write inputs of every kind; return the arguments, and the photos that they mean in their order."""
    first, second, third = photos(models)
    (folder / "photos" / "test" / "deep").mkdir(parents=True)
    (folder / "photos" / "misc").mkdir()  # neither folders of splits nor of classes: labels are not looked at
    (folder / "photos" / "train").mkdir()
    for name, photo in {"test/deep/b.png": first, "misc/a.png": second, "train/c.png": second}.items():
        (folder / "photos" / name).write_bytes(photo.read_bytes())
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "photos" / ".hidden.png").write_bytes(third.read_bytes())
    (folder / "list.csv").write_text(f"path,path2,label\n{third},x,1\nphotos/misc/a.png,y,\n")
    (folder / "list.txt").write_bytes(f"\ufeff{first}\r\n\r\nphotos/train/c.png\r\n".encode())
    (folder / "list.tsv").write_text(f"label\tpath\ny\t{second}\n")
    pq.write_table(pa.table({"path": [str(first)], "odd": [{"a": 1}]}), folder / "list.parquet")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in ("train/x.png", "misc/y.png", "test/z.png"):
            archive.add(third, name)
        text = b"{"  # labels that cannot be read are nothing to a prediction
        member = tarfile.TarInfo("test/z.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    pq.write_table(pa.table({"image": [second.read_bytes(), first.read_bytes()]}), folder / "rows.parquet")
    (folder / "shards" / "train").mkdir(parents=True)
    shutil.copy(folder / "a.tar", folder / "shards" / "train" / "0.tar")
    (folder / "packed").mkdir()
    pq.write_table(pa.table({"image": [{"bytes": third.read_bytes()}]}), folder / "packed" / "0.parquet")
    arguments: list[object] = [
        third,
        "photos",
        "list.csv",
        "a.tar",
        "list.txt",
        "-",
        "rows.parquet",
        "list.parquet",
        "packed",
        "shards",
        "list.tsv",
    ]
    arguments += [f"file://{first}", f"file://{folder}/list.csv"]
    meant = [third, second, first, second, third, second, third, third, third, first, second, second, first]
    meant += [second, first, first, third, third, third, third, second]
    return arguments, [*meant, first, third, second]


def test_every_kind_of_input_is_predicted_in_the_order_that_was_given(
    predict: Predict, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, meant = every_kind(models, tmp_path)
    expected = load(models.run("marks")).predict_proba(meant)
    stdin = f"{photos(models)[1]}\n{photos(models)[0]}".encode()
    words = ("marks", *arguments, "--image", "image", "--proba", "--json")
    few = predict(*words, stdin=stdin)
    assert (few.code, few.err) == (
        0,
        "1 hidden file of the inputs: no images, and no rows\n1 other file of the inputs: no images, and no rows\n",
    )
    assert [row["path"] for row in few.rows][:5] == [
        str(meant[0]),
        "photos/misc/a.png",
        "photos/test/deep/b.png",
        "photos/train/c.png",
        str(meant[4]),
    ]
    assert names(few.rows)[6:9] == ["x.png", "y.png", "z.png"]
    for run in (few, None):
        if run is None:  # the same through the feature cache
            monkeypatch.setattr(predictions, "FEW", 0)
            run = predict(*words, "--engine", "torch", stdin=stdin)
            assert [row["path"] for row in run.rows] == [row["path"] for row in few.rows]
        scores = np.array([[row[f"score:{name}"] for name in load(models.run("marks")).classes] for row in run.rows])
        assert np.allclose(scores, expected, rtol=0, atol=1e-5)
    assert not list((tmp_path / "feature-cache" / "predict").iterdir())


def test_every_format_that_is_written_here_is_predicted_whatever_the_name(
    predict: Predict, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "formats"
    folder.mkdir()
    random = np.random.default_rng(0)
    written: list[str] = []
    for form in image_files.formats():
        colour, grey = (random.integers(0, 256, (32, 32, *more), dtype=np.uint8) for more in ((3,), ()))
        modes = [Image.fromarray(colour), Image.fromarray(grey), Image.fromarray(grey).convert("1")]
        for image in modes if form in Image.SAVE else ():
            with contextlib.suppress(OSError, ValueError, KeyError):  # a mode that the format does not have
                image.save(folder / f"{form}.of any name", form)
                written.append(f"{form}.of any name")
                break
    assert {"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "ICO", "TGA", "PPM", "PCX", "SGI"} <= {
        name.partition(".")[0] for name in written
    }
    pixels = []
    for name in sorted(written):
        with Image.open(folder / name) as image:
            pixels.append(np.asarray(image.convert("L")))
    expected = load(models.run("marks")).predict_proba(pixels)
    for few in (256, 0):
        monkeypatch.setattr(predictions, "FEW", few)
        said = predict("marks", "formats", "--proba", "--json", "--engine", "torch")
        assert (said.code, names(said.rows)) == (0, sorted(written)), said.err
        scores = [[row[f"score:{name}"] for name in load(models.run("marks")).classes] for row in said.rows]
        assert np.allclose(scores, expected, rtol=0, atol=1e-5)


def test_paths_may_end_with_zero_bytes_and_lie_in_a_parquet_list(
    predict: Predict, models: Models, tmp_path: Path
) -> None:
    every_kind(models, tmp_path)
    first, second, _ = photos(models)
    read = predict("marks", "-", "--json", stdin=f"{first}\0{second}\0".encode())
    assert [row["path"] for row in read.rows] == [str(first), str(second)]
    assert predict("marks", "list.parquet", "--json").rows[0]["path"] == str(first)
    assert len(predict("marks", "list.csv", "--path", "path2", "--json").rows) == 2


def test_a_failing_input_is_a_row_with_the_reason(
    predict: Predict, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = photos(models)[0]
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-300])
    (tmp_path / "bomb.png").write_bytes(bomb())
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "list.txt").write_bytes(os.fsencode(f"gone.png\ndata\n{odd}\n{good}\n"))
    expected = [
        ("text.png", "not an image that Pillow can read"),
        ("cut.png", "damaged image: "),
        ("bomb.png", "more than 89,478,485 pixels: refused as a decompression bomb"),
        (str(good), None),
        (f"{tmp_path}/gone.png", "No such file or directory"),
        (f"{tmp_path}/data", "not a regular file"),
        (f"{tmp_path}/caf\\udce9.png", "its path is not UTF-8: rename it"),
        (str(good), None),
    ]
    for few in (256, 0):
        monkeypatch.setattr(predictions, "FEW", few)
        said = predict("marks", "text.png", "cut.png", "bomb.png", good, "list.txt", "--json")
        assert said.code == 3
        assert "6 of 8 inputs could not be predicted:\n  text.png: not an image that Pillow can read\n" in said.err
        assert [Path(row["path"]).name for row in said.rows] == [Path(path).name for path, _ in expected]
        for row, (_, reason) in zip(said.rows, expected, strict=True):
            assert row.get("error", "").startswith(reason or "")
            assert ("prediction" in row) == (reason is None)
        [row] = predict("marks", good, "--max-pixels", 100, "--json").rows
        assert row["error"].startswith("more than 100 pixels: refused")


def test_an_image_whose_values_a_tap_cannot_hold_fails_alone(models: Models) -> None:
    from pipeline.backbones.serialization import Backbone
    from pipeline.backbones.spec import TapSpec
    from pipeline.predict.row_source import RowSource

    net = load(models.run("marks")).backbone
    spec = net.spec.model_copy(update={"input": net.spec.input.model_copy(update={"mean": (0.0,), "std": (1e-7,)})})
    source = RowSource(models.root / "net", Backbone(spec, net.module), {"x": TapSpec(node="block1")}, "float32")
    black, white = io.BytesIO(), io.BytesIO()
    Image.new("L", (32, 32), 0).save(black, "png")
    Image.new("L", (32, 32), 255).save(white, "png")
    unusable: dict[int, DataError] = {}
    numbers, rows = source.run([white.getvalue(), black.getvalue(), b"text"], 3, unusable)
    assert (numbers, len(rows["x"]), sorted(unusable)) == ([1], 1, [0, 2])
    assert "values that float16 cannot hold" in str(unusable[0])


# What comes out ------------------------------------------------------------------------------------------------------


def test_files_have_the_same_columns_whatever_their_format(predict: Predict, models: Models, tmp_path: Path) -> None:
    first, second, _ = photos(models)
    (tmp_path / "bad.png").write_text("")
    words = ("marks", first, "bad.png", second, "--top", 2, "--out")
    for name in ("p.parquet", "p.CSV", "deep/p.jsonl"):
        said = predict(*words, name)
        assert (said.code, said.out) == (3, "")
        assert said.err.splitlines()[0] == f"{name}: 3 rows"
    table = pq.read_table("p.parquet")
    columns = ["path", "prediction", "confidence", "top_1", "top_1_confidence", "top_2", "top_2_confidence", "error"]
    assert table.column_names == columns
    rows = table.to_pylist()
    assert rows[1] == {**dict.fromkeys(columns), "path": "bad.png", "error": rows[1]["error"]}
    assert {*rows[0]["prediction"]} < {"dark", "even", "grey", "white"}
    with Path("p.CSV").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path("deep/p.jsonl").read_text().splitlines()]
    for row, cell, line in zip(rows, cells, lines, strict=True):
        assert list(cell) == columns
        assert line == {name: line[name] for name, value in row.items() if value is not None}
        if row["error"] is None:
            assert cell["prediction"] == "; ".join(row["prediction"])
            assert line["prediction"] == row["prediction"]
            assert (
                np.float32(cell["top_2_confidence"])
                == np.float32(row["top_2_confidence"])
                == np.float32(line["top_2_confidence"])
            )
            assert row["top_1_confidence"] >= row["top_2_confidence"]


def test_each_kind_of_model_has_its_columns(predict: Predict, models: Models) -> None:
    photo = photos(models)[0]
    for run in ("numbers", "drawn", "tuned", "student"):
        models.run(run)
    [row] = predict("numbers", photo, "--json").rows
    assert row == {"path": str(photo), "prediction": float(load(models.run("numbers")).predict([photo])[0])}
    [row] = predict("drawn", photo, "--top", 9, "--proba", "--json").rows
    best = ["path", "prediction", "score", "top_2", "top_2_score", "top_3", "top_3_score"]
    assert list(row) == [*best, *(f"score:{name}" for name in ("dark", "grey", "white"))]
    ranked = sorted(("dark", "grey", "white"), key=lambda name: -row[f"score:{name}"])
    assert [row["prediction"], row["top_2"], row["top_3"]] == ranked
    assert [row[name] for name in ("score", "top_2_score", "top_3_score")] == [row[f"score:{name}"] for name in ranked]
    [row] = predict(models.root / "models" / "tuned", photo, "--proba", "--json").rows
    assert row["confidence"] == max(row[f"score:{name}"] for name in ("dark", "grey", "white"))
    [row] = predict("student", photo, "--proba", "--top", 2, "--json").rows
    assert row["confidence:brightness"] == row[f"score:brightness:{row['prediction:brightness']}"]
    assert {row["prediction:brightness"], row["top_2:brightness"]} == {"dark", "light"}
    assert row["top_2_confidence:brightness"] == row[f"score:brightness:{row['top_2:brightness']}"]
    assert row["prediction:task"] in ("dark", "grey", "white")


def test_the_table_on_the_terminal_has_errors_in_the_place_of_predictions(
    predict: Predict, models: Models, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("")
    models.run("tuned")
    said = predict("tuned", photos(models)[0], "bad.png")
    header, _, first, second = said.out.splitlines()
    assert header.split() == ["path", "prediction", "confidence"]
    assert re.fullmatch(r"\S+\.png +(dark|grey|white) +0\.\d{3}", first)
    assert re.fullmatch(r"bad\.png +error: .*", second)
    assert "error" in predict("marks", "bad.png").out


def test_nearest_training_samples_are_named(predict: Predict, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.run("marks")
    models.run("student")
    models.run("tuned")  # the task as it was learned is the one that was written last
    for run in ("tuned", "drawn"):
        models.run(run)
        for few in (256, 0):
            monkeypatch.setattr(predictions, "FEW", few)
            training = [row for row, label in enumerate(models.labels) if models.labels[:row].count(label) < 2]
            photo = models.files[models.keys[training[0]]]
            [row] = predict(run, photo, "--near", 2, "--json").rows
            assert (row["near_1"], row["near_1_label"]) == (photo, models.labels[training[0]])
            assert row["near_1_cosine"] == pytest.approx(1, abs=1e-5)
            assert row["near_1_cosine"] > row["near_2_cosine"]
    [row] = predict("drawn", photo, "--near", 99, "--json").rows
    assert len([name for name in row if name.startswith("near_")]) == 3 * 12  # four of each class


def test_nearest_samples_need_the_task_and_the_features_of_the_run(
    predict: Predict, models: Models, tmp_path: Path
) -> None:
    folder = tmp_path / "other" / "models" / "tuned"
    folder.mkdir(parents=True)
    for path in models.run("tuned").iterdir():
        (folder / path.name).symlink_to(path)
    said = predict(folder, photos(models)[0], "--near", 1)
    assert re.search(r"other/tasks/task\.parquet: no such task\. Run `icecore repro split@task`", said.err)
    (tmp_path / "other" / "tasks").mkdir()
    task = models.task().read_bytes()
    (tmp_path / "other" / "tasks" / "task.parquet").write_bytes(task)
    said = predict(folder, photos(models)[0], "--near", 1)
    assert "other/features/net: expected features of the training rows of" in said.err
    assert "got none. Run `icecore repro extract@net`." in said.err
    models.task("multilabel", models.marks)
    (tmp_path / "other" / "tasks" / "task.parquet").write_bytes((models.root / "task.parquet").read_bytes())
    said = predict(folder, photos(models)[0], "--near", 1)
    assert "expected the task that" in said.err
    assert "learned, but it was changed. Repeat the run." in said.err
    models.task()


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mark", "a.png"], "unknown run 'mark'. Did you mean 'marks'"),
        (["old/marks", "a.png"], "marks: expected a model.json of format 2, got 1. Fit the run again."),
        (["data/models", "a.png"], "expected a run's folder with model.json, such as data/models/RUN, got a folder"),
        (
            ["later", "a.png"],
            f"{Path('data/models/later')}: the run was not made yet. Run `icecore repro finetune@later`.",
        ),
        (["marks"], "expected images to predict, got none. Name files, folders, lists, archives or URLs, or `-`"),
        (["marks", "a.pgn"], "a.pgn: no such file, folder or list. Did you mean 'a.png'?"),
        (["marks", "gone/a.png", "a.pgn"], "inputs that cannot be used\n  - gone/a.png: no such file, folder or list."),
        (["marks", "link.png"], "link.png: a link to a file that does not exist: nowhere."),
        (["marks", "pipe"], "pipe: expected a file or a folder, got a pipe or a device. `-` reads paths"),
        (["marks", "a.tar.gz"], "a.tar.gz: compressed, so that samples in it cannot be located. Unpack it to a plain"),
        (["marks", "empty"], "empty: expected images to predict, got none."),
        (["marks", "folders"], "folders: expected images to predict, got none."),
        (["marks", "texts"], "texts: expected images to predict, got none, but files that are no images: 1 other."),
        (["marks", "empty.csv"], "empty.csv: expected images to predict, got none."),
        (["marks", "empty.parquet"], "empty.parquet: expected images to predict, got none."),
        (["marks", "-"], "-: expected images to predict, got none."),
        (["marks", "empty.txt"], "empty.txt: expected images to predict, got none."),
        (["marks", "wide.txt"], "wide.txt: expected paths as UTF-8, got UTF-16. Save the list as UTF-8."),
        (["marks", "names.csv"], "unknown column 'path'. Expected one of: file."),
        (["marks", "rows.parquet"], "or `image: image` for the images in it.\n`image` is --image here."),
        (
            ["marks", "a.png", "--image", "image"],
            "expected Parquet with a column 'image' of images among the inputs, got none.",
        ),
        (
            ["marks", "a.png", "--path", "file"],
            "expected a .csv or .parquet list, since 'file' names a column of paths",
        ),
        (["marks", "-", "-"], "expected `-`, standard input, once, got it several times."),
        (
            ["marks", "a.png", "--out", "p.txt"],
            "p.txt: expected a file that ends with .parquet, .csv, .jsonl, .ndjson,",
        ),
        (["marks", "a.png", "--out", "p.json"], "got .json. JSON lines end with .jsonl."),
        (["marks", "a.png", "--out", "p"], "got none."),
        (["marks", "a.png", "--out", "folder.csv"], "folder.csv: expected a file to write, got a folder."),
        (["marks", "names.csv", "--out", "names.csv"], "names.csv: expected an output file that is not an input."),
        (["marks", "texts", "--out", "texts/p.parquet"], "expected a .parquet file outside the input texts"),
        (
            ["marks", "a.png", "--json", "--out", "p.csv"],
            "--json prints, and --out writes p.csv: leave one of them out.",
        ),
        (["numbers", "a.png", "--top", "1"], "--top: expected a model with classes, got a regression model."),
        (["marks", "a.png", "--head", "knn"], "unknown head 'knn'. Expected one of: logistic.last.all.skops."),
        (["marks", "a.png", "--backbone", "empty"], "empty: expected the backbone 'net', whose features"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_predicted_is_refused(
    predict: Predict, models: Models, tmp_path: Path, words: list[str], message: str
) -> None:
    models.run("marks")
    models.run("numbers")
    (tmp_path / "a.png").write_bytes(photos(models)[0].read_bytes())
    for name in ("empty", "texts", "folder.csv"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "notes.md").write_text("text")
    (tmp_path / "folders" / "one" / "two").mkdir(parents=True)
    (tmp_path / "old" / "marks").mkdir(parents=True)
    write_json(tmp_path / "old" / "marks" / "model.json", read_json(models.run("marks") / "model.json") | {"format": 1})
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    (tmp_path / "link.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "empty.csv").write_text("path\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "wide.txt").write_text("a.png", encoding="utf-16")
    (tmp_path / "names.csv").write_text("file\na.png\n")
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "rows.parquet")
    write_json(tmp_path / "params.yaml", {"finetune": {"later": {}}})
    said = predict(*words)
    assert said.code == 1
    assert message in said.err
    assert said.out == ""


def test_a_run_outside_of_a_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"knn: expected a run of a project, got no project here \(no params\.yaml\)\."):
        predictions_cli.find_run("knn")


@pytest.fixture(scope="module")
def exported(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `marks` as ONNX."""
    out = tmp_path_factory.mktemp("exported") / "marks"
    export(models.run("marks"), out)
    return out


def test_an_exported_model_predicts_as_its_run_does(predict: Predict, models: Models, exported: Path) -> None:
    described = repr(load_exported(exported))
    assert described.startswith(f"ExportedModel('{exported / 'model.onnx'}', 4 labels: ")
    assert len(described) < len(str(exported)) + 100
    broken = exported.parent / "broken.png"
    broken.write_bytes(b"text")
    inputs = [*photos(models, 5), broken, exported / "model.json"]
    own = predict("marks", *inputs, "--proba", "--json")
    for name in (exported / "model.onnx", exported):
        said = predict(name, *inputs, "--proba", "--json")
        assert said.code == own.code == predictions_cli.UNUSABLE
        assert names(said.rows) == names(own.rows)
        for row, expected in zip(said.rows, own.rows, strict=True):
            assert row.keys() == expected.keys()
            scores = [name for name, value in expected.items() if isinstance(value, float)]
            assert [row[name] for name in scores] == pytest.approx([expected[name] for name in scores], abs=1e-4)
            assert [row[name] for name in row if name not in scores] == [
                expected[name] for name in expected if name not in scores
            ]


def test_an_exported_model_predicts_block_by_block(
    predict: Predict, models: Models, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(exported, *photos(models, 5), "--json").rows
    monkeypatch.setattr(predictions, "FEW", 2)
    assert predict(exported, *photos(models, 5), "--json").rows == whole


def test_what_an_exported_model_cannot_do_is_refused(
    predict: Predict, models: Models, exported: Path, tmp_path: Path
) -> None:
    photo = photos(models)[0]
    other = tmp_path / "copy"
    shutil.copytree(exported, other)
    alone = tmp_path / "alone" / "model.onnx"
    alone.parent.mkdir()
    shutil.copy(exported / "model.onnx", alone)
    for words, message in (
        ((exported, photo, "--near", "2", "--engine", "torch"), "leave --near and --engine out, or name the run."),
        ((alone, photo), "expected model.json of an exported model next to it, got none."),
    ):
        said = predict(*words)
        assert (said.code, said.out) == (1, "")
        assert message in said.err
    (other / "model.onnx").write_bytes(b"other")
    assert "model.onnx: expected the file that was exported, got another one." in predict(other, photo).err
    (other / "model.onnx").unlink()
    assert "model.onnx: no such file, which" in predict(other, photo).err
    write_json(other / "model.json", {**read_json(other / "model.json"), "export": 99})
    assert "expected an export of version 1, got 99" in predict(other, photo).err


def test_a_model_without_scores_has_no_best_classes(predict: Predict, models: Models) -> None:
    folder = models.root / "models" / "centroids"
    if not folder.is_dir():
        models.fit("centroids", head="centroid")
    photo = photos(models)[0]
    assert list(predict("centroids", photo, "--json").rows[0]) == ["path", "prediction"]
    said = predict("centroids", photo, "--proba", "--top", 2)
    assert "--top and --proba: expected a model with scores, got centroid without." in said.err


def test_a_reader_that_stops_reading_ends_the_command_quietly(
    predict: Predict, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.run("marks")
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        said = predict("marks", *photos(models))
        assert (said.code, said.err) == (1, "")


def test_an_interruption_says_what_is_kept(predict: Predict, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.run("marks")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filesystem, "walk", interrupt)
    said = predict("marks", "data", "--out", "p.csv")
    assert (said.code, said.err) == (
        130,
        "interrupted: nothing was written. What the feature cache has is not computed again\n",
    )
    assert not Path("p.csv").exists()


def test_inputs_that_were_opened_before_an_interruption_are_not_opened_again(
    predict: Predict, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "FEW", 0)
    monkeypatch.setattr("pipeline.prepare.known_files.SETTLED", -1.0)
    (tmp_path / "photos").mkdir()
    for photo in photos(models):
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes() + b"x")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.predict.row_source.extract_parts", interrupt)
        assert predict("marks", "photos", "--out", "p.csv").code == 130
    [work] = (tmp_path / "feature-cache" / "predict").iterdir()
    assert [path.name for path in work.iterdir()] == ["known.sqlite"]
    with contextlib.closing(sqlite3.connect(work / "known.sqlite")) as database, database:
        [path] = database.execute("SELECT max(path) FROM known").fetchone()
        database.execute("UPDATE known SET key = ? WHERE path = ?", (bytes(16), path))
    assert predict("marks", "photos", "--out", "p.csv", "--engine", "torch").code == 3
    with Path("p.csv").open(newline="", encoding="utf-8") as file:
        errors = {row["path"]: row["error"] for row in csv.DictReader(file) if row["error"]}
    # The content of every image is compared with its key when its features are computed.
    assert errors.keys() == {path}
    assert "changed since its data set was prepared" in errors[path]
    assert not list((tmp_path / "feature-cache" / "predict").iterdir())


def test_many_inputs_are_computed_part_by_part_and_an_interruption_loses_the_part_in_work(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = Columns(load(models.run("marks")), proba=True)
    paths = [str(path) for path in photos(models, 23)]
    inputs = [*paths, str(tmp_path / "bad.png"), paths[0], paths[22]]
    (tmp_path / "bad.png").write_text("no image")

    def start(name: str, reporter: Reporter = SILENT, few: int = 0) -> list[dict[str, Any]]:
        tables: list[pa.Table] = []
        predictions.predict(
            columns,
            Inputs(inputs),
            tables.append,
            cache_root=tmp_path / "cache",
            name=name,
            few=few,
            settings={"engine": "torch", "batch_size": 4},
            reporter=reporter,
        )
        return [row for table in tables for row in table.to_pylist()]

    shards: list[str] = []

    def interrupt(line: str) -> None:
        shards.append(line)
        if len(shards) == 2:
            raise KeyboardInterrupt

    for module in ("pipeline.predict.row_source", "pipeline.predict.many"):
        monkeypatch.setattr(f"{module}.PART_ROWS", 10)
    monkeypatch.setattr("pipeline.predict.cached_rows.UNIT_ROWS", 4)
    with pytest.raises(Interrupted, match="9 of 24 rows are in the feature cache; the same command goes on"):
        start("killed", Reporter(log=interrupt))
    rows = start("killed", Reporter(log=shards.append))
    # Units of 4, 4 and 2 rows of two parts, and of 3 rows of the third, whose other row the first part has.
    assert len(shards) == 7
    few = start("few", few=100)
    assert [row["path"] for row in rows] == [row["path"] for row in few] == inputs
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in few]
    assert [number for number, row in enumerate(rows) if row["error"]] == [23]
    assert rows[24:] == [rows[0], rows[22]]
    assert not list((tmp_path / "cache" / "predict").iterdir())


def test_standard_input_is_asked_for_where_it_is_needed() -> None:
    with pytest.raises(DataError, match="expected paths on standard input for `-`, got no standard input"):
        Inputs(["-"])


# What a kill leaves --------------------------------------------------------------------------------------------------

# Each prediction is a process of its own, forked from one that has the libraries: their import takes ten times as long.
PROCESSES = multiprocessing.get_context("forkserver")
LIBRARIES = ("skops.io", "sklearn.calibration", "sklearn.linear_model", "sklearn.multiclass", "sklearn.neighbors")
KILLS = 20


def test_killed_predictions_go_on_and_lose_no_row(models: Models, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = tmp_path / "images"
    for number in range(700):
        path = images / f"{number % 7}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (32, 32), dtype=np.uint8) if number % 90 else np.zeros((32, 32), np.uint8)
        Image.fromarray(pixels).save(path)
    (images / "3" / "bad.png").write_text("no image")
    PROCESSES.set_forkserver_preload(["pipeline.predict.run", "pipeline.inference.trained_model", *LIBRARIES])
    run = models.run("wide")

    def start(root: Path) -> Any:
        process = PROCESSES.Process(
            target=prediction_process.predict_all, args=(run, images, root / "p.parquet", root / "cache")
        )
        process.start()
        return process

    def undisturbed(root: Path) -> float:
        begin = time.monotonic()
        process = start(root)
        process.join()
        assert process.exitcode == 0
        return time.monotonic() - begin

    undisturbed(tmp_path / "first")  # the server has the libraries from here on
    seconds = undisturbed(tmp_path / "whole")
    whole = (tmp_path / "whole" / "p.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "whole" / "p.parquet").to_pylist()
    assert [row["path"] for row in rows] == sorted(str(path) for path in images.rglob("*.png"))
    assert [Path(row["path"]).name for row in rows if row["error"]] == ["bad.png"]
    turn = 0
    # A moment in each twentieth of the life of a whole prediction.
    for share in (random.permutation(KILLS) + random.random(KILLS)) / KILLS:
        killed = False
        while not killed:
            root = tmp_path / f"killed-{turn}"
            is_new, begin = not root.exists(), time.monotonic()
            process = start(root)
            process.join(timeout=share * seconds)
            killed = process.exitcode is None
            if killed:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            if (root / "p.parquet").exists():  # it was ready before its kill: the next prediction is a new one
                assert (root / "p.parquet").read_bytes() == whole
                turn += 1
            else:
                assert process.exitcode == -signal.SIGKILL
            if is_new and not killed:  # the machine has become faster
                seconds = time.monotonic() - begin
    undisturbed(root)
    assert (root / "p.parquet").read_bytes() == whole
    assert sorted(path.name for path in root.iterdir()) == ["cache", "p.parquet"]
    assert not list((root / "cache" / "predict").iterdir())
