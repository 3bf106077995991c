"""Export a trained model: write its file, compare that with the pipeline, describe it; all appear at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.export import card, check, graph
from pipeline.export.graph import FILES, Format, Run
from pipeline.export.int8 import quantise
from pipeline.export.model import Output, build_end, list_outputs
from pipeline.export.samples import choose_images, find_project_data
from pipeline.files import AnyPath, as_path, fresh_folder, read_json, sha256_file, write_json, write_text
from pipeline.inference.trained_model import TrainedModel, load
from pipeline.runtime import SILENT, Reporter

COMPARED = 32  # images on which an exported file is compared with the pipeline


@dataclass(frozen=True)
class Exported:
    """An exported model: its file, the content of model.json, and what a user should know of it, a line each."""

    file: Path
    about: dict[str, Any]
    lines: list[str]


def export(
    run: AnyPath,
    out: AnyPath,
    *,
    form: str = "onnx",
    int8: bool = False,
    max_drop: float = 0.02,
    file: str | None = None,
    backbone: AnyPath | None = None,
    trusted: Sequence[str] = (),
    cache: Path | None = None,
    reporter: Reporter = SILENT,
) -> Exported:
    """Export the model of a run's folder to the folder `out`: the model, model.json, README.md and infer.py.

    form: onnx, openvino or torch. int8: quantise the backbone, where the metric of the task drops by at most `max_drop`
    on test rows. file, backbone, trusted: as `pipeline.inference.trained_model.load` takes them. cache: the folder of
    the feature cache, which keeps graphs of backbones. reporter: `log` gets a line before each slow step.

    Raises ConfigError for an `out` that holds something else, HeadError for a head that cannot be exported, EngineError
    for a backbone without a graph, a missing extra, an export that is not the pipeline's model, and where int8 drops by
    more; nothing is written then. Raises what `load` raises too.
    """
    out = as_path(out, "export: out").resolve()
    _refuse_other_content(out)
    form = graph.check_format(form)
    if int8 and form != "onnx":
        raise ConfigError(f"export: int8 is made by ONNX Runtime: expected the format onnx with it, got {form}.")
    model = load(run, file=file, backbone=backbone, trusted=trusted)
    build_end(model)  # what cannot be exported is refused before the backbone's graph is made
    outputs = list_outputs(model)
    images, made_of, lines = choose_images(model, COMPARED)
    with fresh_folder(out) as folder:
        path = folder / FILES[form]
        quantised = None
        reporter.log("making the graph of the backbone and of the head")
        run_file, parts = _write(model, outputs, form, path, cache=cache)
        reporter.log(f"comparing {FILES[form]} with the pipeline on {made_of}")
        deviations = check.compare(model, run_file, outputs, images)
        if int8:
            reporter.log("quantising the backbone, and measuring what that costs on test rows")
            made = quantise(model, outputs, parts, metric=_metric(model), max_drop=max_drop)
            path.write_bytes(made.data)
            deviations = check.compare(model, graph.run_onnx(path, outputs), outputs, images, limited=False)
            quantised, lines = made.about, [*lines, *made.lines]
        checked = check.to_json(deviations, made_of)
        about = card.to_json(model, outputs, form=form, check=checked, int8=quantised)
        write_text(folder / "README.md", card.build_card(model, about))
        write_text(folder / "infer.py", card.build_script(form))
        names = sorted(one.name for one in folder.iterdir())
        write_json(folder / "model.json", {**about, "files": {name: sha256_file(folder / name) for name in names}})
    size = sum(one.stat().st_size for one in out.glob("model.*") if one.name != "model.json")
    shape = ", ".join(map(str, about["input"]["shape"]))
    lines = [
        f"{out / FILES[form]}: {size:,} bytes, from pixels uint8 ({shape}) to {', '.join(one.name for one in outputs)}",
        *(f"{one.output}: {_describe(one)} on {made_of}" for one in deviations),
        *lines,
    ]
    return Exported(out / FILES[form], about, lines)


def _write(
    model: TrainedModel, outputs: Sequence[Output], form: Format, path: Path, *, cache: Path | None
) -> tuple[Run, tuple[bytes, bytes]]:
    """Write the file of a format; return what runs it, and the two graphs that it was made of, empty for torch."""
    if form == "torch":
        graph.write_torch(model, path)
        return graph.run_torch(path), (b"", b"")
    head = graph.export_head(model, outputs, casts=form != "openvino")
    parts = (graph.export_backbone(model, cache=cache), head)
    data = graph.join_graphs(*parts, outputs)
    if form == "openvino":
        graph.write_openvino(data, path)
        return graph.run_openvino(path, outputs), parts
    path.write_bytes(data)
    return graph.run_onnx(path, outputs), parts


def _refuse_other_content(out: Path) -> None:
    """Raise ConfigError where a folder holds something that is no export."""
    if out.is_file():
        raise ConfigError(f"{out}: expected a folder to write, got a file. Name another one, or move it away.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        known = "export" in read_json(out / "model.json")
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise ConfigError(
            f"{out}: expected an empty folder, a new one, or an earlier export, got other files. Name another folder."
        )


def _describe(one: check.Deviation) -> str:
    return f"at most {one.largest:.1e} from the pipeline, {one.same:.1%} of the predictions are the same"


def _metric(model: TrainedModel) -> str:
    """Return the metric that decides the run's task: that of its evaluation, or the usual one."""
    path = find_project_data(model) / "plots" / f"{model.folder.absolute().name}.json"
    result = read_json(path).get("metric") if path.is_file() else None
    return str(result or getattr(EvaluateConfig().metric, model.kind))
