"""Exported models: the pipeline's own predictions, in files that need neither icecore nor torch; what is refused."""

import dataclasses
import json
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.clean_environment import clean_folder, run_clean
from support.teachers import TAPS
from support.trained_models import Models
from torch import nn

from pipeline.backbones.serialization import Backbone
from pipeline.cli import main
from pipeline.errors import ConfigError, DataError, EngineError, HeadError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.export import card, check, graph, int8
from pipeline.export.model import Output, PixelsToScores, list_outputs, round_to
from pipeline.export.run import export
from pipeline.export.samples import TaskImages, choose_images, read_task_images
from pipeline.files import read_json, write_json
from pipeline.inference.answers import TaskOutput
from pipeline.inference.trained_model import load
from pipeline.readers.image import ImageReader, ImageSpec

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two heads on three joined taps, one of them projected, with a temperature; evaluated."""
    projected = {"node": "block2", "project": 4, "dtype": "bfloat16"}
    found = Models(tmp_path_factory.mktemp("models") / "data", taps={**TAPS, "projected": projected})
    heads = {"logistic": {"C": 1.0}, "knn": {}}
    inputs = [["projected", "late", "last"]]
    found.fit("joined", head=heads, inputs=inputs, scale="l2", pca=3, calibrate="temperature", search="none")
    files = {name: found.root / f"{name}.out" for name in ("numbers", "confusion", "curve")}
    (found.root / "plots").mkdir()
    evaluate(
        EvaluateConfig(),
        predictions=found.root / "joined.parquet",
        task=found.root / "task.parquet",
        model=found.root / "models" / "joined",
        tables=found.root / "plots" / "joined.json",
        **files,
    )
    return found


HEAD = "logistic.projected+late+last.all.skops"


@pytest.fixture(scope="module")
def exported(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `joined` as ONNX."""
    out = tmp_path_factory.mktemp("exported") / "joined"
    export(models.root / "models" / "joined", out, file=HEAD, cache=models.root / "cache")
    return out


def odd_photos(folder: Path) -> list[str]:
    """Photos that are turned, transparent, of 16 bits, of few colours, grey, or longer than wide."""
    values = np.random.default_rng(0).integers(0, 256, (30, 47, 4), dtype=np.uint8)
    picture = Image.fromarray(values, "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.convert("RGB").save(folder / "turned.jpg", exif=exif)
    exif[0x0112] = 7
    picture.convert("RGB").save(folder / "mirrored.png", exif=exif)
    picture.save(folder / "transparent.png")
    picture.convert("LA").save(folder / "grey transparent.png")
    picture.convert("P").save(folder / "colours.gif", transparency=3)
    picture.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(values.astype(np.uint16)[:, :, 0] * 257).save(folder / "deep.png")
    picture.convert("L").resize((9, 200)).save(folder / "long.webp", lossless=True)
    picture.convert("1").save(folder / "fax.tiff")
    return sorted(str(path) for path in folder.iterdir())


def infer(script: Path, *arguments: str | Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[list[str]]:
    """Run infer.py in this process, and return its lines as words."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_the_file_gives_what_the_pipeline_predicts(models: Models, exported: Path) -> None:
    about = read_json(exported / "model.json")
    assert sorted(path.name for path in exported.iterdir()) == ["README.md", "infer.py", "model.json", "model.onnx"]
    assert about["input"] == {"name": "pixels", "dtype": "uint8", "shape": ["batch", 32, 32, 1]}
    [output] = about["outputs"]
    assert (output["name"], output["classes"]) == ("probabilities", ["dark", "grey", "white"])
    [deviation] = about["check"]["outputs"]
    assert (about["check"]["images"], deviation["images"], deviation["same"]) == ("6 test images", 6, 1.0)
    assert deviation["largest"] < 1e-5
    # Of another engine's rounding: no row of the check was one of these.
    model = load(models.root / "models" / "joined", file=HEAD)
    images = read_task_images(model, "train", most=24)
    run = graph.run_onnx(exported / "model.onnx", graph_outputs(about))
    assert check.compare(model, run, graph_outputs(about), images)[0].largest < 1e-5
    made = about["made_from"]
    assert made["head"]["file"] == HEAD
    assert list(made["taps"]) == ["projected", "late", "last"]
    assert made["fit"]["temperature"] is not None
    assert made["task"]["classes"] == ["dark", "grey", "white"]
    values = about["metrics"]
    assert values["decided_by"] == "accuracy"
    assert values["interval"]["low"] <= values["values"]["accuracy"] <= values["interval"]["high"]


def graph_outputs(about: dict[str, Any]) -> list[Output]:
    names = ("name", "task", "kind", "classes", "scores")
    return [Output(**{name: one[name] for name in names}) for one in about["outputs"]]


def test_the_card_says_how_to_use_it_and_how_good_it_is(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    for words in (
        "# joined\n",
        "Predicts the class of an image, one of 3: dark, grey, white.",
        "$ python infer.py model.onnx photo.jpg",
        "Features: node `block2`, pooling none, projected to 4, rounded to bfloat16.",
        "Head: logistic with max_iter 1000, C 1.",
        "95% interval",
        "on 6 test rows",
        "* 24 train rows",
        "The licence of the backbone's weights is unknown",
    ):
        assert words in text


@pytest.fixture(scope="module")
def parts(models: Models, exported: Path) -> tuple[bytes, bytes]:
    """The graphs of the backbone and of the head of `joined`, made once more."""
    model = load(models.root / "models" / "joined", file=HEAD)
    outputs = graph_outputs(read_json(exported / "model.json"))
    return graph.export_backbone(model, cache=models.root / "cache"), graph.export_head(model, outputs)


def test_an_export_has_the_same_bytes_each_time(exported: Path, parts: tuple[bytes, bytes]) -> None:
    outputs = graph_outputs(read_json(exported / "model.json"))
    assert graph.join_graphs(*parts, outputs) == (exported / "model.onnx").read_bytes()


def test_the_script_predicts_odd_photos_as_the_pipeline_does(
    models: Models, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = odd_photos(tmp_path)
    assert len(photos) == 9
    lines = infer(exported / "infer.py", exported / "model.onnx", *photos, monkeypatch=monkeypatch, capsys=capsys)
    model = load(models.root / "models" / "joined", file=HEAD)
    assert [line[0] for line in lines] == photos
    assert [line[1] for line in lines] == list(model.predict(photos))
    found = [float(line[2]) for line in lines]
    np.testing.assert_allclose(found, model.predict_proba(photos).max(axis=1), atol=1e-4)


def echo(folder: Path, spec: ImageSpec) -> Path:
    """An exported model that gives the pixels that it is given."""
    import onnx
    from onnx import TensorProto, helper

    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", None, None, None])
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", None])
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["values"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "echo", [pixels], [values]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    output = {"name": "values", "kind": "multilabel", "classes": [*map(str, range(3000))], "threshold": -1}
    write_json(
        folder / "model.json", {"preprocessing": spec.model_dump(mode="json"), "outputs": [output | {"scores": "x"}]}
    )
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(resize=20, crop=(16, 16)),
        ImageSpec(resize=(20, 30), crop=(17, 33), interpolation="bicubic"),
        ImageSpec(resize=21, crop=(24, 25), interpolation="lanczos"),
        ImageSpec(crop=(31, 16), mode="L"),
        ImageSpec(resize=(9, 8), interpolation="nearest"),
    ],
)
def test_the_script_gives_the_pixels_of_the_pipeline(
    tmp_path: Path, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    photos = odd_photos(tmp_path / "photos")
    file = echo(tmp_path / "echo", spec)
    script = Path(card.__file__).with_name("infer.py")
    lines = infer(script, file, *photos, monkeypatch=monkeypatch, capsys=capsys)
    for photo, line in zip(photos, lines, strict=True):
        expected = ImageReader(spec)(Path(photo).read_bytes())["pixels"].ravel()
        assert np.array_equal(np.array(line[2::2], dtype=float), expected), photo


def test_the_script_needs_onnxruntime_numpy_and_pillow_only(models: Models, exported: Path, tmp_path: Path) -> None:
    lines = (exported / "infer.py").read_text().splitlines()
    assert len(lines) <= 40
    (tmp_path / "packages").mkdir()
    packages = clean_folder(tmp_path / "packages")
    photos = [models.files[key] for key in models.keys[:3]]
    done = run_clean(packages, exported / "infer.py", exported / "model.onnx", *photos, tmp_path / "none.jpg")
    assert (done.returncode, done.stderr.strip()) == (1, f"{tmp_path}/none.jpg: [Errno 2] No such file or directory: "
                                                         f"'{tmp_path}/none.jpg'")  # fmt: skip
    found = [line.split("\t")[1] for line in done.stdout.splitlines()]
    assert found == list(load(models.root / "models" / "joined", file=HEAD).predict(photos))
    done = run_clean(packages, exported / "infer.py", exported / "model.onnx")
    assert (done.returncode, done.stderr.strip()[:40]) == (1, "Predict photos with an exported model, w")


def test_openvino_gives_the_same(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = models.root / "models" / "joined"
    found = export(folder, tmp_path / "out", form="openvino", file=HEAD, cache=models.root / "cache")
    assert sorted(path.suffix for path in tmp_path.glob("out/model.*")) == [".bin", ".json", ".xml"]
    assert found.about["check"]["outputs"][0]["largest"] < 1e-5
    check_script(models, tmp_path / "out" / "infer.py", found.file, monkeypatch=monkeypatch, capsys=capsys)


def check_script(models: Models, script: Path, file: Path, **how: Any) -> None:
    """Compare what a script predicts of three photos with the pipeline."""
    photos = [models.files[key] for key in models.keys[:3]]
    lines = infer(script, file, *photos, **how)
    model = load(models.root / "models" / "joined", file=HEAD)
    assert [line[1] for line in lines] == list(model.predict(photos))
    np.testing.assert_allclose([float(line[2]) for line in lines], model.predict_proba(photos).max(axis=1), atol=1e-4)


def test_arithmetic_rounds_as_casts_do() -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy((random.normal(size=4000) * 10.0 ** random.uniform(-9, 4, 4000)).astype(np.float32))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(round_to(values, dtype), values.to(dtype).float())
        assert not torch.equal(round_to(values, dtype), values)


def test_a_network_has_an_output_for_each_of_its_tasks(models: Models) -> None:
    network = load(models.run("tuned"))
    assert [one.name for one in list_outputs(network)] == ["probabilities"]
    tasks = (
        TaskOutput("shade", "classification", ("dark", "grey"), slice(0, 2)),
        TaskOutput("marks", "multilabel", ("dark", "grey", "white"), slice(0, 3)),
        TaskOutput("light", "regression", (), slice(2, 3)),
    )
    model = dataclasses.replace(network, tasks=tasks)
    outputs, whole = list_outputs(model), PixelsToScores(model).eval()
    assert [one.name for one in outputs] == ["shade_probabilities", "marks_probabilities", "light_values"]

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [one.numpy() for one in whole(torch.from_numpy(pixels))]

    images = read_task_images(network, "test", most=6)
    assert [one.largest < 1e-5 and one.same == 1 for one in check.compare(model, run, outputs, images)] == [True] * 3


def test_int8_is_measured_on_test_rows_and_refused_where_it_loses_too_much(
    models: Models, tmp_path: Path, parts: tuple[bytes, bytes]
) -> None:
    folder, cache = models.root / "models" / "joined", models.root / "cache"
    found = export(folder, tmp_path / "out", int8=True, max_drop=1.0, file=HEAD, cache=cache)
    numbers = found.about["int8"]
    assert (numbers["metric"], numbers["rows"], numbers["calibration_images"]) == ("accuracy", 6, 24)
    assert numbers["drop"] == pytest.approx(numbers["float32"] - numbers["int8"])
    assert numbers["low"] <= numbers["drop"] <= numbers["high"]
    assert numbers["bytes"] == found.file.stat().st_size
    assert any(line.startswith("int8: accuracy ") and "paired bootstrap p" in line for line in found.lines)
    assert any("ms for one image against" in line for line in found.lines)
    speed = numbers["times_as_fast"]
    assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert "not faster" in str(int8.Speed(0.01, 0.01, 1.0, 0.9, 1.1))
    assert "not faster" not in str(int8.Speed(0.02, 0.01, 2.0, 1.9, 2.1))
    import onnx

    kinds = [node.op_type for node in onnx.load(found.file).graph.node]
    assert "QuantizeLinear" in kinds
    assert "on 6 test rows (drop" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(
        EngineError, match=r"int8 loses .* of accuracy, more than `--max-drop` -1\. Nothing was written"
    ):
        int8.quantise_model(
            load(folder, file=HEAD), graph_outputs(found.about), parts, metric="accuracy", max_drop=-1.0
        )


def test_what_int8_costs_is_the_paired_test_of_the_rows() -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8)) for _ in range(40)]
    output = Output("probabilities", "task", "classification", ("a", "b"), "probability")
    targets = np.array(["a", "b"] * 20, dtype=object)
    rows = TaskImages(images, np.array([f"{number:032x}" for number in range(40)], dtype=object), targets)

    def answering(wrong: int) -> graph.Run:
        done: list[int] = []

        def run(pixels: np.ndarray) -> list[np.ndarray]:
            found = np.eye(2, dtype=np.float32)[[(number + (number < wrong)) % 2 for number in
                                                 range(len(done), len(done) + len(pixels))]]  # fmt: skip
            done.extend([0] * len(pixels))
            return [found]

        return run

    reader = ImageReader(ImageSpec(resize=(4, 4)))
    found = int8.measure_cost(answering(0), answering(10), output, rows, reader, metric="accuracy")
    assert (found.float32, found.int8, found.drop) == (1.0, 0.75, 0.25)
    assert found.low > 0.1
    assert found.p < 0.01
    assert found.mcnemar is not None
    assert (found.mcnemar["only_a"], found.mcnemar["only_b"]) == (10, 0)
    assert "float32 is ahead" in str(found)
    numbers = Output("values", "task", "regression", (), "none")
    same = TaskImages(images[:2], rows.keys[:2], np.zeros(2))
    with pytest.raises(EngineError, match="int8: r2 cannot be measured on 2 test rows"):
        int8.measure_cost(answering(0), answering(0), numbers, same, reader, metric="r2")
    other = int8.measure_cost(answering(10), answering(0), output, rows, reader, metric="accuracy")
    assert other.drop == -0.25
    assert "int8 is ahead" in str(other)


class Branching(nn.Module):
    """A network that looks at its values to decide what to do: it has no graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        found: torch.Tensor = self.network(images if float(images.sum()) > -1e9 else -images)
        return found


def test_what_libraries_refuse_says_what_to_do(models: Models, tmp_path: Path) -> None:
    model = load(models.run("tuned"))
    network = Backbone(model.backbone.spec, Branching(model.backbone.module).eval())
    other = dataclasses.replace(model, backbone=network)
    with pytest.raises(EngineError, match=r"the network cannot be exported to torch: .*\. Models on other backbones"):
        graph.write_torch(other, tmp_path / "model.pt2")
    with pytest.raises(EngineError, match=r"the network cannot be exported to ONNX: .*\. Models on other backbones"):
        graph.export_backbone(other, cache=None)
    with pytest.raises(EngineError, match=r"OpenVINO cannot convert the model: .*\. Take `--format onnx`\."):
        graph.write_openvino(b"nothing", tmp_path / "model.xml")
    nothing = TaskImages([], np.array([]), np.array([]))
    with pytest.raises(EngineError, match=r"int8: ONNX Runtime cannot quantise the network: .*\. Leave `--int8` out\."):
        int8.quantise_graph(b"nothing", nothing, ImageReader(ImageSpec()))


def test_a_file_that_is_not_the_pipelines_model_is_refused(models: Models, exported: Path) -> None:
    model = load(models.root / "models" / "joined", file=HEAD)
    outputs = graph_outputs(read_json(exported / "model.json"))
    run = graph.run_onnx(exported / "model.onnx", outputs)

    def wrong(pixels: np.ndarray) -> list[np.ndarray]:
        return [1 - value for value in run(pixels)]

    with pytest.raises(EngineError, match=r"the exported probabilities differ from the pipeline: expected a mean"):
        check.compare(model, wrong, outputs, read_task_images(model, "test", most=6))


def test_a_run_whose_photos_are_gone_is_compared_on_drawn_images(models: Models, tmp_path: Path) -> None:
    for name in ("models", "backbones"):
        (tmp_path / name).symlink_to(models.root / name)
    model = load(tmp_path / "models" / "joined", file=HEAD)
    images, made_of, [note] = choose_images(model, 3)
    assert (made_of, images.pixels(ImageReader(model.backbone.spec.input.image)).shape) == (
        "3 generated images",
        (3, 32, 32, 1),
    )
    assert note.startswith("note: compared on generated images, since those of the task cannot be read:")
    assert "no such task" in note
    (tmp_path / "tasks").symlink_to(models.root / "tasks")
    with pytest.raises(
        DataError, match=r"expected the manifests of the task's data sets, got none\. Run `icecore repro`"
    ):
        read_task_images(model, "test", most=3)
    with pytest.raises(DataError, match="expected later rows, got none"):
        read_task_images(model, "later", most=3)
    shutil.copytree(models.root / "manifests", tmp_path / "manifests")
    table = pq.read_table(models.root / "manifests" / "files" / "photos.parquet")
    number = table.column_names.index("path")
    gone = table.set_column(number, table.schema.field(number), pa.array(["/nowhere/photo.png"] * len(table)))
    pq.write_table(gone, tmp_path / "manifests" / "files" / "photos.parquet")
    with pytest.raises(DataError, match="expected the files of its test rows, got none of 3 at their paths"):
        read_task_images(model, "test", most=3)


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ({"form": "tflite"}, ConfigError, r"expected the format onnx, openvino, torch, got 'tflite'\."),
        ({"int8": True, "form": "torch"}, ConfigError, "expected the format onnx with it, got torch"),
        (
            {"file": "knn.projected+late+last.all.skops"},
            HeadError,
            r"knn: nearest neighbours need .* `icecore predict`",
        ),
        ({"file": "none.skops"}, HeadError, "unknown head 'none.skops'"),
        ({"run": "nothing"}, DataError, "unknown run 'nothing'"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    models: Models, tmp_path: Path, how: dict[str, Any], kind: type[Exception], message: str
) -> None:
    run = how.pop("run", "joined")
    with pytest.raises(kind, match=message):
        export(models.root / "models" / run, tmp_path / "out", **{"file": HEAD, **how})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_as_it_is(models: Models, exported: Path, tmp_path: Path) -> None:
    folder = models.root / "models" / "joined"
    with pytest.raises(ConfigError, match="expected an empty folder, a new one, or an earlier export, got other files"):
        export(folder, folder)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file: expected a folder to write, got a file\."):
        export(folder, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text("[")
    with pytest.raises(ConfigError, match="got other files"):
        export(folder, tmp_path / "mine")
    before = (exported / "model.json").read_bytes()
    with pytest.raises(HeadError, match="nearest neighbours"):
        export(folder, exported, file="knn.projected+late+last.all.skops")
    assert (exported / "model.json").read_bytes() == before


@pytest.mark.parametrize("extra", ["onnx", "openvino"])
def test_a_missing_extra_is_named(models: Models, tmp_path: Path, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    wanted = rf"export to .*: expected the libraries of the extra `{extra}`, .*icecore-features\[{extra}\]"
    with pytest.raises(EngineError, match=wanted):
        export(models.root / "models" / "joined", tmp_path / "out", form=extra, file=HEAD)


def command(arguments: Sequence[str | Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["icecore", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code


def test_the_command_prints_what_was_written_and_how_far_it_is_off(
    models: Models, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ICECORE_CACHE", str(models.root / "cache"))
    folder = models.root / "models" / "joined"
    assert command(["export", folder, exported, "--head", HEAD, "--format", "torch"], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{exported}/model.pt2: ")
    assert "from pixels uint8 (batch, 32, 32, 1) to probabilities" in lines[0]
    assert "from the pipeline, 100.0% of the predictions are the same on 6 test images" in lines[1]
    assert json.loads((exported / "model.json").read_text())["format"] == "torch"
    assert not (exported / "model.onnx").exists()
    check_script(models, exported / "infer.py", exported / "model.pt2", monkeypatch=monkeypatch, capsys=capsys)
    code = command(["export", folder, folder, "--head", HEAD], monkeypatch)
    assert "expected an empty folder, a new one, or an earlier export" in str(code)
    assert command(["export", "--help"], monkeypatch) == 0
    assert "icecore export pets small/ --int8 --max-drop 0.01" in capsys.readouterr().out
