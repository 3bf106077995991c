"""The tasks that a student learns, each with its teachers: classes matched by name, and who speaks of which samples."""

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
from pipeline.store import keys as key_arrays
from pipeline.task import Task
from pipeline.teach.ensemble import average_logits, match_classes
from pipeline.teach.teacher import Teacher, check_compatible


@dataclass(frozen=True)
class StudentTask:
    """A task, its columns of the student's outputs, and its teachers.

    columns: of each teacher, which of its classes each class of the task is.
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
        found: np.ndarray = self.task.table["split"].to_numpy()
        return found

    @cached_property
    def classes(self) -> list[str]:
        """Return the classes of the task, in the order of the student's outputs."""
        return self.task.classes

    def known(self, keys: np.ndarray) -> np.ndarray:
        """Return which samples all teachers have scores of, bool (n,); none without a teacher."""
        if not self.teachers:
            return np.zeros(len(keys), bool)
        found: np.ndarray = np.logical_and.reduce([one.has(keys) for one in self.teachers])
        return found

    def logits(self, keys: np.ndarray, view: int | None) -> np.ndarray:
        """Return logits float32 (n, classes of the task); of several teachers, of the mean of their probabilities."""
        own = [one.logits(keys, view)[:, columns] for one, columns in zip(self.teachers, self.columns, strict=True)]
        return average_logits(own, self.task.kind)


def student_tasks(config: DistillConfig, *, tasks: Path, teachers: Path) -> list[StudentTask]:
    """Open the tasks of a run with their teachers, the task of the run first.

    Raises TrainingError for a regression, for a teacher of another kind of task, for classes that differ, and for
    teachers that do not go together.
    """
    found: list[StudentTask] = []
    start = 0
    for name, names in config.teachers.items():
        path = tasks / f"{name}.parquet"
        task = Task.read(path)
        if task.kind == "regression":
            raise TrainingError(
                f"{path}: expected a task with classes to learn from a teacher, got a regression. Fine-tune instead."
            )
        own = [Teacher.open(teachers / one) for one in names]
        check_compatible(own)
        for one in own:
            if one.kind != task.kind:
                raise TrainingError(
                    f"{one.folder}: expected a teacher of a {task.kind}, as the task {name} is, got one of a "
                    f"{one.kind}. Take a teacher of this task."
                )
        columns = [match_classes(one.classes, task.classes, where=str(one.folder)) for one in own]
        stop = start + len(task.classes)
        found.append(StudentTask(path, task, OutputSlice(name, task.kind, start, stop), own, columns))
        start = stop
    return found


def output_names(subjects: Sequence[StudentTask]) -> list[str]:
    """Return the names of a student's outputs: classes, and of several tasks `<task>:<class>`."""
    if len(subjects) == 1:
        return subjects[0].classes
    return [f"{one.name}:{name}" for one in subjects for name in one.classes]


def check_same_preprocessing(config: DistillConfig, subjects: Sequence[StudentTask], inputs: InputSpec) -> Views | None:
    """Return the stored views that the student gets, None for samples as they are.

    Raises TrainingError where student and teacher would not see the same pixels, with the fields, and for views that
    were not stored.
    """
    teachers = {one.name: one for subject in subjects for one in subject.teachers}
    problems: list[str] = []
    for one in teachers.values():
        count = 0 if one.views is None else one.views.count
        if count < config.views:
            problems.append(
                f"{one.folder}: expected {config.views} views, got {count}. Give the entry of `teach` `views` with "
                f"`count: {config.views}`, or ask for fewer."
            )
        if config.preprocessing == "same" and (different := one.read_as(inputs)):
            problems.append(
                f"{one.folder}: expected images read as {config.student} reads them, got other pixels: "
                f"{'; '.join(different)}. Freeze the student with that `input`, or set `preprocessing: own`."
            )
    if problems:
        raise TrainingError(bullets("the student would not see what its teachers saw", problems))
    if not config.views:
        return None
    made = {name: one.views.model_copy(update={"count": config.views}) for name, one in teachers.items() if one.views}
    first, *others = made
    for name in others:
        if made[name] != made[first]:
            raise TrainingError(
                f"{teachers[name].folder}: expected the views of {teachers[first].folder}, got others: the student "
                "sees one image for both. Teach both with the same `views`."
            )
    return made[first]


def check_rows(subject: StudentTask, keys: np.ndarray) -> None:
    """Raise DataError unless the teachers of a task have scores of these samples, with how many are missing."""
    for one in subject.teachers:
        there = one.has(keys)
        if not there.all():
            missing = key_arrays.to_hex(keys[~there])
            raise DataError(
                f"{one.folder}: expected scores of all {len(keys):,} samples that {subject.name} is learned from, got "
                f"{len(missing):,} without, the first is {missing[0]}. Add their data sets to `teach.{one.name}."
                f"datasets`, or run `dvc repro teach@{one.name}`."
            )


def teacher_records(task: StudentTask) -> tuple[TeacherRecord, ...]:
    """Return the records of the teachers of a task: of each the run, and of a run of fit which of its heads."""
    records = []
    for teacher in task.teachers:
        known = teacher.record["settings"] | teacher.record["source"]
        source = {name: known[name] for name in ("run", "backbone", "head", "input", "labels", "draw")}
        records.append(TeacherRecord(name=teacher.name, **source, identity=dict(teacher.identity)))
    return tuple(records)
