"""What a student and its teachers cost whoever runs them, side by side."""

from typing import Any

from pipeline.backbones import artefact
from pipeline.backbones.spec import TapSpec
from pipeline.engines.footprint import footprint
from pipeline.store.features import Features
from pipeline.teach import verify
from pipeline.teach.teacher import Teacher
from pipeline.training import DistillConfig
from pipeline.training.schooling import Paths, sources_of


def footprints(config: DistillConfig, paths: Paths, *, threads: int) -> dict[str, Any]:
    """The footprint of the student that a run left, and of each teacher of its task by name, as plain values.

    Of a head it is that of the network up to the taps that the head sees. Times vary from run to run.
    """
    student = footprint(artefact.read(paths.model / "backbone"), threads=threads, cache=paths.cache)
    teachers = {}
    for name in config.teachers[config.task]:
        one = Teacher.open(paths.teachers / name, check=False)
        sources = sources_of(one, paths)
        network = artefact.read(sources.network)
        teachers[name] = footprint(network, threads=threads, taps=_taps(one, sources), cache=paths.cache)
    told = {name: one.model_dump(mode="json") for name, one in teachers.items()}
    return {"student": student.model_dump(mode="json"), "teachers": told}


def _taps(teacher: Teacher, sources: verify.Sources) -> dict[str, TapSpec] | None:
    """What a head sees; None for a network, which runs to its end."""
    if teacher.identity["source"] != "head":
        return None
    _, features = sources.of_head
    return {tap: verify.spec_of(Features.open(features / tap).identity) for tap in teacher.identity["features"]}
