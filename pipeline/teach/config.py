"""Settings of the stage `teach`."""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.engines import Name, Precision
from pipeline.readers.augment import Views
from pipeline.settings.check import Settings

BACKBONE = "backbone"
"""The run of a teacher that is a backbone with its own classifier."""

LOGITS = "logits"
"""The folder of a teacher's scores, and the node of a network that gives them."""


def _form(value: Any) -> str:
    """Return the form of a value of `views`, which `pipeline.settings.check` leaves out of the path of a key."""
    return "constrained-views" if isinstance(value, dict | Views) else "int"


SomeViews = Annotated[
    Annotated[int, Field(ge=1), Tag("int")] | Annotated[Views, Tag("constrained-views")], Discriminator(_form)
]
"""A number, or settings: what is wrong with one is not said of the other."""


class TeachConfig(Settings):
    """A teacher: a run of `finetune` (its network), a run of `fit` (one of its heads), or a backbone by itself."""

    run: Annotated[str, Field(description="of fit or of finetune; or backbone: its own classifier")]
    backbone: Annotated[str, Field(description="that the run stands on")]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="entries of `prepare`")
    input: Annotated[str | None, Field(description="of a run of fit: the tap, or taps joined by +")] = None
    head: Annotated[str | None, Field(description="of a run of fit")] = None
    labels: Annotated[int | None, Field(ge=1, description="of a run of fit: labels per class")] = None
    draw: Annotated[int | None, Field(ge=0, description="of a run of fit: draw or seed")] = None
    classes: Annotated[
        tuple[str, ...], Field(description="of a backbone by itself: names of its outputs, where it has none")
    ] = ()
    views: Annotated[
        SomeViews | None,
        Field(description="augmented copies of every sample; of a head so many of those that its taps have"),
    ] = None
    top_k: Annotated[int | None, Field(ge=1, description="logits of a row that are kept; the rest is uniform")] = None
    top_k_temperature: Annotated[float, Field(gt=0, description="at which the rest has the mass that it had")] = 1.0
    hints: Annotated[
        tuple[str, ...], Field(description="nodes of a network whose rows are stored too, as they are")
    ] = ()
    hints_dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(
        default="float16", description="of stored rows of `hints`"
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="images that the network takes at once"
    )
    engine: Annotated[Literal[Name, "auto"], Field(description="of a network, as extraction has it")] = "auto"
    precision: Precision = Field(default="float32", description="of the network")
    max_rejected: Annotated[float, Field(ge=0, le=1, description="share of samples without scores")] = 0.01

    @model_validator(mode="after")
    def _together(self) -> "TeachConfig":
        folders = [LOGITS, *(hint_folder(name) for name in self.hints)]
        if len(set(folders)) < len(folders):
            raise ValueError(f"`hints`: expected different nodes, and not the logits, got {', '.join(self.hints)}")
        if self.top_k is None and "top_k_temperature" in self.model_fields_set:
            raise ValueError("`top_k_temperature`: expected it with `top_k`, got none")
        if "hints_dtype" in self.model_fields_set and not self.hints:
            raise ValueError("`hints_dtype`: expected it with `hints`, got none")
        if self.classes and self.run != BACKBONE:
            raise ValueError(f"`classes`: expected them with `run: {BACKBONE}`, got {self.run!r}, which knows its own")
        return self


def hint_folder(node: str) -> str:
    """Return the name of the folder of a node's rows."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", node).strip("-_")
