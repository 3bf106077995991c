"""Settings of the stage `split`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.check import Settings
from pipeline.task import SPLITS, Kind

Size = Annotated[float, Field(ge=0, allow_inf_nan=False, description="share, or rows per class")]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class SplitSizes(Settings):
    """Shares of all rows that sum to 1, or, all above 1 or zero, exact rows per class.

    A split that is left out has no rows, where the others make a whole: {train: 0.8, validation: 0.2}, {train: 60}.
    """

    train: Size = 0.6
    validation: Size = 0.2
    test: Size = 0.2

    @property
    def as_counts(self) -> bool:
        """Whether the sizes are rows per class."""
        return max(self.train, self.validation, self.test) > 1

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, sizes: Any) -> Any:
        given = [size for size in sizes.values() if isinstance(size, int | float)] if isinstance(sizes, dict) else []
        if given and (max(given) > 1 or abs(sum(given) - 1) <= 1e-6):
            return dict.fromkeys(cls.model_fields, 0) | sizes
        return sizes

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizes = (self.train, self.validation, self.test)
        if self.as_counts:
            if any(size != int(size) for size in sizes):
                raise ValueError("expected whole numbers of rows per class, or shares that sum to 1")
        elif abs(sum(sizes) - 1) > 1e-6:
            raise ValueError(f"expected shares that sum to 1, they sum to {sum(sizes):g}")
        return self


class Domains(Settings):
    """Which domains each split has; rows of others are not in the task."""

    train: Names = Field(description="domains whose rows train")
    validation: tuple[str, ...] = Field((), description="none: rows of train's domains, in the proportion of `sizes`")
    test: Names = Field(description="domains whose rows report")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [*self.train, *self.validation, *self.test]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each domain once, got {', '.join(twice)} more than once")
        return self


class FewShot(Settings):
    """Small training sets: `draws` seeded orders of the training rows of each class, up to `labels_per_class`."""

    labels_per_class: Annotated[int, Field(ge=1)] = Field(description="training rows of each class in the largest set")
    draws: Annotated[int, Field(ge=1)] = Field(default=5, description="seeded draws")


class SplitConfig(Settings):
    """A task over one or several data sets."""

    REMOVED = {"bins": "A regression is stratified by its 10 quantiles: leave it out."}

    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="entries of `prepare`")
    kind: Kind = Field(
        default="classification", description="a class per row, any number of labels per row, or a number per row"
    )
    target: str | Names = Field("label", description="a column; of a multilabel task also several of 0 and 1")
    separator: Annotated[str, Field(min_length=1)] = Field(";", description="between the labels of a text, multilabel")
    levels: tuple[str, ...] = Field((), description="columns of coarser classes, each class in one of them")
    rename: dict[str, str] = Field({}, description="class names to merge or rename; others stay as they are")
    by: Literal["auto", "hash", "column", "domain"] = Field(
        default="auto",
        description="who says the split: auto, folders of splits or a column `split` where there are some, and `sizes` "
        "for other rows; hash, `sizes` alone; column, each row's value; domain, `domains`",
    )
    column: str = Field(default="split", description="the column of `by: column`")
    use: dict[str, Literal["train", "validation", "test", "none"]] = Field(
        default={}, description="what a split of the data is used as, such as {val: test}; none leaves its rows out"
    )
    domains: Domains | None = Field(default=None, description="the domains of each split, with `by: domain`")
    sizes: SplitSizes = Field(default=SplitSizes(), description="of rows that nothing else gives a split")
    rare: Literal["keep", "drop", "merge", "refuse"] = Field(
        default="keep",
        description="classes without training or test rows: keep learns and measures what can be, drop leaves them "
        "out, merge makes the class `other` of them, refuse stops",
    )
    empty: Literal["refuse", "none"] = Field(
        default="refuse",
        description="an empty cell of a multilabel column: a mistake, or a row with none of the labels",
    )
    stratify: bool = Field(default=False, description="cut every class at exact shares of its own")
    group: str | None = Field(None, description="a column; rows that share its value stay together")
    limit_per_class: Annotated[int, Field(ge=1)] | None = Field(None, description="training rows per class, at most")
    few_shot: FewShot | None = Field(default=None, description="small training sets, for `labels_per_class` of runs")
    seed: int = Field(default=0, description="of the split and the draws")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the target is made of."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def needed(self) -> tuple[str, ...]:
        """The splits that must have rows, and with `rare: refuse` rows of each class.

        With `by: auto` those of data that say no split.
        """
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
            "sizes in rows per class": self.sizes.as_counts,
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
            problems.append("`sizes` in rows per class are a limit already: leave out `limit_per_class`")
        stated = self.model_fields_set
        idle = {
            "`column` is read with `by: column` alone": "column" in stated and self.by != "column",
            "`separator` is of `kind: multilabel` with one target column": "separator" in stated
            and (self.kind != "multilabel" or not isinstance(self.target, str)),
            "`stratify` cuts nothing with `by: column`": self.by == "column" and self.stratify,
            "`use` is of splits that the data have, and `by` says others": bool(self.use)
            and self.by in ("hash", "domain"),
            "`rare` is of classes, and a regression has none": "rare" in stated and self.kind == "regression",
            "`empty` is of `kind: multilabel` with one target column": "empty" in stated
            and (self.kind != "multilabel" or not isinstance(self.target, str)),
            "`levels` say where each class belongs, and `rare: merge` makes one of several": bool(self.levels)
            and self.rare == "merge",
        }
        problems += [f"{what}: leave it out" for what, given in idle.items() if given]
        if problems:
            raise ValueError("; ".join(problems))
        return self
