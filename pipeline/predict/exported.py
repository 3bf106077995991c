"""Predict with an exported model, from its file and model.json only, without the run that it was exported from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np

from pipeline.engines import BATCH
from pipeline.errors import DataError, EngineError, requires
from pipeline.export.card import EXPORT
from pipeline.export.graph import FILES, Run, run_onnx, run_openvino, run_torch
from pipeline.export.model import Output
from pipeline.files import read_json, sha256_file
from pipeline.inference.answers import Answers, TaskOutput, describe_tasks, no_answers
from pipeline.loading.images import pixel_batches
from pipeline.model_record import Fit
from pipeline.predict.row_source import usable_numbers
from pipeline.predictions import Scores
from pipeline.readers.image import ImageReader, ImageSpec
from pipeline.task import Kind


@dataclass(frozen=True, repr=False)
class ExportedModel:
    """A model file that maps pixels to scores, with the metadata of its model.json."""

    file: Path
    outputs: tuple[Output, ...]
    tasks: tuple[TaskOutput, ...]
    image: ImageSpec
    record: Fit
    """The fit that was exported."""

    def __repr__(self) -> str:
        return f"ExportedModel({str(self.file)!r}, {describe_tasks(self.tasks)})"

    @property
    def kind(self) -> Kind:
        """The kind of the first task."""
        return self.tasks[0].kind

    @property
    def scores(self) -> Scores:
        """What the scores are: probabilities, decision values, or none."""
        return self.outputs[0].scores

    @cached_property
    def _run(self) -> Run:
        with requires("openvino" if self.file.suffix == ".xml" else "onnx", what=str(self.file), error=EngineError):
            if self.file.suffix == ".onnx":
                return run_onnx(self.file, self.outputs)
            return run_openvino(self.file, self.outputs) if self.file.suffix == ".xml" else run_torch(self.file)

    def run(
        self, images: Iterable[bytes], count: int, unusable: dict[int, DataError]
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """Run the model; return the numbers of the usable images and the values of each output.

        images: at most `count` encoded images. unusable: receives the number of each image that cannot be used, with
        the reason.
        """
        size = max(1, ceil(count / ceil(max(1, count) / BATCH)))
        usable: list[int] = []
        parts: list[list[np.ndarray]] = []
        numbers = usable_numbers(unusable)
        for pixels in pixel_batches(
            images, ImageReader(self.image), batch_size=size, unusable=unusable, max_pixels=None
        ):
            usable += [next(numbers) for _ in pixels]
            parts.append(self._run(pixels))
        values = {
            output.name: np.concatenate([part[number] for part in parts])
            if parts
            else np.empty((0, max(1, len(output.classes))), np.float32)
            for number, output in enumerate(self.outputs)
        }
        return usable, values

    def answer_rows(self, rows: Mapping[str, np.ndarray]) -> list[Answers]:
        """Return the predictions of each task, given the values of each output."""
        return [self._answers(output, task, rows) for output, task in zip(self.outputs, self.tasks, strict=True)]

    def _answers(self, output: Output, task: TaskOutput, rows: Mapping[str, np.ndarray]) -> Answers:
        values = rows[output.name]
        if not len(values):
            return no_answers(task)
        scores = values[:, : len(output.classes)].astype(np.float32)
        return Answers(output.predictions(values), scores)


def find_exported(path: Path) -> Path | None:
    """Return the folder of an exported model, given the folder or its model file; None if `path` is something else."""
    folder = path.parent if path.suffix in {Path(name).suffix for name in FILES.values()} else path
    try:
        content = read_json(folder / "model.json")
    except (OSError, ValueError):
        content = None
    if isinstance(content, dict) and "export" in content:
        return folder
    if folder != path:
        raise DataError(
            f"{path}: expected model.json of an exported model next to it, got none. `icecore export RUN OUT` writes "
            "both files."
        )
    return None


def load_exported(folder: Path) -> ExportedModel:
    """Load an exported model; raises DataError for an export of another version and for a changed file."""
    about = read_json(folder / "model.json")
    if about["export"] != EXPORT:
        raise DataError(
            f"{folder}: expected an export of version {EXPORT}, got {about['export']}, which another version of "
            "icecore wrote. Export the run again."
        )
    file = folder / about["file"]
    if not file.is_file():
        raise DataError(f"{file}: no such file, which {folder / 'model.json'} names. Export the run again.")
    if sha256_file(file) != about["files"][about["file"]]:
        raise DataError(f"{file}: expected the file that was exported, got another one. Export the run again.")
    outputs = tuple(
        Output(
            **{name: value for name, value in output.items() if name != "threshold"}
            | {"classes": tuple(output["classes"])}
        )
        for output in about["outputs"]
    )
    tasks, start = [], 0
    for output in outputs:
        stop = start + (len(output.classes) or 1)
        tasks.append(TaskOutput(output.task, output.kind, output.classes, slice(start, stop)))
        start = stop
    image = ImageSpec.model_validate(about["preprocessing"])
    return ExportedModel(file, outputs, tuple(tasks), image, Fit.model_validate(about["made_from"]["fit"]))
