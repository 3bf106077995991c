"""Settings of the stage `split`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.check import Settings
from pipeline.task import SPLITS, Kind

Size = Annotated[float, Field(ge=0, allow_inf_nan=False, description="share, or rows per class")]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class SplitSizes(Settings):
    """Shares of all rows that sum to 1, or, all above 1 or zero, exact rows per class.

    A split that is left out has no rows, if the other sizes are complete: {train: 0.8, validation: 0.2}, {train: 60}.
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
    def _default_to_zero(cls, sizes: Any) -> Any:
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
            raise ValueError(f"expected shares that sum to 1, got shares that sum to {sum(sizes):g}")
        return self


class Domains(Settings):
    """The domains of each split. Rows of other domains are not in the task."""

    train: Names = Field(description="domains of the train rows")
    validation: tuple[str, ...] = Field(
        (), description="domains of the validation rows; default: a part of the train rows, by `sizes`"
    )
    test: Names = Field(description="domains of the test rows")

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        names = [*self.train, *self.validation, *self.test]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each domain once, got {', '.join(twice)} more than once")
        return self


class FewShot(Settings):
    """Small training sets: several random draws of up to `labels_per_class` training rows per class."""

    labels_per_class: Annotated[int, Field(ge=1)] = Field(description="training rows per class in the largest set")
    draws: Annotated[int, Field(ge=1)] = Field(default=5, description="number of random draws")


class SplitConfig(Settings):
    """A task over one or several data sets."""

    REMOVED = {"bins": "A regression is stratified by its 10 quantiles: leave it out."}

    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="entries of `prepare`")
    kind: Kind = Field(
        default="classification", description="a class per row, any number of labels per row, or a number per row"
    )
    target: str | Names = Field(
        "label", description="the column to learn; for a multilabel task also several columns of 0 and 1"
    )
    separator: Annotated[str, Field(min_length=1)] = Field(
        ";", description="separates the labels in a text column of a multilabel task"
    )
    levels: tuple[str, ...] = Field(
        (), description="columns of coarser classes; each class belongs to one coarser class"
    )
    rename: dict[str, str] = Field({}, description="new names of classes, such as {tabby: cat}; equal names merge")
    by: Literal["auto", "hash", "column", "domain"] = Field(
        default="auto",
        description="what decides the split: auto, folders or a column `split` of the data if there are any, and "
        "`sizes` otherwise; hash, only `sizes`; column, the value of `column`; domain, `domains`",
    )
    column: str = Field(default="split", description="the column with each row's split")
    use: dict[str, Literal["train", "validation", "test", "none"]] = Field(
        default={}, description="use a split of the data as another, such as {val: test}; none leaves its rows out"
    )
    domains: Domains | None = Field(default=None, description="the domains of each split, with `by: domain`")
    sizes: SplitSizes = Field(default=SplitSizes(), description="sizes of the splits, for rows without a given split")
    rare: Literal["keep", "drop", "merge", "refuse"] = Field(
        default="keep",
        description="classes without training or test rows: keep (fit and measure as far as possible), drop, merge "
        "(into the class `other`), refuse (stop with an error)",
    )
    empty: Literal["refuse", "none"] = Field(
        default="refuse",
        description="an empty cell of a multilabel column: refuse it as a mistake, or read it as a row with no labels",
    )
    stratify: bool = Field(default=False, description="give every class exactly the shares of `sizes`")
    group: str | None = Field(None, description="a column; rows with the same value stay in the same split")
    limit_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="at most this many train rows per class"
    )
    few_shot: FewShot | None = Field(default=None, description="small training sets, for runs with `labels_per_class`")
    seed: int = Field(default=0, description="seed of the split and the draws")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the target."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def needed(self) -> tuple[str, ...]:
        """The splits that must have rows, with `rare: refuse` rows of every class.

        For `by: auto`: those of data without splits of their own.
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
        class_settings = {
            "rename": bool(self.rename) and self.kind == "regression",
            "levels": bool(self.levels),
            "limit_per_class": self.limit_per_class is not None,
            "few_shot": self.few_shot is not None,
            "sizes in rows per class": self.sizes.as_counts,
        }
        odd = [name for name, is_set in class_settings.items() if is_set]
        if self.kind != "classification" and odd:
            problems.append(f"a task of kind {self.kind} does not have one class per row: leave out {', '.join(odd)}")
        if self.kind != "multilabel" and not isinstance(self.target, str):
            problems.append("several target columns need `kind: multilabel`")
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
        several_columns = self.kind != "multilabel" or not isinstance(self.target, str)
        unused = {
            "`column` needs `by: column`": "column" in stated and self.by != "column",
            "`separator` needs `kind: multilabel` with one target column": "separator" in stated and several_columns,
            "`stratify` has no effect with `by: column`": self.by == "column" and self.stratify,
            "`use` is about the splits of the data, which `by` does not read": bool(self.use)
            and self.by in ("hash", "domain"),
            "`rare` is about classes, and a regression has none": "rare" in stated and self.kind == "regression",
            "`empty` needs `kind: multilabel` with one target column": "empty" in stated and several_columns,
            "`levels` need the classes as they are, and `rare: merge` merges classes": bool(self.levels)
            and self.rare == "merge",
        }
        problems += [f"{what}: leave it out" for what, is_set in unused.items() if is_set]
        if problems:
            raise ValueError("; ".join(problems))
        return self
