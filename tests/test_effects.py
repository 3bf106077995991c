"""Settings without effect: each is refused where it is written, with its name and what to do."""

import copy
from dataclasses import fields
from typing import Any

import pytest
from test_examples import at, generous, problems

from pipeline.finetune.config import FinetuneConfig
from pipeline.heads.preprocessing import Pca
from pipeline.settings.check import check
from stages import project

SECTIONS = project.sections()
REGRESSION, MULTILABEL = {"kind": "regression", "target": "age"}, {"kind": "multilabel", "target": "tags"}
FEW = {"few_shot": {"labels_per_class": 5, "draws": 2}}
UNCHOSEN = {"by": "hash", "sizes": {"train": 0.7, "validation": 0, "test": 0.3}}

FIT = {"task": "more", "backbone": "glyphs", "inputs": ["block3"]}
SPLIT = {"validation": "split"}
TUNED = {"task": "more", "backbone": "glyphs", "start": "backbone", "input": "pixels"}
STUDENT = {
    "task": "more", "student": "small", "start": "scratch", "teacher": "tuned", "losses": {"soft": {}, "labels": 1},
}  # fmt: skip

# Section, the settings of its entry, those of the entry's task, and how the one problem goes on behind `section.more`.
IDLE: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "momentum of adamw": ("finetune", TUNED | {"momentum": 0.8}, {}, ": `momentum` belongs to `optimiser: sgd`"),
    "warmup of one_cycle": ("finetune", TUNED | {"schedule": "one_cycle", "warmup": 0.1}, {}, ": `warmup` belongs to "),
    "monitor that nothing reads": (
        "finetune", TUNED | {"monitor": "accuracy", "weights": "last"}, {}, ": `monitor` has no effect when the la",
    ),
    "draws of all labels": ("finetune", TUNED | {"draws": 2}, {}, ": `draws` need `labels_per_"),
    "an epoch that never comes": (
        "finetune", TUNED | {"train": "head", "epochs": 3, "unfreeze": {3: "block2"}}, {},
        ": `unfreeze` from epoch 3 on never happens: expected at most 2, the last of `epochs`, from 0",
    ),
    "unfreezing what is trained": (
        "finetune", TUNED | {"unfreeze": {1: "block2"}}, {}, ": `unfreeze` has nothing to add where all is trained",
    ),
    "views of pixels": ("finetune", TUNED | {"views": 2}, {}, ": `tap` and `views` are of stored rows: expected `inpu"),
    "smoothing of numbers": (
        "finetune", TUNED | {"label_smoothing": 0.1}, REGRESSION, ".label_smoothing: expected none for a regression",
    ),
    "weights of no classes": (
        "finetune", TUNED | {"class_weights": "balanced"}, REGRESSION, ".class_weights: expected none for a regression",
    ),
    "accuracy of numbers": (
        "finetune", TUNED | {"monitor": "accuracy"}, REGRESSION, ".monitor: expected loss for a regression, which has ",
    ),
    "mixup of numbers": ("finetune", TUNED | {"mixup": 0.2}, REGRESSION, ".mixup: expected none for a regression"),
    "cutmix of labels": ("finetune", TUNED | {"cutmix": 1}, MULTILABEL, ".cutmix: expected none for a multilabel"),
    "patience without rows": ("finetune", TUNED | {"patience": 2}, UNCHOSEN, ".patience: expected a task with validat"),
    "plateau without rows": ("finetune", TUNED | {"schedule": "plateau"}, UNCHOSEN, ".schedule: plateau: expected a t"),
    "best without rows": ("finetune", TUNED | {"weights": "best"}, UNCHOSEN, ".weights: best: expected a task with va"),
    "monitor without rows": ("finetune", TUNED | {"monitor": "accuracy"}, UNCHOSEN, ".monitor: expected a task with v"),
    "a fitted classifier of new weights": (
        "distill", STUDENT | {"classifier": {"init": "probe"}}, {},
        ": `classifier: {init: probe}` belongs to `start: backbone`, got scratch: leave it out",
    ),
    "a fitted classifier of two layers": (
        "finetune", TUNED | {"classifier": {"init": "probe", "hidden": 8}}, {},
        ".classifier: `init: probe` needs a one-layer classifier: drop `hidden`, `convolution`, or `init`",
    ),
    "a classifier of a run of fit": (
        "finetune", TUNED | {"start": "digits_logistic", "classifier": {"hidden": 8}, "labels_per_class": [10]},
        {"few_shot": {"labels_per_class": 50, "draws": 5}},
        ".classifier: expected one layer, that of digits_logistic, got hidden. Leave it out.",
    ),
    "a random classifier of a run of fit": (
        "finetune", TUNED | {"start": "digits_logistic", "classifier": {"init": "random"}, "labels_per_class": [10]},
        {"few_shot": {"labels_per_class": 50, "draws": 5}},
        ".classifier: expected that of digits_logistic, got init. Leave it out.",
    ),
    "a classifier of a run of finetune": (
        "finetune", TUNED | {"task": "digits", "start": "digits_tuned", "classifier": {"dropout": 0.1}}, {},
        ".classifier: expected none, since the network of digits_tuned has one. Leave it out.",
    ),
    "smoothing without labels": (
        "distill", STUDENT | {"losses": {"soft": {}}, "label_smoothing": 0.1}, {},
        ": `label_smoothing` and `class_weights` belong to `losses.labels`, which has no weight",
    ),
    "data sets without a teacher": (
        "distill", STUDENT | {"teacher": "none", "losses": {"labels": 1}, "datasets": ["more"]}, {},
        ": `datasets` and `preprocessing: own` need a teacher: leave them out, or set `teacher`",
    ),
    "patience of a student": ("distill", STUDENT | {"patience": 2}, UNCHOSEN, ".patience: expected a task with valida"),
    "calibration of numbers": (
        "fit", FIT | {"head": "ridge", "calibrate": "temperature"}, REGRESSION, ".calibrate: expected none for a regre",
    ),
    "a search without rows": ("fit", FIT | SPLIT | {"search": "sweep"}, UNCHOSEN, ".search: expected a task with v"),
    "a refit without rows": ("fit", FIT | SPLIT | {"refit": True}, UNCHOSEN, ".refit: expected a task with validation"),
    "a search of centroid": (
        "fit", FIT | {"head": "centroid", "search": "sweep"}, {}, ".search: centroid has no sweep of its own. Name a `",
    ),
    "seeds of logistic": ("fit", FIT | {"seeds": 3}, {}, ".seeds: expected a head that starts at random, got logistic"),
    "a device of blocks": (
        "fit", FIT | {"head": "streaming_ridge", "device": "cuda"}, {}, ": `device` is of heads in memory, and streami",
    ),
    "workers in memory": ("fit", FIT | {"run": {"workers": 4}}, {}, ": `run` is of streaming heads, and logistic is n"),
    "a metric of another kind": (
        "fit", FIT | {"head": "ridge", "search": {"metric": "accuracy"}}, REGRESSION,
        ".search.metric: of a regression: unknown metric 'accuracy'. Expected one of: mae, r2, rmse.",
    ),
    "few labels without draws": (
        "fit", FIT | {"labels_per_class": [5]}, {},
        ".labels_per_class: expected `few_shot` in `split.more`, got none. Give it `few_shot: {labels_per_class: 5}`",
    ),
    "more labels than the draws have": (
        "finetune", TUNED | {"labels_per_class": [3, 9]}, FEW, ".labels_per_class: expected at most 5, those of `split",
    ),
    "more draws than there are": (
        "distill", STUDENT | {"labels_per_class": [5], "draws": 3}, FEW, ".draws: expected at most 2, those of `split.",
    ),
    "unlabelled rows that there are not": (
        "distill", STUDENT | {"unlabelled": True}, {}, ": `unlabelled` adds the rows that `labels_per_class` leaves",
    ),
    "soft targets without weight": (
        "distill", STUDENT | {"losses": {"soft": {"weight": 0}, "decoupled": {}, "labels": 1}}, {},
        ": `losses.soft` has no weight: expected one above 0, or leave it out",
    ),
    "decoupled parts without weight": (
        "distill", STUDENT | {"losses": {"soft": {}, "decoupled": {"alpha": 0, "beta": 0}}}, {},
        ": `losses.decoupled` has no weight: expected one above 0, or leave it out",
    ),
    "hints without weight": (
        "distill",
        STUDENT | {"losses": {"soft": {}, "hints": [{"student": "a", "teacher": "block2", "weight": [0, 0]}]}},
        {}, ": `losses.hints.0` has no weight: expected one above 0, or leave it out",
    ),
    "parameters of several": (
        "fit", FIT | {"head": ["logistic", "ridge"], "params": {"C": 1}}, {}, ": `params` is of one head. Of several w",
    ),
    "a column that is not read": ("split", {"column": "fold"}, {}, ": `column` needs `by: column`: leave"),
    "a separator of classes": ("split", {"separator": "|"}, {}, ": `separator` needs `kind: multilabel` with one targ"),
    "strata of a column": ("split", {"by": "column", "stratify": True}, {}, ": `stratify` has no effect with `by: co"),
    "sizes of digits": ("sample", {"source": "digits", "sizes": [18]}, {}, ": `sizes` belong to `source: glyphs`: lea"),
    "the dtype of no hints": (
        "teach", {"run": "digits_tuned", "backbone": "glyphs", "datasets": ["digits"], "hints_dtype": "float32"}, {},
        ": `hints_dtype`: expected it with `hints`, got none",
    ),
    "an engine of a head": (
        "teach",
        {"run": "digits_full", "backbone": "glyphs", "datasets": ["digits"], "head": "ridge", "engine": "torch"}, {},
        ".engine: expected it with a network, got digits_full, a run of fit, whose heads need none. Leave it out.",
    ),
    "the draw of a network": (
        "teach", {"run": "digits_tuned", "backbone": "glyphs", "datasets": ["digits"], "draw": 0}, {},
        ".draw: expected it with a run of fit, whose heads it tells apart, got a network. Leave it out.",
    ),
}  # fmt: skip


def with_entry(section: str, entry: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """Settings in which `more` is the task, and the entry of a section."""
    params = copy.deepcopy(generous())
    del params["fit"]["more"]
    at(params, "split.more").update({"datasets": ["digits"], **task})
    at(params, f"{section}.more").update(entry)
    return params


@pytest.mark.parametrize("case", IDLE)
def test_a_setting_without_effect_is_the_one_problem(case: str) -> None:
    section, entry, task, message = IDLE[case]
    (line,) = problems(with_entry(section, entry, task))
    assert line.startswith(f"{section}.more{message}")


@pytest.mark.parametrize(
    ("section", "entry", "task"),
    [
        ("finetune", TUNED | {"optimiser": "sgd", "momentum": 0.8, "schedule": "step", "warmup": 0.2}, {}),
        ("finetune", TUNED | {"label_smoothing": 0.1, "class_weights": "balanced", "monitor": "accuracy"}, MULTILABEL),
        ("finetune", TUNED | {"label_smoothing": 0, "mixup": 0, "class_weights": "none"}, REGRESSION),
        ("finetune", TUNED | {"weights": "last"}, UNCHOSEN),
        ("finetune", TUNED | {"patience": 2}, {"by": "column"}),  # which may hold validation rows
        ("fit", FIT | {"head": ["mlp", "ridge"], "seeds": 2, "search": "sweep"}, {}),
        ("fit", FIT | {"head": "sklearn.svm.SVC", "seeds": 2}, {}),
        ("fit", FIT | {"head": ["logistic", "streaming_ridge"], "device": "cuda", "run": {"workers": 2}}, {}),
        ("fit", FIT | {"head": "ridge", "search": {"metric": "mae"}}, REGRESSION),
        ("distill", STUDENT | {"labels_per_class": [5], "draws": 2, "unlabelled": True}, FEW),
        ("distill", STUDENT | {"losses": {"relational": {"distance": 0}, "soft": {"weight": [0, 1]}, "labels": 0}}, {}),
        ("split", MULTILABEL | {"separator": "|"}, {}),
        ("split", REGRESSION | {"stratify": True}, {}),
    ],
)
def test_the_same_settings_with_an_effect_are_taken(section: str, entry: dict[str, Any], task: dict[str, Any]) -> None:
    assert problems(with_entry(section, entry, task)) == []


def test_all_idle_settings_of_an_entry_come_at_once() -> None:
    idle = {"momentum": 0.8, "warmup": 0.5}
    (line,) = problems(with_entry("finetune", TUNED | {"schedule": "one_cycle"} | idle, {}))
    assert [name for name in idle if f"`{name}`" in line] == list(idle)
    params = with_entry("finetune", TUNED | {"mixup": 0.2, "label_smoothing": 0.1, "monitor": "accuracy"}, REGRESSION)
    assert len(problems(params)) == 3


@pytest.mark.parametrize(
    ("written", "meant"),
    [(64, Pca(components=64)), (0.95, Pca(components=0.95)), ({"components": 2}, Pca(components=2))],
)
def test_components_may_be_a_plain_number(written: Any, meant: Pca) -> None:
    values, found = check({"fit": {"more": FIT | {"pca": written}}}, {"fit": SECTIONS["fit"]})
    assert found == []
    assert values["fit"]["more"].pca == meant


@pytest.mark.parametrize("written", [0, True, "x"])
def test_components_that_are_no_number_are_refused(written: Any) -> None:
    _, found = check({"fit": {"more": FIT | {"pca": written}}}, {"fit": SECTIONS["fit"]})
    assert found
    assert all(line.startswith("fit.more.pca") for line in found)


def test_a_run_refuses_what_its_task_gives_no_effect_before_it_reads_an_image(tmp_path: Any) -> None:
    import pyarrow as pa

    from pipeline.errors import ConfigError
    from pipeline.finetune.run import finetune
    from pipeline.finetune.setup import Paths
    from pipeline.task import KIND, Task

    rows = {"key": ["0" * 32, "1" * 32], "target": [0.5, 1.5], "split": ["train", "test"]}
    Task(pa.table(rows).replace_schema_metadata({KIND: "regression"})).write(tmp_path / "task.parquet")
    nowhere = tmp_path / "nowhere"
    names = {field.name: nowhere for field in fields(Paths)}
    paths = Paths(**{**names, "task": tmp_path / "task.parquet", "start": None})
    config = FinetuneConfig.model_validate(TUNED | {"monitor": "accuracy", "mixup": 0.5, "patience": 3})
    with pytest.raises(ConfigError) as refused:
        finetune(config, paths, datasets=["photos"])
    title, *lines = str(refused.value).splitlines()
    assert title == f"{tmp_path / 'task.parquet'}: 4 problems"
    assert [line.partition(":")[0] for line in lines] == ["  - monitor", "  - mixup", "  - patience", "  - monitor"]
    assert not nowhere.exists()
