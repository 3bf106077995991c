"""Engines: each computes what torch float32 does, what cannot run is refused by name, and auto keeps its choice."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.backbones import projection, serialization
from pipeline.backbones.nodes import survey
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec, InputSpec, TapSpec
from pipeline.engines import (
    ENGINES,
    Engine,
    autotune,
    create,
    onnx_export,
    openvino_engine,
    openvino_model,
    parity_gate,
)
from pipeline.engines.autotune import Choice, Job, choose, load_choice, save_choice
from pipeline.engines.onnxruntime_engine import CudaEngine
from pipeline.engines.parity import Parity, compare, cosines, describe_parity, overlap
from pipeline.errors import EngineError, StoreError
from pipeline.readers.image import ImageSpec
from pipeline.runtime import SILENT, Reporter

ON_CPU = ("torch", "torch_compiled", "onnxruntime", "openvino")
CHEAP = ("torch", "onnxruntime", "openvino")
SIDE = 16
INPUT = InputSpec(
    image=ImageSpec(mode="RGB", resize=(SIDE, SIDE), interpolation="bilinear"), mean=(0.5,) * 3, std=(0.2,) * 3
)
PIXELS = np.random.default_rng(0).integers(0, 255, (24, SIDE, SIDE, 3), dtype=np.uint8)


class Glyphs(nn.Sequential):
    """Convolution, batch normalisation and ReLU in place, as GlyphNet has them."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
        )  # fmt: skip


class Residual(nn.Module):
    """A block that adds in place, and then rectifies in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        images = self.relu(self.stem(images))
        out = self.norm(self.conv(images))
        out += images
        return self.fc(self.relu(out).mean((2, 3)))


class Tokens(nn.Module):
    """Patches, a class token and attention, as a ViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.class_token = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.randn(1, 1, 16))
        self.block, self.head = (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
            nn.Linear(16, 4),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1))
        return self.head(tokens[:, 0])


class Crowd(Glyphs):
    """A network whose values depend on the batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits, from which the batch's mean is taken."""
        logits = super().forward(images)
        return logits - logits.mean(0)


class Branching(Glyphs):
    """A network that looks at its values to decide what to do: it has no graph."""

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        return super().forward(images if float(images.sum()) > -1e9 else -images)


class Counting(Glyphs):
    """A network whose graph would hold for one batch size only: it asks for a number where a symbol stands."""

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        return super().forward(images).reshape(len(images), -1)


NETWORKS: Mapping[type[nn.Module], Mapping[str, TapSpec]] = {
    Glyphs: {
        "pixels": TapSpec(node="input", pool="avg4x4"),
        "relu": TapSpec(node="2", pool="none"),
        "before": TapSpec(node="1", pool="mean+std"),
        "flat": TapSpec(node="1", pool="flatten"),
        "twice": TapSpec(node="logits"),
        "logits": TapSpec(node="logits"),
    },
    Residual: {
        "norm": TapSpec(node="norm", pool="gem"),
        "norm-all": TapSpec(node="norm"),
        "sum": TapSpec(node="add", pool="max"),
        "stem": TapSpec(node="stem"),
    },
    Tokens: {
        "cls": TapSpec(node="block", pool="cls"),
        "mean_tokens": TapSpec(node="block", pool="mean_tokens"),
        "logits": TapSpec(node="logits"),
    },
}


def backbone_of(kind: type[nn.Module]) -> Backbone:
    """A network of random weights, with statistics that normalise something."""
    torch.manual_seed(0)
    network = serialization.freeze(kind())
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)
    spec = BackboneSpec(
        architecture={"family": kind.__name__},
        origin={},
        weights_digest=serialization.weights_digest(network.state_dict()),
        input=INPUT,
        taps=survey(network, INPUT.shape),
    )
    return Backbone(spec=spec, module=network)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of exported graphs for the whole module."""
    return tmp_path_factory.mktemp("graphs")


def job_of(kind: type[nn.Module], cache: Path | None = None, **more: Any) -> Job:
    """A job over a network's taps."""
    specs = NETWORKS.get(kind, {"logits": TapSpec(node="logits"), "first": TapSpec(node="0", pool="mean")})
    return Job(backbone_of(kind), specs, 8, cache=cache, **more)


def test_the_table_names_engines_that_exist() -> None:
    for name, path in ENGINES.items():
        module, attribute = path.split(":")
        assert name == getattr(__import__(module, fromlist=[attribute]), attribute).NAME


# The contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", CHEAP)
def test_every_engine_computes_what_torch_does_in_any_batch_and_leaves_the_backbone_as_it_was(
    name: str, kind: type[nn.Module], graphs: Path
) -> None:
    job = job_of(kind, graphs)
    before = serialization.weights_digest(job.backbone.module.state_dict())
    engine = job.engine(name)  # the first of a network that needs a graph exports it
    reference = job.engine("torch").run({"pixels": PIXELS[:8]})
    for rows in (8, 1, 2, 7):
        found = engine.run({"pixels": PIXELS[:rows]})
        assert list(found) == list(job.specs)
        for tap, values in found.items():
            assert values.dtype == np.float32
            assert values.shape == (rows, *reference[tap].shape[1:])
            assert compare(reference[tap][:rows], values).problems(reduced=False) == [], tap
    assert serialization.weights_digest(job.backbone.module.state_dict()) == before
    assert not any(part._forward_hooks for part in job.backbone.module.modules())
    told = engine.provenance
    assert (told["engine"], told["device"], told["precision"], told["batch_size"]) == (name, "cpu", "float32", 8)
    assert {"torch"} < set(told)


@pytest.mark.parametrize("name", CHEAP)
def test_every_engine_projects_its_rows(name: str, graphs: Path) -> None:
    specs = {"flat": TapSpec(node="1", pool="flatten"), "few": TapSpec(node="1", pool="flatten", project=7)}
    found = dataclasses.replace(job_of(Glyphs, graphs), specs=specs).engine(name).run({"pixels": PIXELS[:3]})
    assert np.array_equal(found["few"], projection.project(found["flat"], 7))


@pytest.mark.slow
def test_a_compiled_network_computes_what_torch_does() -> None:
    job = job_of(Residual)
    expected = job.engine("torch").run({"pixels": PIXELS[:3]})
    found = job.engine("torch_compiled").run({"pixels": PIXELS[:3]})
    for tap, values in found.items():
        assert compare(expected[tap], values).problems(reduced=False) == []


def test_a_network_that_cannot_be_compiled_is_said_to_be_so() -> None:
    with pytest.raises(
        EngineError, match=r"engine 'torch_compiled': the network cannot be compiled here: .*Choose `torch`."
    ):
        job_of(Branching).engine("torch_compiled")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_differs_and_stays_near(precision: str) -> None:
    job = job_of(Residual, precision=precision)
    card = autotune.gate(job, job.engine("torch"), PIXELS)
    assert card.engine["precision"] == precision
    assert 1e-5 < card.parity["norm"].relative < 0.05
    assert card.autocast == card.parity
    assert f"torch, {precision}, against torch float32" in str(card)
    median = min(parity.median_cosine for parity in card.parity.values())
    assert card.verdict == f"near torch float32: median cosine {median:.4f}"


def test_openvino_sends_no_report() -> None:
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_openvino_in_bfloat16_passes_or_says_that_the_processor_ended_it(graphs: Path) -> None:
    job = job_of(Glyphs, graphs, precision="bfloat16")
    try:
        engine = job.engine("openvino")
    except EngineError as error:
        said = str(error)
    else:
        said = str(autotune.gate(job, engine, PIXELS))
    first = "engine 'openvino', precision 'bfloat16': expected a first request to pass, but it was ended by signal"
    assert said.startswith((first, "openvino, bfloat16, against torch float32"))


def test_a_process_that_a_request_ends_is_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "SUBPROCESS", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    model = openvino_model.cached_model(backbone_of(Glyphs), {"logits": TapSpec(node="logits")}, cache=None)
    with pytest.raises(
        EngineError, match=r"it was ended by signal 4. Choose another engine, or set ONEDNN_MAX_CPU_ISA"
    ):
        openvino_engine.try_in_subprocess(model, (1, 2, 2, 3), "bfloat16")
    monkeypatch.setattr(openvino_engine, "SUBPROCESS", "raise ValueError('no such thing.')")
    with pytest.raises(EngineError, match=r"but it was ValueError: no such thing. Choose"):
        openvino_engine.try_in_subprocess(model, (1, 2, 2, 3), "bfloat16")


def test_a_graph_that_openvino_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_model, "_trace", lambda *_: None)
    monkeypatch.setattr(openvino_model, "cached_export", lambda *_, **__: b"no graph")
    with pytest.raises(EngineError, match=r"engine 'openvino': it cannot run this network: .* Choose another engine."):
        job_of(Glyphs).engine("openvino")


# What is refused ------------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_those_that_are_near() -> None:
    backbone = backbone_of(Glyphs)
    with pytest.raises(EngineError, match=r"unknown engine 'onxruntime'. Did you mean 'onnxruntime'"):
        create("onxruntime", backbone, {}, batch_size=1)
    with pytest.raises(EngineError, match=r"unknown precision 'bfloat'. Did you mean 'bfloat16'"):
        create("torch", backbone, {}, batch_size=1, precision="bfloat")
    message = r"engine 'onnxruntime': expected one of its precisions \(float32\), got bfloat16. Choose another"
    with pytest.raises(EngineError, match=message):
        create("onnxruntime", backbone, {}, batch_size=1, precision="bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tf32_wants_a_gpu() -> None:
    with pytest.raises(EngineError, match=r"precision 'tf32': expected a CUDA device, got the CPU"):
        job_of(Glyphs, precision="tf32").engine("torch")
    with pytest.raises(EngineError, match=r"precision 'tf32': no engine has it here. Choose float32."):
        choose("auto", job_of(Glyphs, precision="tf32"), lambda: PIXELS, samples=9, reporter=Reporter(message=print))


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("openvino", "openvino", "openvino"),
        ("onnxruntime", "onnxruntime", "onnx"),
        ("onnxruntime", "onnxscript", "onnx"),
    ],
)
def test_a_missing_library_names_what_to_install(
    name: str, library: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version

    def version(package: str) -> str:
        if package == library:
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"pipeline.engines.{name}_engine", raising=False)
    with pytest.raises(
        EngineError,
        match=rf"(engine '{name}'|export to ONNX): .*{library}.* Run `pip install 'icecore-features\[{extra}\]'`",
    ):
        create(name, backbone_of(Glyphs), {}, batch_size=1, cache=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_provider_that_is_asked_for_and_not_active_is_an_error(graphs: Path) -> None:
    job = job_of(Residual, graphs)
    with pytest.raises(
        EngineError, match=r"engine 'onnxruntime_cuda': expected \w+ExecutionProvider to be active, but"
    ):
        job.engine("onnxruntime_cuda")


def test_a_provider_that_the_build_has_not_is_an_error(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaEngine, "PROVIDER", "NoExecutionProvider")
    with pytest.raises(
        EngineError, match=r"expected NoExecutionProvider to be active, but this build of ONNX Runtime does"
    ):
        job_of(Glyphs, graphs).engine("onnxruntime_cuda")


def test_a_network_without_a_graph_is_refused_with_the_reason() -> None:
    with pytest.raises(EngineError, match=r"the network cannot be exported to ONNX: .*Choose the engine `torch`."):
        job_of(Branching).engine("onnxruntime")


def test_a_graph_that_holds_for_one_batch_size_only_is_refused() -> None:
    with pytest.raises(
        EngineError, match=r"cannot be exported to ONNX: expected a graph for any batch size, got one for"
    ):
        job_of(Counting).engine("onnxruntime")


@pytest.mark.parametrize("name", CHEAP)
def test_a_tap_that_depends_on_the_batch_is_refused_by_its_name(name: str, graphs: Path) -> None:
    job = job_of(Crowd, graphs)
    with pytest.raises(EngineError) as caught:
        autotune.gate(job, job.engine(name), PIXELS)
    title, *lines = str(caught.value).splitlines()
    assert title == f"engine '{name}', float32: taps that it does not compute as torch float32 does"
    assert all(line.startswith("  - tap 'logits', node 'logits': ") for line in lines)
    assert any("its values depend on the batch (1: relative error" in line for line in lines)


def test_one_sample_is_enough_to_find_a_tap_that_depends_on_the_batch() -> None:
    job = job_of(Crowd)
    with pytest.raises(EngineError, match=r"tap 'logits', node 'logits': its values depend on the batch"):
        autotune.gate(job, job.engine("torch"), PIXELS[:1])


class Off:
    """An engine that is off by a factor in one tap."""

    def __init__(self, engine: Engine, tap: str, factor: float) -> None:
        self.engine, self.tap, self.factor = engine, tap, factor
        self.provenance = {**engine.provenance, "engine": "off"}

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows, one tap of them changed."""
        found = self.engine.run(batch)
        return {**found, self.tap: found[self.tap] * np.float32(self.factor)}


def test_a_tap_that_is_off_is_refused_by_its_name() -> None:
    job = job_of(Residual)
    off = Off(job.engine("torch"), "sum", 1.01)
    with pytest.raises(EngineError) as caught:
        autotune.gate(job, off, PIXELS)
    assert str(caught.value).splitlines()[1:] == ["  - tap 'sum', node 'add': relative error 0.01, limit 0.001"]
    with pytest.raises(EngineError, match=r"tap 'sum', node 'add': values that are not finite"):
        autotune.gate(job, Off(job.engine("torch"), "sum", np.nan), PIXELS)


# Parity ---------------------------------------------------------------------------------------------------------------


def test_the_numbers_of_parity_are_what_they_say() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    other = np.array([[3.0, 3.0], [0.0, 0.0]], dtype=np.float32)
    found = compare(rows, other)
    assert (found.rows, found.relative, found.top1, found.overlap) == (2, 0.25, 0.5, None)
    assert found.cosine == pytest.approx(21 / (5 * 18**0.5))
    assert cosines(rows, other)[1] == 1
    assert cosines(rows[1:], other[:1]).tolist() == [0]
    assert compare(rows * 0, rows * 0).relative == 0
    assert compare(rows * 0, rows).relative == np.inf


def test_neighbours_overlap_wholly_for_equal_rows_and_by_chance_for_others() -> None:
    random = np.random.default_rng(0)
    rows, other = random.normal(size=(2, 200, 16)).astype(np.float32)
    assert overlap(rows, rows + np.float32(5)) == pytest.approx(1, abs=0.01)
    found = overlap(rows, other)
    assert found is not None
    assert found < 0.2
    assert overlap(rows[:30], rows[:30]) is None


def test_limits_depend_on_the_precision() -> None:
    far = Parity(rows=9, relative=0.5, cosine=0.5, median_cosine=0.9, top1=1, overlap=0.5)
    assert far.problems(reduced=False) == ["relative error 0.5, limit 0.001", "cosine 0.500000, limit 0.9999"]
    low = ["median cosine 0.9000, limit 0.98", "overlap of neighbours 0.500, limit 0.9"]
    assert far.problems(reduced=True) == low


def test_the_table_has_a_line_a_tap() -> None:
    drawn = describe_parity(
        {"a": compare(PIXELS[:2], PIXELS[:2]), "longer": compare(PIXELS[:2], PIXELS[:2], neighbours=True)}
    )
    assert drawn.splitlines()[0].split() == ["tap", "relative", "cosine", "median", "top-1", "neighbours"]
    assert drawn.splitlines()[1].split() == ["a", "0.0e+00", "1.000000", "1.000000", "1.000", "-"]


def test_reduced_precision_is_measured_on_more_rows_but_not_of_wide_taps() -> None:
    assert parity_gate.rows_for({"a": (4,)}, 8, "float32") == 8
    assert parity_gate.rows_for({"a": (4,)}, 8, "bfloat16") == 512
    assert parity_gate.rows_for({"a": (4,), "b": (512, 28, 28)}, 8, "bfloat16") == 167


# Export ---------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from torch import channels_last
from tests.test_engines import Residual, NETWORKS, backbone_of
from pipeline.engines.onnx_export import export
backbone = backbone_of(Residual)
backbone.module.to(memory_format=channels_last)
Path(sys.argv[2]).write_bytes(export(backbone, NETWORKS[Residual]))
"""


def test_a_graph_has_the_same_bytes_in_each_process_and_layout_and_no_place_of_a_file(
    graphs: Path, tmp_path: Path
) -> None:
    data = onnx_export.cached_export(backbone_of(Residual), NETWORKS[Residual], cache=graphs)
    root = Path(__file__).parent.parent
    done = [sys.executable, "-c", PROGRAM, str(root), str(tmp_path / "other.onnx")]
    subprocess.run(done, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    assert (tmp_path / "other.onnx").read_bytes() == data
    assert b".py" not in data
    assert str(root).encode() not in data


def test_a_graph_names_its_outputs_after_the_taps_and_takes_any_batch(graphs: Path) -> None:
    import onnx

    data = onnx_export.cached_export(backbone_of(Glyphs), NETWORKS[Glyphs], cache=graphs)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == list(NETWORKS[Glyphs])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [entry.version for entry in model.opset_import if not entry.domain] == [onnx_export.OPSET]
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_a_graph_ends_at_its_last_tap_and_is_kept_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    backbone, specs = backbone_of(Glyphs), {"early": TapSpec(node="0", pool="mean")}
    data = onnx_export.cached_export(backbone, specs, cache=tmp_path)
    model = onnx.load_from_string(data)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 1
    assert not any("8." in value.name for value in model.graph.initializer)
    (path,) = (tmp_path / "onnx").iterdir()
    assert path.read_bytes() == data
    monkeypatch.setattr(onnx_export, "export", lambda *_, **__: b"")
    assert onnx_export.cached_export(backbone, specs, cache=tmp_path) == data
    assert onnx_export.cached_export(backbone, {"y": TapSpec(node="0", pool="mean")}, cache=tmp_path) == b""


# Auto -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def try_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine but the compiler is worth trying, and measured briefly."""
    monkeypatch.setattr(autotune, "MIN_JOB_SECONDS", {**dict.fromkeys(ENGINES, 0.0), "torch_compiled": np.inf})
    monkeypatch.setattr(autotune, "SECONDS", 0.1)


def test_a_short_job_is_given_to_torch_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    job = job_of(Glyphs, tmp_path)
    chosen = choose("auto", job, lambda: PIXELS, samples=24, reporter=Reporter(message=said.append))
    assert chosen.name == "torch"
    assert chosen.card is not None
    assert (said, chosen.why) == ([], "the whole job takes it about 0 s, too little to try others")
    assert chosen.card.verdict == "the values of torch float32, bit for bit"
    assert load_choice(job, 24) == load_choice(job, 3) == "torch"
    assert load_choice(job, 25) is None


@pytest.fixture
def exported(graphs: Path, tmp_path: Path) -> Path:
    """A cache with the graphs of `Glyphs`, and nothing remembered."""
    onnx_export.cached_export(backbone_of(Glyphs), NETWORKS[Glyphs], cache=graphs)
    openvino_model.cached_model(backbone_of(Glyphs), NETWORKS[Glyphs], cache=graphs)
    for folder in ("onnx", "openvino"):
        shutil.copytree(graphs / folder, tmp_path / folder)
    return tmp_path


@pytest.mark.usefixtures("try_all")
def test_auto_measures_prints_and_remembers(exported: Path) -> None:
    said: list[str] = []
    job = job_of(Glyphs, exported)
    chosen = choose("auto", job, lambda: PIXELS, samples=24, reporter=Reporter(message=said.append))
    lines = chosen.measured.splitlines()
    assert re.fullmatch(r"the fastest|[0-9]+\.[0-9] times as fast as torch", chosen.why)
    assert lines[0].split() == ["engine,", "float32", "samples/s", "of", "torch"]
    assert lines[1].split()[0] == chosen.name
    assert lines[1].endswith("taken")
    assert {line.split()[0] for line in lines[1:]} == set(ON_CPU)
    assert "not tried: the job is too short" in chosen.measured
    assert said == []
    again = choose("auto", job, lambda: PIXELS, samples=10**9, reporter=Reporter(message=said.append))
    assert (again.name, again.card) == (chosen.name, None)
    assert (again.why, said) == ("remembered for this machine and backbone", [])
    other = dataclasses.replace(job, batch_size=4)
    assert load_choice(other, 24) is None


@pytest.mark.usefixtures("try_all")
def test_auto_takes_the_fastest_whose_parity_holds(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        autotune, "_time_engines", lambda engines, _, **__: {name: 1.0 + (name == "torch") for name in engines}
    )
    run = autotune._gate

    def broken(job: Job, engine: Engine, reference: Engine, pixels: np.ndarray) -> parity_gate.ParityCard:
        if engine.provenance["engine"] != "torch":
            engine = Off(engine, "relu", 2)
        return run(job, engine, reference, pixels)

    monkeypatch.setattr(autotune, "_gate", broken)
    said: list[str] = []
    chosen = choose(
        "auto", job_of(Glyphs, exported), lambda: PIXELS, samples=24, reporter=Reporter(message=said.append)
    )
    assert chosen.name == "torch"
    assert sum("is refused: engine 'off', float32: taps that" in line and "tap 'relu'" in line for line in said) == 2


@pytest.mark.usefixtures("try_all")
def test_auto_falls_back_aloud_where_a_network_has_no_graph(tmp_path: Path) -> None:
    said: list[str] = []
    chosen = choose(
        "auto", job_of(Branching, tmp_path), lambda: PIXELS, samples=24, reporter=Reporter(message=said.append)
    )
    assert chosen.name == "torch"
    for name in ("onnxruntime", "openvino"):
        assert sum(f"engine {name} is left out: the network cannot be exported to ONNX" in line for line in said) == 1


def test_auto_refuses_taps_that_no_engine_computes(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no engine computes these taps\n  - refused: .*depend on the batch"):
        choose("auto", job_of(Crowd, tmp_path), lambda: PIXELS, samples=24, reporter=SILENT)


def test_a_remembered_engine_that_is_gone_is_said_and_replaced(exported: Path) -> None:
    job = job_of(Glyphs, exported)
    save_choice(job, Choice(engine="onnxruntime_cuda"))
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said: list[str] = []
    assert choose("auto", job, lambda: PIXELS, samples=24, reporter=Reporter(message=said.append)).name == "torch"
    assert said[0].startswith("engine onnxruntime_cuda, remembered for this machine, cannot run any more: engine")


def test_a_damaged_memory_is_measured_again_and_one_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    job = job_of(Glyphs, tmp_path)
    save_choice(job, Choice(engine="torch"))
    (path,) = (tmp_path / "engines").iterdir()
    path.write_text("{")
    assert load_choice(job, 1) is None
    path.write_text('{"engine": "abacus"}')
    assert load_choice(job, 1) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"the feature cache cannot be written: .*Set ICECORE_CACHE to a writable folder."
    ):
        save_choice(dataclasses.replace(job, cache=tmp_path / "file"), Choice(engine="torch"))
    save_choice(job_of(Glyphs), Choice(engine="torch"))
    assert load_choice(job_of(Glyphs), 1) is None


def test_a_graph_that_cannot_be_kept_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "export", lambda *_, **__: b"a graph")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"file: the feature cache cannot be written: Not a directory\. Set ICECORE_CAC"
    ):
        onnx_export.cached_export(backbone_of(Glyphs), NETWORKS[Glyphs], cache=tmp_path / "file")


def test_an_engine_that_is_asked_for_is_not_replaced() -> None:
    with pytest.raises(EngineError, match="cannot be exported to ONNX"):
        choose("onnxruntime", job_of(Branching), lambda: PIXELS, samples=1, reporter=Reporter(message=print))


# Real weights ---------------------------------------------------------------------------------------------------------

REAL_SIDE = 64  # a processor without bfloat16 takes seconds for larger images


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Smooth pictures: noise would drive real weights to odd places."""
    random = np.random.default_rng(1)
    coarse = torch.from_numpy(random.uniform(0, 255, (12, 3, 7, 7)).astype(np.float32))
    fine = nn.functional.interpolate(coarse, size=(REAL_SIDE, REAL_SIDE), mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


REAL: Mapping[str, tuple[str, Mapping[str, TapSpec]]] = {
    "squeezenet1_1": (
        "squeezenet1_1-deepscale_v1.1_fp16.pth",
        {"fire": TapSpec(node="features.6", pool="mean"), "logits": TapSpec(node="logits")},
    ),
    "mobilenet_v2": (
        "mobilenet_v2-tf2_int8_dequant.pth",
        {"early": TapSpec(node="features.3.add", pool="avg2x2"), "penultimate": TapSpec(node="penultimate")},
    ),
}


def real_backbone(model: str, folder: Path) -> Backbone:
    """A network of torchvision with the weights of the assets."""
    from torchvision import models

    state = torch.load(folder / "weights" / REAL[model][0], weights_only=True)
    network = models.get_model(model, weights=None)
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    image = ImageSpec(mode="RGB", resize=REAL_SIDE, crop=(REAL_SIDE, REAL_SIDE), interpolation="bilinear")
    inputs = InputSpec(image=image, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    serialization.freeze(network)
    digest = serialization.weights_digest(network.state_dict())
    spec = BackboneSpec(
        architecture={"name": model}, origin={}, weights_digest=digest, input=inputs, taps=survey(network, inputs.shape)
    )
    return Backbone(spec=spec, module=network)


@pytest.mark.slow
@pytest.mark.parametrize("model", REAL)
def test_real_weights_pass_the_gate_in_float32_and_have_a_card_in_bfloat16(
    model: str, assets: Path, photos: np.ndarray, graphs: Path
) -> None:
    job = Job(real_backbone(model, assets), REAL[model][1], 4, cache=graphs)
    for name in ("onnxruntime", "openvino"):
        card = autotune.gate(job, job.engine(name), photos[:4])
        assert all(parity.relative < 1e-4 for parity in card.parity.values()), str(card)
    reduced = dataclasses.replace(job, precision="bfloat16")
    card = autotune.gate(reduced, reduced.engine("torch"), photos)
    assert all(parity.relative > 1e-4 for parity in card.parity.values())
    assert all(parity.median_cosine > 0.9 for parity in card.parity.values()), str(card)
