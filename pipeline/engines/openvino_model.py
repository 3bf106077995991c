"""Convert a backbone with its taps to an OpenVINO model: pixels in, one output per tap, in the order of the taps.

OpenVINO converts a trace of the network, which is faster than an export to ONNX. A trace records the operations on one
example. If these depend on values or on the number of rows (torch warns), or if OpenVINO lacks an
operator, the network is exported to ONNX instead, which raises an error that says why if it fails too.
"""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino
import torch

from pipeline.backbones.feature_extractor import Tapped
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import TapSpec
from pipeline.engines.onnx_export import cached_export, graph_address
from pipeline.files import fresh_folder
from pipeline.store.location import writable
from pipeline.store.use import touch

VERSION = 1
FILE = "model.xml"


def cached_model(backbone: Backbone, specs: Mapping[str, TapSpec], *, cache: Path | None) -> Any:
    """Return the model, from `cache/openvino/` if it was converted before.

    Raises EngineError if neither a trace nor ONNX can represent the network, and StoreError if the cache cannot be
    written.
    """
    if cache is None:
        return _convert(backbone, specs, cache=None)
    folder = cache / "openvino" / address(backbone, specs)
    if not (folder / FILE).is_file():
        model = _convert(backbone, specs, cache=cache)
        with writable(cache), fresh_folder(folder) as temporary:
            openvino.save_model(model, temporary / FILE, compress_to_fp16=False)
    touch(folder)
    return openvino.Core().read_model(folder / FILE)


def address(backbone: Backbone, specs: Mapping[str, TapSpec]) -> str:
    """Return the digest of everything that changes the model."""
    return graph_address(backbone, specs, {"version": VERSION}, "torch", "openvino")


def _convert(backbone: Backbone, specs: Mapping[str, TapSpec], *, cache: Path | None) -> Any:
    model = _trace(backbone, specs)
    if model is None:
        model = openvino.Core().read_model(cached_export(backbone, specs, cache=cache))
    return model


def _trace(backbone: Backbone, specs: Mapping[str, TapSpec]) -> Any | None:
    """Return the model from a trace; None if the trace may be wrong for other pixels."""
    module = copy.deepcopy(backbone.module).cpu().to(memory_format=torch.contiguous_format)
    whole = Tapped(Backbone(spec=backbone.spec, module=module), specs, early=False).eval()
    channels, height, width = backbone.spec.input.shape
    example = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            model = openvino.convert_model(whole, example_input=example)
    except Exception:  # noqa: BLE001 - ONNX may support what a trace does not, and its error says why if not
        return None
    return model if len(model.inputs) == 1 and len(model.outputs) == len(specs) else None
