"""Write an exported model as ONNX, OpenVINO IR or a torch program, and run each as a function.

An ONNX graph is joined from two parts: the backbone, exported as for the engines, and the head module from the taps to
the scores. Quantisation changes only the backbone.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.engines import onnx_export
from pipeline.errors import ConfigError, EngineError, requires
from pipeline.export.model import Output, PixelsToScores, build_head_module, example_taps
from pipeline.inference.trained_model import TrainedModel
from pipeline.runtime import cores, versions

Format = Literal["onnx", "openvino", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
INPUT = "pixels"
INSTEAD = "Models on other backbones can be exported, such as those of torchvision or timm."

Run = Callable[[np.ndarray], list[np.ndarray]]
"""A function that maps pixels, uint8 (n, height, width, channels), to the outputs of a model, in order."""


def check_format(form: str) -> Format:
    """Return a format; raises ConfigError if it is unknown, EngineError with the missing extra if it needs one."""
    if form not in FILES:
        raise ConfigError(f"export: expected the format {', '.join(FILES)}, got {form!r}.")
    if form != "torch":
        with requires("onnx", what="export to ONNX", error=EngineError):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    if form == "openvino":
        with requires("openvino", what="export to OpenVINO", error=EngineError):
            import openvino  # noqa: F401
    return form


def list_libraries(form: Format) -> dict[str, str]:
    """Return the versions of the libraries that write a format."""
    if form == "torch":
        return versions("torch")
    if form == "openvino":
        return versions("torch", "onnx", "onnxscript", "openvino")
    import onnxruntime

    return {**versions("torch", "onnx", "onnxscript"), "onnxruntime": onnxruntime.__version__}


def export_backbone(model: TrainedModel, *, cache: Path | None) -> bytes:
    """Return the backbone up to its taps as ONNX; raises EngineError if it has no graph or an extra is missing."""
    spec = model.backbone.spec
    specs = {name: tap.model_copy(update={"node": spec.node(tap.node)}) for name, tap in model.taps.items()}
    return onnx_export.cached_export(model.backbone, specs, cache=cache, instead=INSTEAD)


def export_head(model: TrainedModel, outputs: Sequence[Output], *, casts: bool = True) -> bytes:
    """Return the module from the taps to the scores as ONNX; raises HeadError where a part cannot be exported.

    casts: as in `build_head_module`; False for OpenVINO, which removes casts to float16.
    """
    module = build_head_module(model, casts=casts)
    try:
        return onnx_export.export_module(module, example_taps(model), [output.name for output in outputs])
    except ValueError as error:
        raise EngineError(f"{model.folder}: the head cannot be exported to ONNX: {error}.") from None


def join_graphs(backbone: bytes, head: bytes, outputs: Sequence[Output]) -> bytes:
    """Join both graphs into a graph from `pixels` to the outputs. Equal input gives equal bytes."""
    import onnx
    from onnx import compose

    first, second = onnx.load_from_string(backbone), onnx.load_from_string(head)
    taps = [value.name for value in first.graph.output]
    # Both graphs have nodes with names such as /add; the prefixes keep them apart.
    whole = compose.merge_models(
        first, second, io_map=[(tap, tap) for tap in taps], prefix1="backbone:", prefix2="head:", name="model"
    )
    graph = whole.graph
    names = {f"backbone:{onnx_export.INPUT}": INPUT} | {f"head:{output.name}": output.name for output in outputs}
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    whole.producer_name, whole.producer_version = "icecore", ""
    onnx.checker.check_model(whole)
    data: bytes = whole.SerializeToString(deterministic=True)
    return data


def run_onnx(data: bytes | Path, outputs: Sequence[Output]) -> Run:
    """Return a function that runs an ONNX file with ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Spinning threads would occupy the cores that decode images, and distort the comparison of two models' times.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads, options.inter_op_num_threads = cores(), 1
    source = str(data) if isinstance(data, Path) else data
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in outputs]

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        result: list[np.ndarray] = session.run(names, {INPUT: pixels})
        return result

    return run


def write_openvino(data: bytes, path: Path) -> None:
    """Write an ONNX graph as OpenVINO IR in float32: `model.xml`, with the weights in `model.bin`."""
    import openvino

    try:
        model = openvino.Core().read_model(data)
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rstrip(".")
        raise EngineError(f"OpenVINO cannot convert the model: {reason}. Take `--format onnx`.") from None


def run_openvino(path: Path, outputs: Sequence[Output]) -> Run:
    """Return a function that runs OpenVINO IR on the CPU in float32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        result = compiled(pixels)
        return [np.array(result[output.name]) for output in outputs]

    return run


def write_torch(model: TrainedModel, path: Path) -> None:
    """Write the model as a `torch.export` program; raises EngineError if the backbone has no graph."""
    import torch

    channels, height, width = model.backbone.spec.input.shape
    pixels = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    whole = PixelsToScores(model).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(whole, (pixels,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    except Exception as error:  # noqa: BLE001 - the exporter can raise nearly anything
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise EngineError(f"the network cannot be exported to torch: {reason[0].rstrip('.')}. {INSTEAD}") from None


def run_torch(path: Path) -> Run:
    """Return a function that runs a `torch.export` program."""
    import torch

    module: Any = torch.export.load(path).module()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in module(torch.from_numpy(pixels))]

    return run
