"""A backbone and its taps as an ONNX file: pixels in, one output per tap, any batch size, the same bytes each time.

The exporter writes the place of every line of source into the graph, and names values after operations. Both are taken
out: bytes then depend on nothing but the network, the taps and the versions, and a tap may have any name.
"""

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.backbones.feature_extractor import Tapped
from pipeline.backbones.reference_output import packages_of
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.errors import EngineError, counted, requires
from pipeline.files import atomic, digest
from pipeline.runtime import versions
from pipeline.store.location import writable
from pipeline.store.use import touch

OPSET = 20
VERSION = 1
# A tap may be called `pixels`, but its name never holds a slash.
INPUT = "/pixels"


INSTEAD = "Choose the engine `torch`."
"""What an engine says where a network has no graph."""


def cached_export(
    backbone: Backbone, specs: Mapping[str, TapSpec], *, cache: Path | None, instead: str = INSTEAD
) -> bytes:
    """Return the ONNX file, from `cache/onnx/` if it was made before.

    instead: what to do where the network has no graph, the end of that message. Raises EngineError if the network has
    no graph or the exporter is not installed, and StoreError if the cache cannot be written.
    """
    with requires("onnx", what="export to ONNX", error=EngineError):
        import onnx  # noqa: F401  # the exporter needs both
        import onnxscript  # noqa: F401
    if cache is None:
        return export(backbone, specs, instead=instead)
    path = cache / "onnx" / f"{address(backbone, specs)}.onnx"
    if not path.is_file():
        data = export(backbone, specs, instead=instead)
        with writable(cache), atomic(path) as temporary:
            temporary.write_bytes(data)
        return data
    touch(path)
    return path.read_bytes()


def address(backbone: Backbone, specs: Mapping[str, TapSpec]) -> str:
    """Return the digest of all that shapes the file. Projections and dtypes come after the graph."""
    spec = backbone.spec
    return digest(
        {
            "version": VERSION,
            "opset": OPSET,
            "architecture": spec.architecture,
            "weights": spec.weights_digest,
            "input": spec.input.model_dump(mode="json"),
            "taps": [[name, tap.node, tap.pool, spec.taps[tap.node].model_dump()] for name, tap in specs.items()],
            "versions": versions(*packages_of(spec.architecture), "onnx", "onnxscript"),
        }
    )


def export(backbone: Backbone, specs: Mapping[str, TapSpec], *, instead: str = INSTEAD) -> bytes:
    """Export a network; raises EngineError with the reason if it has no graph, or one too large for a file."""
    module = copy.deepcopy(backbone.module).cpu().to(memory_format=torch.contiguous_format)
    whole = Tapped(Backbone(spec=backbone.spec, module=module), specs, early=False).eval()
    channels, height, width = backbone.spec.input.shape
    pixels = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    try:
        return export_module(whole, {INPUT: pixels}, list(specs))
    except ValueError as error:
        raise EngineError(f"the network cannot be exported to ONNX: {error}. {instead}") from None


def export_module(module: torch.nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """Return a module as an ONNX file whose inputs and outputs have these names, for any number of rows.

    inputs: an example of each of the module's arguments, of two rows. Raises ValueError with the reason, without a full
    stop, where the module has no graph, or one too large for a file.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=_like_arguments(module, [{0: batch}] * len(inputs)),
                external_data=False,
                verbose=False,
            )
        stripped = _strip(program.model_proto, list(inputs), list(outputs))
        data: bytes = stripped.SerializeToString(deterministic=True)
    except Exception as error:  # noqa: BLE001 - whatever stops the exporter is the reason
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(reason[0].rstrip(".")) from None
    return data


def _like_arguments(module: torch.nn.Module, shapes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Return the shapes of arguments as torch wants them: as one tuple where the module takes any number (`*args`)."""
    parameters = inspect.signature(module.forward).parameters.values()
    variadic = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    return (tuple(shapes),) if variadic else tuple(shapes)


def _strip(model: Any, inputs: list[str], outputs: list[str]) -> Any:
    """Take out what is not the network, and give the inputs and the outputs their names."""
    from onnx import helper

    graph = model.graph
    if len(graph.output) != len(outputs) or len(graph.input) != len(inputs):
        raise ValueError(
            f"expected {counted(len(inputs), 'input')} and {len(outputs)} outputs, got {len(graph.input)} and "
            f"{len(graph.output)}"
        )
    for value in graph.input:
        rows = value.type.tensor_type.shape.dim[0]
        if not rows.dim_param:
            # The exporter takes this for a success; `len(images)` in a network is enough, unlike `images.shape[0]`.
            raise ValueError(f"expected a graph for any batch size, got one for {rows.dim_value} rows")
    _rename(graph, {value.name: name for value, name in zip(graph.input, inputs, strict=True)})
    # An output may be made of another, or be two taps at once: each tap gets a node of its own.
    graph.node.extend(
        helper.make_node("Identity", [value.name], [name], name=f"tap {name}")
        for value, name in zip(graph.output, outputs, strict=True)
    )
    for value, name in zip(graph.output, outputs, strict=True):
        value.name = name
    for part in (model, graph, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return model


def _rename(graph: Any, given: Mapping[str, str]) -> None:
    """Put a slash before every value of a graph: no tap's name begins with one. Inner graphs too."""

    def renamed(name: str) -> str:
        return name and given.get(name, f"/{name}")

    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = renamed(value.name)
    del graph.value_info[:]
    for number, node in enumerate(graph.node):
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        node.name, node.doc_string = f"{number} {node.op_type}", ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, given)
