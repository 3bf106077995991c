"""The cost of a student and its teachers at inference."""

from typing import Any

from pipeline.backbones import serialization
from pipeline.backbones.spec import TapSpec
from pipeline.distill.config import DistillConfig
from pipeline.distill.sources import Paths, sources_of
from pipeline.engines.profiling import Network, measure_footprints
from pipeline.store.features import Features
from pipeline.teach import verify
from pipeline.teach.teacher import Teacher

STUDENT = ""  # key of the student among the names of teachers


def footprints(config: DistillConfig, paths: Paths) -> dict[str, Any]:
    """Measure the footprint of a run's student and of each teacher of its task; return plain values by name.

    For a head, it is the footprint of the network up to the head's taps. Times vary from run to run.
    """
    networks = {STUDENT: Network(serialization.read(paths.model / "backbone"))}
    for name in config.teachers[config.task]:
        teacher = Teacher.open(paths.teachers / name, check=False)
        sources = sources_of(teacher, paths)
        networks[name] = Network(serialization.read(sources.network), _taps(teacher, sources))
    profiles = measure_footprints(networks, cache=paths.cache)
    plain = {name: profile.model_dump(mode="json") for name, profile in profiles.items()}
    return {"student": plain.pop(STUDENT), "teachers": plain}


def _taps(teacher: Teacher, sources: verify.Sources) -> dict[str, TapSpec] | None:
    """Return the taps that a head takes; None for a network, which runs to its end."""
    if teacher.identity["source"] != "head":
        return None
    _, features = sources.of_head
    return {tap: verify.spec_of(Features.open(features / tap).identity) for tap in teacher.identity["features"]}
