"""Settings of the stage `fit`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipeline import heads
from pipeline.errors import unknown
from pipeline.heads.preprocessing import Pca, Scale
from pipeline.heads.scoring import CRITERIA
from pipeline.heads.search import GRIDS, SearchConfig, automatic_search
from pipeline.settings.check import Settings, normalise_import_path
from pipeline.task import Kind
from pipeline.workers import WorkersConfig

FOLDS = 5
"""The number of cross-validation folds, unless `validation` sets it."""

SPLIT_ROWS = 1000
"""With at least this many validation rows, `validation: auto` uses the validation split instead of folds.

Choosing C needs a hundred rows (`python benchmarks/validation.py`); telling inputs apart that differ by a point of
accuracy takes a thousand.
"""

Input = Annotated[tuple[str, ...], Field(min_length=1)]


def _search_form(search: Any) -> str:
    """Return the tag of the form that a value of `search` has: text or settings."""
    return "str" if isinstance(search, str) else "constrained-search"


Search = Annotated[
    Annotated[Literal["auto", "none"], Tag("str")] | Annotated[SearchConfig, Tag("constrained-search")],
    Discriminator(_search_form),
]
"""The search: `auto` (the usual one of a head), `none`, or its settings."""


class RunConfig(WorkersConfig):
    """Who makes the sums that streaming heads are solved from, a piece of the training rows each; values are equal."""

    workers: Annotated[int, Field(ge=1, description="processes on this machine")] = 1


class FitConfig(Settings):
    """A run: heads on a task, for each input, number of labels per class and few-shot draw."""

    task: str = Field(description="an entry of `split`")
    backbone: str = Field(description="an entry of `extract`")
    inputs: Annotated[tuple[str | Input, ...], Field(min_length=1, description="taps, or lists of taps to join")]
    head: str | tuple[str, ...] | dict[str, dict[str, Any]] = Field(
        "logistic", description="a name or an import path, a list of them, or a mapping of them to their parameters"
    )
    params: dict[str, Any] = Field({}, description="of the head's scikit-learn class, where there is one head")
    scale: Scale = Field("standard", description="of each tap by itself, before taps are joined")
    pca: Pca | None = Field(
        default=None, description="principal components of each input: a number, a share of the variance, or settings"
    )
    search: Search = Field(
        "auto", description="`auto`: a sweep of logistic and ridge heads; `sweep`, of others too; or its settings"
    )
    validation: Literal["auto", "split", "folds"] | Annotated[int, Field(ge=2)] = Field(
        "auto", description="what chooses: many validation rows, or folds; or how many folds"
    )
    refit: bool = Field(True, description="fit the chosen head to training and validation rows before the test")
    calibrate: Literal["temperature"] | None = Field(
        default=None, description="divide the scores by a temperature that held-out rows choose"
    )
    labels_per_class: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="few-shot; empty: all of train")
    seeds: Annotated[int, Field(ge=1, description="fits of each head that starts at random")] = 1
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where heads in memory are fitted")
    memory_gb: Annotated[float, Field(gt=0)] | None = Field(None, description="by default half of what is free")
    run: RunConfig = Field(
        default=RunConfig(), description="who makes the sums of streaming heads; no value depends on it"
    )

    @property
    def taps(self) -> list[str]:
        """Return every tap that some input uses, sorted."""
        return sorted({tap for name in map(input_name, self.inputs) for tap in name.split("+")})

    @property
    def heads(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Map the name of a head in predictions to its name in the table of heads and its parameters."""
        if isinstance(self.head, dict):
            return {head_name(name): (name, params) for name, params in self.head.items()}
        names = (self.head,) if isinstance(self.head, str) else self.head
        return {head_name(name): (name, self.params) for name in names}

    @field_validator("head", mode="before")
    @classmethod
    def _normalise_heads(cls, head: Any) -> Any:
        if isinstance(head, dict):
            return {_normalise_name(name): {} if params is None else params for name, params in head.items()}
        return [_normalise_name(name) for name in head] if isinstance(head, list | tuple) else _normalise_name(head)

    @field_validator("pca", mode="before")
    @classmethod
    def _pca_settings(cls, pca: Any) -> Any:
        return {"components": pca} if isinstance(pca, int | float) and not isinstance(pca, bool) else pca

    @field_validator("search", mode="before")
    @classmethod
    def _search_settings(cls, search: Any) -> Any:
        if search is None:
            return "none"
        if isinstance(search, str) and search not in ("auto", "none"):
            if search != "sweep":
                raise ValueError("expected `auto`, `sweep`, `none` or a mapping of settings")
            return {}
        return search

    @field_validator("head")
    @classmethod
    def _check_heads(cls, head: Any) -> Any:
        names = [head] if isinstance(head, str) else list(head)
        for name in names:
            if not heads.is_import_path(name) and name not in heads.known():
                raise ValueError(unknown("head", name, heads.known()))
        if not names or len({head_name(name) for name in names}) < len(names):
            raise ValueError("expected one head or more, each of them once")
        return head

    @field_validator("inputs", "labels_per_class")
    @classmethod
    def _check_distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [value if isinstance(value, int) else input_name(value) for value in values]
        if len(set(names)) < len(names):
            raise ValueError("expected each of them once")  # twice the same fit would count as two draws
        return values

    @model_validator(mode="after")
    def _check_combinations(self) -> "FitConfig":
        if self.params and not isinstance(self.head, str):
            raise ValueError("`params` is of one head. Of several write `head: {logistic: {C: 10}, ridge: {}}`")
        if self.labels_per_class and self.refit and "refit" in self.model_fields_set:
            raise ValueError(
                "`refit` adds all validation rows: a few-shot set would have other than `labels_per_class`"
            )
        if self.labels_per_class and self.seeds > 1:
            raise ValueError("`seeds` and `labels_per_class`: the draws of few labels are the seeds. Leave `seeds` out")
        streaming = [name for name, _ in self.heads.values() if heads.is_streaming(name)]
        if streaming and self.scale == "l2" and any("+" in input_name(name) for name in self.inputs):
            raise ValueError(f"{streaming[0]} cannot take the lengths of joined taps. Choose another `scale`")
        if unused := list(self._unused_settings(streaming)):
            raise ValueError("; ".join(unused))
        return self

    def search_of(self, name: str, params: dict[str, Any]) -> SearchConfig | None:
        """Return the search of a head with these parameters; None if there is none."""
        if isinstance(self.search, SearchConfig):
            return self.search
        return automatic_search(name, params) if self.search == "auto" else None

    def _unused_settings(self, streaming: list[str]) -> Iterator[str]:
        """Yield an error for each setting that has no effect with these heads."""
        names = [name for name, _ in self.heads.values()]
        if self.device != "cpu" and len(streaming) == len(names):
            yield f"`device` is of heads in memory, and {', '.join(names)} reads blocks: leave `device` out"
        if self.run != RunConfig() and not streaming:
            yield f"`run` is of streaming heads, and {', '.join(names)} is none: leave `run` out"

    def unsuited(self, kind: Kind, *, validation: bool) -> list[str]:
        """Return the problems of these settings with a kind of task; each begins with the setting.

        validation: whether the task has validation rows.
        """
        problems = []
        if kind == "regression" and self.calibrate is not None:
            problems.append("calibrate: expected none for a regression, which has no probabilities. Leave it out.")
        names = [name for name, _ in self.heads.values()]
        searched = self.search if isinstance(self.search, SearchConfig) else None
        if searched is not None and searched.metric not in (None, *CRITERIA[kind]):
            problems.append(f"search.metric: of a {kind}: {unknown('metric', str(searched.metric), CRITERIA[kind])}")
        if searched is not None and searched.parameter is None:
            problems += [
                f"search: {name} has no sweep of its own. Name a `parameter` and `values`, or leave the head out."
                for name in names
                if name.removeprefix(heads.STREAMING) not in GRIDS
            ]
        if self.seeds > 1 and not any(heads.is_import_path(name) or heads.may_be_random(name, kind) for name in names):
            problems.append(f"seeds: expected a head that starts at random, got {', '.join(names)}. Leave it out.")
        if not validation and self.needs_split:
            problems.append(
                f"{self.needs_split}: expected a task with validation rows, got one without. Give it some, or leave "
                "this out."
            )
        return problems

    @property
    def needs_split(self) -> str:
        """Return the setting that needs validation rows in the task; empty if there is none."""
        if self.validation != "split":
            return ""
        asked = {
            "search": isinstance(self.search, SearchConfig),
            "calibrate": self.calibrate is not None,
            "refit": self.refit and "refit" in self.model_fields_set,
        }
        return next((name for name, wanted in asked.items() if wanted), "")


def input_name(taps: str | tuple[str, ...]) -> str:
    """Return the name of an input: its taps, joined by +."""
    return taps if isinstance(taps, str) else "+".join(taps)


def _normalise_name(head: Any) -> Any:
    return normalise_import_path(head) if isinstance(head, str) else head


def head_name(head: str) -> str:
    """Return the name of a head in predictions and files; for an import path, the name of the class."""
    return head.rpartition(":")[2]
