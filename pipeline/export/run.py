"""Export a trained model: write its file, compare the file with the pipeline, describe it. All files appear at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.export import card, check, graph
from pipeline.export.graph import FILES, Format, Run
from pipeline.export.int8 import quantise_model
from pipeline.export.model import Output, build_head_module, list_outputs
from pipeline.export.samples import choose_images, find_project_data
from pipeline.files import AnyPath, as_path, fresh_folder, read_json, sha256_file, write_json, write_text
from pipeline.inference.trained_model import TrainedModel, load
from pipeline.runtime import SILENT, Reporter

COMPARED = 32  # images for the comparison of an exported file with the pipeline


@dataclass(frozen=True)
class ExportedFiles:
    """An exported model: its file, the content of model.json, and lines of text for the user."""

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
) -> ExportedFiles:
    """Export the model of a run to the folder `out`: the model file, model.json, README.md and infer.py.

    run: the run's folder below data/models.
    out: the folder to write: new, empty, or an earlier export.
    form: onnx, openvino or torch.
    int8: whether to quantise the backbone; refused if the task's metric drops by more than `max_drop` on test rows.
    file, backbone, trusted: as in `pipeline.inference.trained_model.load`.
    cache: the folder of the feature cache, which stores the graphs of backbones.
    reporter: `log` gets a line before each slow step.

    Raises ConfigError if `out` has other content, HeadError for a head that cannot be exported, EngineError for a
    backbone without a graph, a missing extra, a file that deviates from the pipeline and an excessive int8 drop, and
    the errors of `load`. Nothing is written then.
    """
    out = as_path(out, "export: out").resolve()
    _refuse_other_content(out)
    form = graph.check_format(form)
    if int8 and form != "onnx":
        raise ConfigError(f"export: int8 needs ONNX Runtime: expected the format onnx with it, got {form}.")
    model = load(run, file=file, backbone=backbone, trusted=trusted)
    build_head_module(model)  # raises for a head that cannot be exported, before the slow export of the backbone
    outputs = list_outputs(model)
    images, made_of, lines = choose_images(model, COMPARED)
    with fresh_folder(out) as folder:
        path = folder / FILES[form]
        quantised = None
        reporter.log("exporting the graphs of the backbone and the head")
        run_file, parts = _write(model, outputs, form, path, cache=cache)
        reporter.log(f"comparing {FILES[form]} with the pipeline on {made_of}")
        deviations = check.compare(model, run_file, outputs, images)
        if int8:
            reporter.log("quantising the backbone, and measuring the cost on test rows")
            result = quantise_model(model, outputs, parts, metric=_metric(model), max_drop=max_drop)
            path.write_bytes(result.data)
            deviations = check.compare(model, graph.run_onnx(path, outputs), outputs, images, limited=False)
            quantised, lines = result.about, [*lines, *result.lines]
        checked = check.to_json(deviations, made_of)
        about = card.to_json(model, outputs, form=form, check=checked, int8=quantised)
        write_text(folder / "README.md", card.build_card(model, about))
        write_text(folder / "infer.py", card.build_script(form))
        names = sorted(written.name for written in folder.iterdir())
        write_json(folder / "model.json", {**about, "files": {name: sha256_file(folder / name) for name in names}})
    size = sum(written.stat().st_size for written in out.glob("model.*") if written.name != "model.json")
    shape = ", ".join(map(str, about["input"]["shape"]))
    listed = ", ".join(output.name for output in outputs)
    lines = [
        f"{out / FILES[form]}: {size:,} bytes, from pixels uint8 ({shape}) to {listed}",
        *(f"{deviation.output}: {_describe(deviation)} on {made_of}" for deviation in deviations),
        *lines,
    ]
    return ExportedFiles(out / FILES[form], about, lines)


def _write(
    model: TrainedModel, outputs: Sequence[Output], form: Format, path: Path, *, cache: Path | None
) -> tuple[Run, tuple[bytes, bytes]]:
    """Write the file of a format; return a function that runs it, and the two joined graphs (empty for torch)."""
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
    """Raise ConfigError for a folder with files other than an export."""
    if out.is_file():
        raise ConfigError(f"{out}: expected a folder to write, got a file. Name a folder, or move the file away.")
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


def _describe(deviation: check.Deviation) -> str:
    return f"at most {deviation.largest:.1e} from the pipeline, {deviation.same:.1%} of the predictions are the same"


def _metric(model: TrainedModel) -> str:
    """Return the metric that decides the run's task: as in its evaluation, or the default."""
    path = find_project_data(model) / "plots" / f"{model.folder.absolute().name}.json"
    result = read_json(path).get("metric") if path.is_file() else None
    return str(result or getattr(EvaluateConfig().metric, model.kind))
