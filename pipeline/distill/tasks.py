"""The tasks of a student with their teachers: match classes by name, and select the samples with teacher logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.backbones.spec import InputSpec
from pipeline.distill.config import DistillConfig
from pipeline.distill.loss import OutputSlice
from pipeline.errors import DataError, TrainingError, bullets
from pipeline.model_record import TeacherRecord
from pipeline.readers.augment import Views
from pipeline.store import key_arrays
from pipeline.task import Task
from pipeline.teach.ensemble import average_logits, match_classes
from pipeline.teach.teacher import Teacher, check_compatible


@dataclass(frozen=True)
class StudentTask:
    """A task, its slice of the student's outputs, and its teachers.

    columns: for each teacher, the index of its output for each class of the task.
    """

    path: Path
    task: Task
    branch: OutputSlice
    teachers: Sequence[Teacher]
    columns: Sequence[np.ndarray]

    @property
    def name(self) -> str:
        """Return the name of the task."""
        return self.branch.task

    @cached_property
    def keys(self) -> np.ndarray:
        """Return the keys of the task, S16, sorted."""
        return key_arrays.from_hex(list(self.task.keys))

    @cached_property
    def split(self) -> np.ndarray:
        """Return the split of each row of the task, as text."""
        splits: np.ndarray = self.task.table["split"].to_numpy()
        return splits

    @cached_property
    def classes(self) -> list[str]:
        """Return the classes of the task, in the order of the student's outputs."""
        return self.task.classes

    def known(self, keys: np.ndarray) -> np.ndarray:
        """Return which samples have logits of all teachers, bool (n,); False everywhere without a teacher."""
        if not self.teachers:
            return np.zeros(len(keys), bool)
        known: np.ndarray = np.logical_and.reduce([teacher.has(keys) for teacher in self.teachers])
        return known

    def logits(self, keys: np.ndarray, view: int | None) -> np.ndarray:
        """Return logits float32 (n, classes of the task); with several teachers, of their mean probabilities."""
        own = [
            teacher.logits(keys, view)[:, columns] for teacher, columns in zip(self.teachers, self.columns, strict=True)
        ]
        return average_logits(own, self.task.kind)


def student_tasks(config: DistillConfig, *, tasks: Path, teachers: Path) -> list[StudentTask]:
    """Open the tasks of a run with their teachers, the task of the run first.

    Raises TrainingError for a regression, a teacher of another kind of task, different classes, and incompatible
    teachers.
    """
    student_tasks: list[StudentTask] = []
    start = 0
    for name, names in config.teachers.items():
        path = tasks / f"{name}.parquet"
        task = Task.read(path)
        if task.kind == "regression":
            raise TrainingError(
                f"{path}: expected a task with classes to learn from a teacher, got a regression. Fine-tune instead."
            )
        own = [Teacher.open(teachers / teacher) for teacher in names]
        check_compatible(own)
        for teacher in own:
            if teacher.kind != task.kind:
                raise TrainingError(
                    f"{teacher.folder}: expected a teacher of a {task.kind}, as the task {name} is, got one of a "
                    f"{teacher.kind}. Take a teacher of this task."
                )
        columns = [match_classes(teacher.classes, task.classes, where=str(teacher.folder)) for teacher in own]
        stop = start + len(task.classes)
        student_tasks.append(StudentTask(path, task, OutputSlice(name, task.kind, start, stop), own, columns))
        start = stop
    return student_tasks


def output_names(tasks: Sequence[StudentTask]) -> list[str]:
    """Return the names of a student's outputs: classes, or `<task>:<class>` if there are several tasks."""
    if len(tasks) == 1:
        return tasks[0].classes
    return [f"{task.name}:{name}" for task in tasks for name in task.classes]


def check_same_preprocessing(config: DistillConfig, tasks: Sequence[StudentTask], inputs: InputSpec) -> Views | None:
    """Return the settings of the stored views that the student trains on; None for the original samples.

    Raises TrainingError, with the fields, if the student's preprocessing differs from a teacher's, and for views that
    were not stored.
    """
    teachers = {teacher.name: teacher for task in tasks for teacher in task.teachers}
    problems: list[str] = []
    for teacher in teachers.values():
        count = 0 if teacher.views is None else teacher.views.count
        if count < config.views:
            problems.append(
                f"{teacher.folder}: expected {config.views} views, got {count}. Give the entry of `teach` `views` with "
                f"`count: {config.views}`, or ask for fewer."
            )
        if config.preprocessing == "same" and (different := teacher.read_as(inputs)):
            problems.append(
                f"{teacher.folder}: expected images read as {config.student} reads them, got other pixels: "
                f"{'; '.join(different)}. Freeze the student with that `input`, or set `preprocessing: own`."
            )
    if problems:
        raise TrainingError(bullets("the student would not see what its teachers saw", problems))
    if not config.views:
        return None
    views = {
        name: teacher.views.model_copy(update={"count": config.views})
        for name, teacher in teachers.items()
        if teacher.views
    }
    first, *others = views
    for name in others:
        if views[name] != views[first]:
            raise TrainingError(
                f"{teachers[name].folder}: expected the views of {teachers[first].folder}, got others: the student "
                "sees one image for both. Teach both with the same `views`."
            )
    return views[first]


def check_rows(task: StudentTask, keys: np.ndarray) -> None:
    """Raise DataError, with the number of missing samples, unless a task's teachers have logits of all samples."""
    for teacher in task.teachers:
        has_logits = teacher.has(keys)
        if not has_logits.all():
            missing = key_arrays.to_hex(keys[~has_logits])
            raise DataError(
                f"{teacher.folder}: expected scores of all {len(keys):,} samples that {task.name} is learned from, "
                f"got {len(missing):,} without, the first is {missing[0]}. Add their data sets to "
                f"`teach.{teacher.name}.datasets`, or run `icecore repro teach@{teacher.name}`."
            )


def teacher_records(task: StudentTask) -> tuple[TeacherRecord, ...]:
    """Return the records of the teachers of a task: the run of each, and for a run of `fit` the head."""
    records = []
    for teacher in task.teachers:
        known = teacher.record["settings"] | teacher.record["source"]
        source = {name: known[name] for name in ("run", "backbone", "head", "input", "labels", "draw")}
        records.append(TeacherRecord(name=teacher.name, **source, identity=dict(teacher.identity)))
    return tuple(records)
