"""Split a task: which rows train, which choose, which report, and what is to be learned of them.

By default a row's split is a function of its key (or its group) and the task's seed alone: rows that are added later
move no row that was there. With `stratify` every class is cut at exact shares or counts of its own; then rows that are
added can move rows of their class over the cuts, over each cut at most as many as were added. A column, folders named
train, validation and test, or the domains can say the split instead.

targets   the rows of the manifests, their targets as the kind of task has them
names     class names renamed, and names that look the same
separators  whether the texts of a multilabel task have another separator than the one that is set
assign    a split for each row, few-shot draws, limits a class
run       all of it, and what is wrong with the outcome
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Settings
from pipeline.task import SPLITS, Kind

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class SplitSizes(Settings):
    """Shares of all rows that sum to 1, or, all above 1 or zero, exact rows a class."""

    train: Size = 0.6
    validation: Size = 0.2
    test: Size = 0.2

    @property
    def as_counts(self) -> bool:
        """Whether the sizes are rows a class."""
        return max(self.train, self.validation, self.test) > 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = (self.train, self.validation, self.test)
        if self.as_counts:
            if any(size != int(size) for size in sizes):
                raise ValueError("expected whole numbers of rows a class, or shares that sum to 1")
        elif abs(sum(sizes) - 1) > 1e-6:
            raise ValueError(f"expected shares that sum to 1, they sum to {sum(sizes):g}")
        return self


class Domains(Settings):
    """Which domains each split has; rows of others are not in the task."""

    train: Names
    validation: tuple[str, ...] = Field((), description="none: rows of train's domains, in the proportion of `sizes`")
    test: Names

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [*self.train, *self.validation, *self.test]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each domain once, got {', '.join(twice)} more than once")
        return self


class FewShot(Settings):
    """Small training sets: `draws` seeded orders of the training rows of each class, up to `labels_per_class`."""

    labels_per_class: Annotated[int, Field(ge=1)]
    draws: Annotated[int, Field(ge=1)] = 5


class SplitConfig(Settings):
    """A task over one or several data sets."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    kind: Kind = "classification"
    target: str | Names = Field("label", description="a column; of a multilabel task also several of 0 and 1")
    separator: Annotated[str, Field(min_length=1)] = Field(";", description="between the labels of a text, multilabel")
    levels: tuple[str, ...] = Field((), description="columns of coarser classes, each class in one of them")
    rename: dict[str, str] = Field({}, description="class names to merge or rename; others stay as they are")
    by: Literal["hash", "column", "domain"] = Field("hash", description="`column` and `domain` say the split instead")
    column: str = "split"
    domains: Domains | None = None
    sizes: SplitSizes = SplitSizes()
    stratify: bool = False
    bins: Annotated[int, Field(ge=2)] = Field(10, description="quantiles that are strata, regression")
    group: str | None = Field(None, description="a column; rows that share its value stay together")
    limit_per_class: Annotated[int, Field(ge=1)] | None = Field(None, description="training rows a class, at most")
    few_shot: FewShot | None = None
    seed: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the target is made of."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def needed(self) -> tuple[str, ...]:
        """The splits that must have rows of each class, or rows at all."""
        if self.by == "column":
            return ("train", "test")
        if self.by == "domain":
            chosen = self.sizes.validation > 0 or (self.domains is not None and self.domains.validation)
            return SPLITS if chosen else ("train", "test")
        return tuple(name for name in SPLITS if getattr(self.sizes, name) > 0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        of_classes = {
            "rename": bool(self.rename) and self.kind == "regression",
            "levels": bool(self.levels),
            "limit_per_class": self.limit_per_class is not None,
            "few_shot": self.few_shot is not None,
            "sizes in rows a class": self.sizes.as_counts,
        }
        odd = [name for name, given in of_classes.items() if given]
        if self.kind != "classification" and odd:
            problems.append(f"a task of kind {self.kind} has no classes to count rows of: leave out {', '.join(odd)}")
        if self.kind != "multilabel" and not isinstance(self.target, str):
            problems.append("several target columns are a task of `kind: multilabel`")
        for name, values in (("target", self.columns), ("levels", self.levels)):
            if len(set(values)) < len(values):
                problems.append(f"expected each column of `{name}` once")
        if (self.by == "domain") != (self.domains is not None):
            problems.append("`by: domain` and `domains` belong together: give both, or none")
        if self.by == "domain" and not self.sizes.train:
            problems.append("`by: domain` needs a share of training rows in `sizes`")
        if self.limit_per_class is not None and self.sizes.as_counts:
            problems.append("`sizes` in rows a class are a limit already: leave out `limit_per_class`")
        stated = self.model_fields_set
        idle = {
            "`column` is read with `by: column` alone": "column" in stated and self.by != "column",
            "`separator` is of `kind: multilabel` with one target column": "separator" in stated
            and (self.kind != "multilabel" or not isinstance(self.target, str)),
            "`bins` are strata of a regression with `stratify: true`": "bins" in stated
            and (self.kind != "regression" or not self.stratify),
            "`stratify` cuts nothing with `by: column`": self.by == "column" and self.stratify,
        }
        problems += [f"{what}: leave it out" for what, given in idle.items() if given]
        if problems:
            raise ValueError("; ".join(problems))
        return self
