"""Settings of the losses of distillation. Values only, without torch."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.settings.check import Settings


def _weight(value: Any) -> Any:
    """Check a weight, and return it; raises with one sentence for any other value."""
    ends = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if not all(_is_amount(end) for end in ends):
        raise ValueError("expected a number of at least 0, or two such numbers, [from, to]")
    return value


def _is_amount(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 0 <= float(value) < math.inf
    except (TypeError, ValueError):
        return False


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[
    float | tuple[float, float],
    BeforeValidator(_weight),
    Field(description="weight, or [from, to]: linear over the training"),
]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Soft(Settings):
    """Soft targets (Hinton et al. 2015)."""

    weight: Weight = 1.0
    temperature: Temperature = Field(
        default=4.0, description="temperature that divides the logits of student and teacher"
    )


class Decoupled(Settings):
    """Decoupled distillation (Zhao et al. 2022): `alpha` of the target class, `beta` of the others."""

    weight: Weight = 1.0
    temperature: Temperature = Field(
        default=4.0, description="temperature that divides the logits of student and teacher"
    )
    alpha: Amount = Field(default=1.0, description="weight of the target class")
    beta: Amount = Field(default=8.0, description="weight of the other classes")


class OfNodes(Settings):
    """A node of the student that imitates a hint of the teacher."""

    weight: Weight = 1.0
    student: Annotated[str, Field(description="node or alias of the student")]
    teacher: Annotated[str, Field(description="hint in the teacher's entry of `teach`")]


class Relational(Settings):
    """Relations between the samples of a batch (Park et al. 2019)."""

    distance: Weight = 25.0
    angle: Weight = 50.0
    student: Annotated[str, Field(description="node or alias of the student")] = "penultimate"
    teacher: Annotated[str, Field(description="hint in the teacher's entry of `teach`")] = "penultimate"


class LossesConfig(Settings):
    """The losses of a student with their weights; the loss of a row is their sum."""

    labels: Annotated[Weight, Field(description="weight of the cross-entropy with labels")] = 0.0
    soft: Soft | None = Field(default=None, description="soft targets (Hinton et al. 2015)")
    decoupled: Decoupled | None = Field(default=None, description="decoupled distillation (Zhao et al. 2022)")
    hints: Annotated[tuple[OfNodes, ...], Field(description="hints with learned projections (Romero et al. 2015)")] = ()
    attention: Annotated[
        tuple[OfNodes, ...], Field(description="attention transfer of maps (Zagoruyko and Komodakis 2017)")
    ] = ()
    relational: Relational | None = Field(
        default=None, description="relational distillation of distances and angles (Park et al. 2019)"
    )

    @property
    def weights(self) -> dict[str, Weight]:
        """Return {path in the settings: weight}."""
        weights: dict[str, Weight] = {"labels": self.labels}
        for name, config in (("soft", self.soft), ("decoupled", self.decoupled)):
            if config is not None:
                weights[name] = config.weight
        for name, settings in (("hints", self.hints), ("attention", self.attention)):
            weights |= {f"{name}.{number}": config.weight for number, config in enumerate(settings)}
        if self.relational is not None:
            weights |= {"relational.distance": self.relational.distance, "relational.angle": self.relational.angle}
        return weights

    @property
    def active(self) -> dict[str, Weight]:
        """Return the weights that are above zero at any time."""
        return {name: weight for name, weight in self.weights.items() if at(weight, 0) or at(weight, 1)}

    @property
    def of_teacher(self) -> tuple[str, ...]:
        """Return the losses that need a teacher, such as `soft` and `hints.0`."""
        return tuple(name for name in self.active if name != "labels")

    @property
    def hint_names(self) -> tuple[str, ...]:
        """Return the names of the needed hints, each once."""
        names = [setting.teacher for setting in (*self.hints, *self.attention)]
        if self.relational is not None:
            names.append(self.relational.teacher)
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _check_weights(self) -> "LossesConfig":
        if not self.active:
            raise ValueError("expected a loss with a weight above zero, such as `soft: {weight: 0.9, temperature: 4}`")
        return self


def at(weight: float | tuple[float, float], share: float) -> float:
    """Return a weight after a share of the training, from 0 to 1."""
    if isinstance(weight, tuple):
        return weight[0] + (weight[1] - weight[0]) * share
    return weight
