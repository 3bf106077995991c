"""Export a backbone and its taps to ONNX: pixels in, an output per tap, any batch size, reproducible bytes.

The exporter writes source locations into the graph and names values after operations. Both are removed, so that the
bytes depend only on the network, the taps and the versions, and so that a tap may have any name.
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
# The slash keeps it apart from a tap named `pixels`.
INPUT = "/pixels"


ADVICE = "Choose the engine `torch`."
"""Advice of an engine for a network without a graph."""


def cached_export(
    backbone: Backbone, specs: Mapping[str, TapSpec], *, cache: Path | None, instead: str = ADVICE
) -> bytes:
    """Return the ONNX file, from `cache/onnx/` if it was exported before.

    instead: advice at the end of the error for a network without a graph. Raises EngineError if the network has no
    graph or the exporter is not installed, and StoreError if the cache cannot be written.
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
    """Return the digest of everything that changes the file."""
    return graph_address(backbone, specs, {"version": VERSION, "opset": OPSET}, "onnx", "onnxscript")


def graph_address(backbone: Backbone, specs: Mapping[str, TapSpec], form: Mapping[str, int], *packages: str) -> str:
    """Return the digest of everything that changes the graph of a network. Projections and dtypes come after the graph.

    form: version numbers of the graph's form. packages: the packages that make it.
    """
    spec = backbone.spec
    return digest(
        {
            **form,
            "architecture": spec.architecture,
            "weights": spec.weights_digest,
            "input": spec.input.model_dump(mode="json"),
            "taps": [[name, tap.node, tap.pool, spec.taps[tap.node].model_dump()] for name, tap in specs.items()],
            "versions": versions(*packages_of(spec.architecture), *packages),
        }
    )


def export(backbone: Backbone, specs: Mapping[str, TapSpec], *, instead: str = ADVICE) -> bytes:
    """Export a network; raises EngineError with the reason if its graph cannot be traced or is too large for a file."""
    module = copy.deepcopy(backbone.module).cpu().to(memory_format=torch.contiguous_format)
    tapped = Tapped(Backbone(spec=backbone.spec, module=module), specs, early=False).eval()
    channels, height, width = backbone.spec.input.shape
    pixels = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    try:
        return export_module(tapped, {INPUT: pixels}, list(specs))
    except ValueError as error:
        raise EngineError(f"the network cannot be exported to ONNX: {error}. {instead}") from None


def export_module(module: torch.nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """Return a module as an ONNX file whose inputs and outputs have these names, for any number of rows.

    inputs: an example with two rows for each argument of the module. Raises ValueError with the reason, without a full
    stop, if the graph cannot be traced or is too large for a file.
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
                dynamic_shapes=_match_signature(module, [{0: batch}] * len(inputs)),
                external_data=False,
                verbose=False,
            )
        stripped = _normalise(program.model_proto, list(inputs), list(outputs))
        data: bytes = stripped.SerializeToString(deterministic=True)
    except Exception as error:  # noqa: BLE001 - any error of the exporter is the reason
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(reason[0].rstrip(".")) from None
    return data


def _match_signature(module: torch.nn.Module, shapes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Return the shapes in the form that torch expects: nested in a tuple if the module takes `*args`."""
    parameters = inspect.signature(module.forward).parameters.values()
    variadic = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return (tuple(shapes),) if variadic else tuple(shapes)


def _normalise(model: Any, inputs: list[str], outputs: list[str]) -> Any:
    """Remove metadata, and name the inputs and outputs."""
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
            # The exporter reports no error here. `len(images)` in a network causes this, unlike `images.shape[0]`.
            raise ValueError(f"expected a graph for any batch size, got one for {rows.dim_value} rows")
    _rename_values(graph, {value.name: name for value, name in zip(graph.input, inputs, strict=True)})
    # An output may feed another output, or be two taps: each tap gets an Identity node of its own.
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


def _rename_values(graph: Any, given: Mapping[str, str]) -> None:
    """Prefix every value of a graph and its subgraphs with a slash: no tap's name begins with a slash."""

    def rename(name: str) -> str:
        return name and given.get(name, f"/{name}")

    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = rename(value.name)
    del graph.value_info[:]
    for number, node in enumerate(graph.node):
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        node.name, node.doc_string = f"{number} {node.op_type}", ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename_values(inner, given)
