"""Settings of the stage `teach`."""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.engines import Name, Precision
from pipeline.readers.augment import Views
from pipeline.settings.check import Settings

BACKBONE = "backbone"
"""The value of `run` for a backbone with its own classifier."""

LOGITS = "logits"
"""The folder of a teacher's logits, and the node of a network that computes them."""


def _views_form(value: Any) -> str:
    """Return the tag of the form that a value of `views` has: a number or settings.

    `pipeline.settings.check` leaves tags like these out of the path of a key.
    """
    return "constrained-views" if isinstance(value, dict | Views) else "int"


SomeViews = Annotated[
    Annotated[int, Field(ge=1), Tag("int")] | Annotated[Views, Tag("constrained-views")], Discriminator(_views_form)
]
"""A number or settings, with a tag for each, so that an error is about the form in the file."""


class TeachConfig(Settings):
    """A teacher: the network of a run of `finetune`, a head of a run of `fit`, or a backbone with its classifier."""

    run: Annotated[str, Field(description="a run of fit or finetune; backbone: the backbone's own classifier")]
    backbone: Annotated[str, Field(description="backbone of the run")]
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="entries of `prepare`")
    input: Annotated[str | None, Field(description="for a run of fit: the tap, or taps joined by +")] = None
    head: Annotated[str | None, Field(description="for a run of fit: name of the head")] = None
    labels: Annotated[int | None, Field(ge=1, description="for a run of fit: labels per class")] = None
    draw: Annotated[int | None, Field(ge=0, description="for a run of fit: draw or seed")] = None
    classes: Annotated[
        tuple[str, ...], Field(description="for `run: backbone`: names of its outputs, if it has none")
    ] = ()
    views: Annotated[
        SomeViews | None,
        Field(description="augmented copies of every sample; for a head: how many of its taps' views to use"),
    ] = None
    top_k: Annotated[int | None, Field(ge=1, description="number of logits stored per row; the others are uniform")] = (
        None
    )
    top_k_temperature: Annotated[
        float, Field(gt=0, description="temperature at which the mass of the other classes is preserved")
    ] = 1.0
    hints: Annotated[tuple[str, ...], Field(description="nodes of the network whose unpooled rows are stored too")] = ()
    hints_dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(
        default="float16", description="dtype of stored rows of `hints`"
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", description="images per batch")
    engine: Annotated[Literal[Name, "auto"], Field(description="engine of the network, as in `extract`")] = "auto"
    precision: Precision = Field(default="float32", description="precision of the network")
    max_rejected: Annotated[float, Field(ge=0, le=1, description="largest share of samples without scores")] = 0.01

    @model_validator(mode="after")
    def _check_combinations(self) -> "TeachConfig":
        folders = [LOGITS, *(hint_folder(name) for name in self.hints)]
        if len(set(folders)) < len(folders):
            raise ValueError(f"`hints`: expected different nodes, and not the logits, got {', '.join(self.hints)}")
        if self.top_k is None and "top_k_temperature" in self.model_fields_set:
            raise ValueError("`top_k_temperature`: expected it with `top_k`, got none")
        if "hints_dtype" in self.model_fields_set and not self.hints:
            raise ValueError("`hints_dtype`: expected it with `hints`, got none")
        if self.classes and self.run != BACKBONE:
            raise ValueError(f"`classes`: expected them with `run: {BACKBONE}`, got {self.run!r}, which has its own")
        return self


def hint_folder(node: str) -> str:
    """Return the folder name for the rows of a node."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", node).strip("-_")
