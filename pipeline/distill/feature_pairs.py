"""Pairs of a student's node and a teacher's node: whether they can be compared, and in which form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbones.spec import BackboneSpec, Tap
from pipeline.distill.losses_config import LossesConfig
from pipeline.errors import TrainingError, bullets, unknown, unknown_node

MAPS = ("CHW", "HWC")


@dataclass(frozen=True)
class FeaturePair:
    """A node of the student and a hint of the teacher that a loss compares.

    node: of the student. hint: the name of the teacher's hint. form: vectors (n, d), maps (n, channels, *size), or
    flattened rows. Maps of different size are averaged to the smaller size. projected: whether a trained layer maps the
    student's channels to the teacher's.
    """

    node: str
    hint: str
    student: Tap
    teacher: Tap
    form: Literal["vector", "map", "flat"]
    size: tuple[int, int] = (1, 1)
    projected: bool = False

    def of_student(self, rows: Tensor) -> Tensor:
        """Return the student's rows (n, *its shape) in the form."""
        return self._formed(rows, self.student)

    def of_teacher(self, rows: Tensor) -> Tensor:
        """Return the teacher's rows (n, *its shape) in the form, float32."""
        return self._formed(rows.float(), self.teacher)

    def projection(self) -> nn.Module:
        """Create a layer from the student's form to the teacher's: linear, or a convolution of one pixel (1 × 1)."""
        inputs, outputs = (width_of(tap) for tap in (self.student, self.teacher))
        return nn.Linear(inputs, outputs) if self.form == "vector" else nn.Conv2d(inputs, outputs, 1)

    def _formed(self, rows: Tensor, tap: Tap) -> Tensor:
        if self.form != "map":
            return rows.flatten(1)
        return average_pool(as_maps(rows, tap), self.size)


def pairs_of(losses: LossesConfig, spec: BackboneSpec, hints: Mapping[str, Tap]) -> dict[str, FeaturePair]:
    """Return the pairs that losses compare, by the names of the losses: `hints.0`, `attention.1`, `relational`.

    `spec`: the student's; `hints`: the teacher's nodes whose rows there are, by name. Losses whose weight is always
    zero have no pair. Raises TrainingError with all nodes and hints that do not exist, and all pairs whose shapes
    cannot be compared.
    """
    wanted = {f"hints.{number}": hint for number, hint in enumerate(losses.hints)}
    wanted |= {f"attention.{number}": attention for number, attention in enumerate(losses.attention)}
    named = {name: (setting.student, setting.teacher) for name, setting in wanted.items()}
    if losses.relational is not None:
        named["relational"] = (losses.relational.student, losses.relational.teacher)
    pairs, problems = {}, []
    for name, (student, teacher) in named.items():
        pair = _pair(name, student, teacher, spec, hints)
        if isinstance(pair, FeaturePair):
            pairs[name] = pair
        else:
            problems += pair
    if problems:
        raise TrainingError(bullets("losses: nodes that cannot be compared", problems))
    active = {name.removesuffix(".distance").removesuffix(".angle") for name in losses.active}
    return {name: pair for name, pair in pairs.items() if name in active}


def width_of(tap: Tap) -> int:
    """Return the channels of maps, and the width of tokens and vectors."""
    return tap.shape[0] if tap.layout == "CHW" else tap.shape[-1]


def as_maps(rows: Tensor, tap: Tap) -> Tensor:
    """Convert rows (n, *shape) to maps (n, channels, height, width), without tokens before the patches."""
    if tap.layout == "CHW":
        return rows
    if tap.layout == "LC":
        sides = _sides(tap)
        assert sides is not None, "the pair was refused"
        rows = rows[:, tap.prefix :].reshape(len(rows), *sides, width_of(tap))
    return rows.permute(0, 3, 1, 2)


def average_pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps (n, channels, height, width) to (n, channels, *size), as adaptive average pooling does.

    As two products of matrices: the gradient of torch's own pooling is not repeatable on a GPU.
    """
    if tuple(maps.shape[2:]) == size:
        return maps
    down, across = (
        functional.adaptive_avg_pool1d(torch.eye(before, device=maps.device)[None], after)[0].to(maps.dtype)
        for before, after in zip(maps.shape[2:], size, strict=True)
    )
    return down.T @ maps @ across


def _pair(
    name: str, student: str, teacher: str, spec: BackboneSpec, hints: Mapping[str, Tap]
) -> FeaturePair | list[str]:
    """Return a pair, or its problems."""
    node = spec.node(student)
    problems = []
    if node not in spec.taps:
        problems.append(f"{name}.student: {unknown_node(student, (*spec.aliases, *spec.taps))}")
    elif spec.taps[node].mixed:
        problems.append(
            f"{name}.student: expected values that depend on a single sample, but those of {node!r} depend on the "
            "other samples of the batch. Choose an earlier node."
        )
    if teacher not in hints:
        problems.append(f"{name}.teacher: {unknown('hint', teacher, hints)} Add it to the `hints` of the teacher.")
    if problems:
        return problems
    own, wanted = spec.taps[node], hints[teacher]
    kind = name.partition(".")[0]
    if kind == "relational":
        return FeaturePair(node, teacher, own, wanted, "flat")
    if kind == "hints" and len(own.shape) == len(wanted.shape) == 1:
        return FeaturePair(node, teacher, own, wanted, "vector", projected=True)
    sides, others = _sides(own), _sides(wanted)
    if sides is None or others is None:
        most = "two maps or two vectors" if kind == "hints" else "two maps"
        return [
            f"{name}: expected {most}, tokens of a square of patches among them, got {_describe(own)} of the student's "
            f"{student!r} and {_describe(wanted)} of the teacher's {teacher!r}, which "
            f"{'no projection brings to one shape' if kind == 'hints' else 'have no attention map'}. Name other nodes."
        ]
    size = min(sides[0], others[0]), min(sides[1], others[1])
    return FeaturePair(node, teacher, own, wanted, "map", size, projected=kind == "hints")


def _sides(tap: Tap) -> tuple[int, int] | None:
    """Return height and width of maps, or of a square of tokens; None for other shapes."""
    if len(tap.shape) == 3 and tap.layout in MAPS:
        height, width = tap.shape[1:] if tap.layout == "CHW" else tap.shape[:2]
        return height, width
    if len(tap.shape) == 2 and tap.layout == "LC":
        side = math.isqrt(tap.shape[0] - tap.prefix)
        return (side, side) if side and side**2 == tap.shape[0] - tap.prefix else None
    return None


def _describe(tap: Tap) -> str:
    kind = "maps" if tap.layout in MAPS else "tokens" if tap.layout == "LC" else "rows"
    return f"{'vectors' if len(tap.shape) == 1 else kind} of the shape {tap.shape}"
