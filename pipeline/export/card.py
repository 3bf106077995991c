"""The files next to an exported model: model.json for programs, a model card for people, a script that runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.backbones.spec import read_spec
from pipeline.errors import PipelineError
from pipeline.export.graph import FILES, INPUT, Format, list_libraries
from pipeline.export.model import Output
from pipeline.export.samples import find_project_data
from pipeline.files import read_json, sha256_file
from pipeline.inference.trained_model import TrainedModel
from pipeline.model_record import has_evaluated, read_record
from pipeline.model_record import to_json as record_to_json
from pipeline.task import SPLITS, Task

EXPORT = 1
"""The format version of an export, stored in model.json under the key `export`."""

LIBRARIES: Mapping[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
LOAD: Mapping[Format, str] = {
    "onnx": 'onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])',
    "openvino": 'openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
    "torch": "torch.export.load(sys.argv[1]).module()",
}
CALL: Mapping[Format, str] = {
    "onnx": 'session.run([item["name"] for item in outputs], {"pixels": pixels})',
    "openvino": '[session(pixels)[item["name"]] for item in outputs]',
    "torch": "[value.detach().numpy() for value in session(torch.from_numpy(pixels.copy()))]",
}
"""The parts of infer.py that differ between formats: how a model is loaded, and how it is called."""

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "map", "log_loss", "ece", "r2", "mae")
SHOWN = 40  # the most classes that the card lists


def build_script(form: Format) -> str:
    """Return infer.py for a format: at most 40 lines that need only the format's library, NumPy and Pillow."""
    text = (Path(__file__).parent / "infer.py").read_text(encoding="utf-8")
    for by_format in (FILES, LOAD, CALL):
        text = text.replace(by_format["onnx"], by_format[form])
    return text.replace("import onnxruntime", f"import {LIBRARIES[form]}")


def to_json(
    model: TrainedModel, outputs: Sequence[Output], *, form: Format, check: Mapping[str, Any], int8: Any | None
) -> dict[str, Any]:
    """Return the content of model.json, without the digests of the files next to it."""
    spec = model.backbone.spec
    channels, height, width = spec.input.shape
    head = model.record.file
    return {
        "export": EXPORT,
        "run": model.folder.absolute().name,
        "file": FILES[form],
        "format": form,
        "input": {"name": INPUT, "dtype": "uint8", "shape": ["batch", height, width, channels]},
        "outputs": [{**asdict(output), "threshold": output.threshold} for output in outputs],
        "preprocessing": spec.input.image.model_dump(mode="json"),
        "in_the_graph": {"divided_by": 255, "mean": spec.input.mean, "std": spec.input.std},
        "made_from": {
            "model.json": sha256_file(model.folder / "model.json"),
            "head": None if head is None else {"file": head, "sha256": sha256_file(model.folder / head)},
            "fit": {
                name: getattr(model.record, name)
                for name in ("head", "input", "labels", "draw", "params", "temperature")
            },
            "taps": {name: tap.model_dump(mode="json") for name, tap in model.taps.items()},
            "backbone": {
                "architecture": spec.architecture,
                "weights": spec.weights_digest,
                "origin": spec.origin,
                "precision": model.precision,
            },
            "task": record_to_json(read_record(model.folder).task),
        },
        "metrics": read_metrics(model),
        "check": dict(check),
        "int8": int8,
        "versions": list_libraries(form),
    }


def read_metrics(model: TrainedModel) -> dict[str, Any] | None:
    """Return the metrics of this fit on test rows, from `evaluate`; None if it was not evaluated or the run changed."""
    path = find_project_data(model) / "plots" / f"{model.folder.absolute().name}.json"
    if not path.is_file():
        return None
    result = read_json(path)
    if not has_evaluated(result, read_record(model.folder)):
        return None
    method = (model.record.head, model.record.input, model.record.labels)
    rows = [row for row in result["table"] if (row["head"], row["input"], row["labels"]) == method]
    if not rows:
        return None
    row, metric = rows[0], result["metric"]
    names = {metric: None, **dict.fromkeys(METRICS)}
    return {
        "rows": "test",
        "test_rows": row["test_rows"],
        "draws": row["draws"],
        "decided_by": metric,
        "interval": {"level": result.get("interval"), "low": row[f"{metric}_low"], "high": row[f"{metric}_high"]},
        "values": {name: row[name] for name in names if row.get(name) is not None},
    }


def describe_licence(model: TrainedModel) -> str:
    """Return a sentence on the licence of the weights; for a trained network, of the weights it started from."""
    origin = model.backbone.spec.origin
    if "license" not in origin and isinstance(origin.get("backbone"), str):
        try:
            origin = read_spec(find_project_data(model) / "backbones" / origin["backbone"]).origin
        except PipelineError:
            origin = {}
    stated = str(origin.get("license") or "not stated")
    return (
        f"The weights of the backbone are under {stated}."
        if stated != "not stated"
        else ("The licence of the backbone's weights is unknown: ask at their source before you pass this model on.")
    )


def build_card(model: TrainedModel, about: Mapping[str, Any]) -> str:
    """Return the model card as Markdown. about: the content of model.json."""
    form: Format = about["format"]
    spec, task = model.backbone.spec, about["made_from"]["task"]
    fit = about["made_from"]["fit"]
    lines = [
        f"# {about['run']}",
        "",
        *[_purpose(output) for output in about["outputs"]],
        "",
        "## Use",
        "",
        "```console",
        f"$ pip install {LIBRARIES[form]} numpy pillow",
        f"$ python infer.py {about['file']} photo.jpg",
        "```",
        "",
        f"Input `{INPUT}`: uint8 (batch, {', '.join(map(str, about['input']['shape'][1:]))}), pixels after this "
        f"preprocessing: {spec.input.description.split(', mean')[0]}. The graph normalises them.",
        "",
        *[_output_line(output) for output in about["outputs"]],
        "",
        "## Model",
        "",
        f"* Backbone: {_network_name(spec.architecture)}, weights {spec.weights_digest[:16]}….",
        *[
            f"* Features: node `{tap.node}`, pooling {tap.pool}"
            + ("" if tap.project is None else f", projected to {tap.project}")
            + f", rounded to {tap.dtype}."
            for tap in (model.taps.values() if model.head is not None else ())
        ],
        f"* {'Head' if model.head is not None else 'Trained by'}: {fit['head']}"
        + (f" with {_parameters(fit['params'])}" if fit["params"] else "")
        + ".",
        "",
        "## Metrics",
        "",
        *_metric_lines(about["metrics"]),
        *_int8_lines(about["int8"]),
        *[
            f"* Against the pipeline on {about['check']['images']}: `{deviation['output']}` deviates by at most "
            f"{deviation['largest']:.1e}; {deviation['same']:.1%} of {deviation['images']} predictions are the same."
            for deviation in about["check"]["outputs"]
        ],
        "",
        "## Data",
        "",
        *_data(model, task),
        "",
        "## Limits",
        "",
        *_limits(model, about),
        "",
        "## Licence",
        "",
        describe_licence(model),
        "",
    ]
    return "\n".join(lines)


def _purpose(output: Mapping[str, Any]) -> str:
    classes = output["classes"]
    if output["kind"] == "regression":
        return f"Predicts a number, `{output['task']}`, of an image."
    names = ", ".join(classes[:SHOWN]) + (", … (all in model.json)" if len(classes) > SHOWN else "")
    if output["kind"] == "multilabel":
        return f"Predicts the labels of an image, out of {len(classes):,}: {names}."
    return f"Predicts the class of an image, one of {len(classes):,}: {names}."


def _output_line(output: Mapping[str, Any]) -> str:
    if output["kind"] == "regression":
        return f"Output `{output['name']}`: float32 (batch, 1)."
    what = "probabilities" if output["scores"] == "probability" else "decision values, not probabilities,"
    which = "the largest is the prediction"
    if output["kind"] == "multilabel":
        which = f"labels above {output['threshold']:g} are predicted"
    return f"Output `{output['name']}`: float32 (batch, {len(output['classes'])}), {what} of the classes; {which}."


def _network_name(architecture: Mapping[str, Any]) -> str:
    name = architecture.get("name") or architecture.get("model") or ""
    base = architecture.get("base")
    return (
        _network_name(base)
        if not name and isinstance(base, Mapping)
        else f"{architecture.get('family', '')} {name}".strip()
    )


def _parameters(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )


def _metric_lines(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return ["* The run was not evaluated: `icecore repro evaluate` measures it on test rows."]
    metric, ends = result["decided_by"], result["interval"]
    draws = f", the mean of {result['draws']} training sets" if result["draws"] > 1 else ""
    between = ""
    if ends["low"] is not None and ends["level"] is not None:
        between = f" ({ends['level']:.0%} interval {ends['low']:.3f} to {ends['high']:.3f})"
    lines = [f"* {metric} {result['values'][metric]:.3f}{between} on {result['test_rows']:,} test rows{draws}."]
    others = [f"{name} {value:.3f}" for name, value in result["values"].items() if name != metric]
    return lines + ([f"* Also: {', '.join(others)}."] if others else [])


def _int8_lines(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return []
    return [
        f"* int8: {result['metric']} {result['int8']:.3f} against {result['float32']:.3f} of float32 on "
        f"{result['rows']:,} test rows (drop {result['low']:.3f} to {result['high']:.3f}); "
        f"{result['bytes'] / result['float32_bytes']:.0%} of its bytes."
    ]


def _data(model: TrainedModel, task: Mapping[str, Any]) -> list[str]:
    path = find_project_data(model) / "tasks" / f"{task['name']}.parquet"
    lines = [f"* Task `{task['name']}`, SHA-256 {task['sha256'][:16]}…"]
    if path.is_file() and sha256_file(path) == task["sha256"]:
        loaded = Task.read(path)
        lines += [f"* {len(loaded.rows(split)):,} {split} rows" for split in SPLITS]
    return lines


def _limits(model: TrainedModel, about: Mapping[str, Any]) -> list[str]:
    lines = []
    if any(output["classes"] for output in about["outputs"]):
        lines.append("* It knows only the classes above: an image of anything else is assigned to one of them, too.")
    lines.append("* The metrics hold for images like those of the data. Other cameras, places or times may differ.")
    if (
        any(output["scores"] == "probability" for output in about["outputs"])
        and about["made_from"]["fit"]["temperature"] is None
    ):
        lines.append("* The probabilities were not calibrated on held-out rows.")
    if model.precision != "float32":
        lines.append(f"* The head was fitted on features in {model.precision}; this file computes in float32.")
    if about["preprocessing"].get("draft"):
        lines.append("* The pipeline decodes large JPEGs at a fraction of their size; infer.py at full size.")
    return lines
