"""Settings: every problem of params.yaml in one message, each with the path of its key; and how a stage fails."""

import contextlib
import copy
import datetime
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.projects import SHIPPED

from pipeline.errors import ConfigError, DataError, Interrupted, bullets, unknown
from pipeline.settings.check import check
from pipeline.settings.params import read_params
from stages import project, terminal

ROOT = Path(__file__).parent.parent
REAL: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())

Check = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Check:
    """A function that checks the real params.yaml after some changes; returns the lines of the message."""

    def check(changes: dict[str, Any] | None = None, *, without: tuple[str, ...] = ()) -> list[str]:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(changed(changes or {}, without), sort_keys=False))
        with pytest.raises(ConfigError) as caught:
            project.settings(path)
        title, *lines = str(caught.value).splitlines()
        expected = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        assert title == f"{path}: {expected}"
        return [line.removeprefix("  - ") for line in lines]

    return check


def changed(changes: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The real settings with values put at paths such as `extract.glyphs.batch_size`."""
    raw = copy.deepcopy(REAL)
    for path, value in changes.items():
        *above, last = path.split(".")
        here = raw
        for part in above:
            here = here[part]
        here[last] = value
    for section in without:
        del raw[section]
    return raw


# The real file -------------------------------------------------------------------------------------------------------


def test_the_settings_of_the_project_are_right() -> None:
    values = project.settings(SHIPPED)
    assert list(values) == list(project.SECTIONS)
    assert {name: list(values[name]) for name, (_, named) in project.SECTIONS.items() if named} == {
        name: list(REAL[name]) for name, (_, named) in project.SECTIONS.items() if named
    }


def test_checked_settings_do_not_change() -> None:
    values = project.settings(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        values["evaluate"].seed = 1


def test_a_section_without_a_value_has_its_defaults_and_an_empty_one_no_entries(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(f"{name}:{' {}' if named else ''}" for name, (_, named) in project.SECTIONS.items()))
    values = project.settings(path)
    assert values["fit"] == {}
    assert values["evaluate"].confidence_level == 0.95


# The file as a whole -------------------------------------------------------------------------------------------------


def test_a_missing_file_says_where_to_run_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params.yaml: no such file. Run the command in the root of an icecore proj"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["fit: [1, 2", "fit: {a: 1\nb: 2", "fit:\n\t- 1", "a: b: c"])
def test_invalid_yaml_is_named_with_the_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)params.yaml: not valid YAML. .*line \d"):
        read_params(tmp_path / "params.yaml")


def test_a_file_that_is_not_utf8_is_not_valid_yaml(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("report: {title: café}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not valid YAML. 'utf-8' codec can't decode .* Save the file as UTF-8\."):
        read_params(tmp_path / "params.yaml")


def test_a_folder_instead_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_params(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"), [("", "nothing"), ("- a\n- b\n", r"\['a', 'b'\]"), ("fit", "'fit'"), ("3", "3")]
)
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"expected a mapping of sections, got {kind}."):
        read_params(tmp_path / "params.yaml")


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"fit: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        read_params(tmp_path / "params.yaml")
    assert not (tmp_path / "made").exists()


# One problem ---------------------------------------------------------------------------------------------------------

ONE_PROBLEM = {
    "an unknown section": (
        {"extrat": {}},
        "unknown section 'extrat'. Did you mean 'extract' or 'pretrain'? Expected one of: audit, compare,"
        " distill, evaluate, extract, finetune, fit, freeze, prepare, pretrain, report, sample, … (14 in all).",
    ),
    "a section that is no mapping of names": (
        {"sample": ["digits"]},
        "sample: expected a mapping of names, got ['digits'].",
    ),
    "a section that is no mapping of settings": ({"report": 3}, "report: expected a mapping of settings, got 3."),
    "an entry that is no mapping": ({"prepare.more": 3}, "prepare.more: expected a mapping of settings, got 3."),
    "an entry without a value": ({"prepare.more": None}, "prepare.more.root: this key is missing."),
    "a word that DVC needs": (
        {"finetune.more": {"task": "digits", "backbone": "glyphs", "start": "backbone"}},
        "finetune.more.input: this key is missing. Expected one of: pixels, features.",
    ),
    "an unknown key": (
        {"evaluate.resample": 3},
        "evaluate: unknown key 'resample'. Did you mean 'resamples'? Expected one of: confidence_level,"
        " metric, resamples, seed.",
    ),
    "an unknown key of an entry": (
        {"pretrain.glyphs.step": 3},
        "pretrain.glyphs: unknown key 'step'. Did you mean 'steps' or 'seed'? Expected one of: batch_size, dataset,"
        " learning_rate, seed, steps, target, widths.",
    ),
    "an unknown key of a tap": (
        {"extract.glyphs.taps.block2": {"node": "block2", "poool": "mean"}},
        "extract.glyphs.taps.block2: unknown key 'poool'. Did you mean 'pool'? "
        "Expected one of: dtype, node, pool, project.",
    ),
    "an unknown key of a tap that is called like a setting": (
        {"extract.glyphs.taps.node": {"node": "block2", "poool": "mean"}},
        "extract.glyphs.taps.node: unknown key 'poool'. Did you mean 'pool'? "
        "Expected one of: dtype, node, pool, project.",
    ),
    "an unknown key of settings that may be left out": (
        {"split.digits.few_shot": {"labels_per_class": 5, "draw": 2}},
        "split.digits.few_shot: unknown key 'draw'. Did you mean 'draws'? Expected one of: draws, labels_per_class.",
    ),
    "an unknown key that is the name of a type": (
        {"split.digits.sizes.float": 0.5},
        "split.digits.sizes: unknown key 'float'. Expected one of: test, train, validation.",
    ),
    "an unknown key that resembles nothing": (
        {"report.zzz": 1},
        "report: unknown key 'zzz'. Expected one of: title.",
    ),
    "a key that is no text": ({"report.3": 1}, "report: unknown key '3'. Expected one of: title."),
    "an unknown value": (
        {"freeze.more": {"source": "torchvison"}},
        "freeze.more.source: unknown value 'torchvison'. Did you mean 'torchvision'? Expected one of: folder,"
        " module, pretrained, timm, torchvision.",
    ),
    "no value for the key that tells settings apart": (
        {"freeze.more": {"network": "glyphs"}},
        "freeze.more.source: this key is missing.",
    ),
    "a number for the key that tells settings apart": (
        {"freeze.more": {"source": 3}},
        "freeze.more.source: unknown value '3'. Expected one of: folder, module, pretrained, timm, torchvision.",
    ),
    "a missing key of one of several kinds of settings": (
        {"freeze.more": {"source": "pretrained"}},
        "freeze.more.network: this key is missing.",
    ),
    "a key of another kind of settings": (
        {"freeze.more": {"source": "pretrained", "network": "glyphs", "model": "resnet18"}},
        "freeze.more: unknown key 'model'. Expected one of: input, network, source.",
    ),
    "an unknown key below one of several kinds of settings": (
        {"freeze.more": {"source": "pretrained", "network": "glyphs", "input": {"sise": 3}}},
        "freeze.more.input: unknown key 'sise'. Did you mean 'resize'? Expected one of: crop, draft,"
        " interpolation, mean, mode, resize, std.",
    ),
    "a wrong value below one of several kinds of settings": (
        {"freeze.more": {"source": "pretrained", "network": "glyphs", "input": {"crop": [0, 3]}}},
        "freeze.more.input.crop.0: expected greater than or equal to 1, got 0.",
    ),
    "an unknown value of a tap": (
        {"extract.glyphs.taps.block2.dtype": "float61"},
        "extract.glyphs.taps.block2.dtype: unknown value 'float61'. Did you mean 'float16' or 'bfloat16' or"
        " 'float32'? Expected one of: bfloat16, float16, float32, int8.",
    ),
    "a text for a number": (
        {"evaluate.resamples": "many"},
        "evaluate.resamples: expected a whole number, got 'many'.",
    ),
    "a number for a text": ({"report.title": 7}, "report.title: expected text, got 7."),
    "a number for a path": ({"prepare.digits.root": 7}, "prepare.digits.root: expected a path, got 7."),
    "a text for a list": ({"split.digits.datasets": "digits"}, "split.digits.datasets: expected a list, got 'digits'."),
    "an empty list": ({"split.digits.datasets": []}, "split.digits.datasets: expected at least one entry, got []."),
    "a wrong entry of a list": (
        {"split.digits.datasets": [7]},
        "split.digits.datasets.0: expected text, got 7.",
    ),
    "a number for the name of a class": (
        {"split.digits.rename": {1: "odd"}},
        "split.digits.rename.1: expected text, got 1.",
    ),
    "a number that is too large": (
        {"evaluate.confidence_level": 2},
        "evaluate.confidence_level: expected less than 1, got 2.",
    ),
    "a section of entries without a value": (
        {"teach": None, "distill": {}},
        "teach: expected a mapping of names, got nothing. If there are no entries, leave the section out.",
    ),
    "a rate without an end": (
        {"finetune.digits_tuned.learning_rate": float("inf")},
        "finetune.digits_tuned.learning_rate: expected a finite number, got inf.",
    ),
    "what is no number": (
        {"fit.digits_logistic.params": {"C": float("nan")}},
        "fit.digits_logistic.params.C: expected a number, got .nan, which equals nothing: DVC would run the stage every"
        " time.",
    ),
    "a date": (
        {"fit.digits_logistic.params": {"C": datetime.date(2001, 2, 3)}},
        "fit.digits_logistic.params.C: expected text, a number, a list or a mapping, got the date 2001-02-03."
        " Write text that looks like a date in quotes, and leave tags such as !!set out.",
    ),
    "a number without an end": (
        {"split.digits.sizes.train": float("inf")},
        "split.digits.sizes.train: expected a finite number, got inf.",
    ),
    "keys that do not go together": (
        {"freeze.more": {"source": "torchvision", "model": "resnet18", "strip_prefix": "model."}},
        "freeze.more: `strip_prefix` belongs to `file`, and there is none.",
    ),
    "a value that a check of its own refuses": (
        {"fit.digits_full.head": "logistc"},
        "fit.digits_full.head: unknown head 'logistc'. Did you mean 'logistic' or 'streaming_logistic'? Expected one"
        " of: boosting, centroid, forest, knn, lda, logistic, mlp, naive_bayes, prototypes, ridge, streaming_centroid,"
        " streaming_knn, … (16 in all).",
    ),
    "a value that a check of its own refuses without naming it": (
        {"extract.glyphs.taps.block2.pool": "avg2"},
        "extract.glyphs.taps.block2.pool: unknown pooling. Expected one of: none, flatten, mean, "
        "max, gem, mean+std, cls, mean_tokens, avg<h>x<w>, got"
        " 'avg2'.",
    ),
}


REMOVED = {
    "freeze.more.input.decoder": ("pillow", "Pillow decodes every image: leave it out."),
    "extract.glyphs.taps.block2.project_seed": (
        1,
        "Projections to the same number of dimensions are equal: leave it out.",
    ),
    "extract.glyphs.limits": (
        {"relative": 0.01},
        "How near an engine must be to torch float32 is fixed: leave it out, or write `engine: torch`.",
    ),
    "extract.glyphs.run.tls": (
        {"ca": "ca.pem"},
        "Dask reads certificates from its own configuration, `distributed.comm.tls`: docs/cluster.md.",
    ),
    "split.digits.bins": (4, "A regression is stratified by its 10 quantiles: leave it out."),
    "audit.near": (0.9, "Write `duplicate_threshold`."),
    "audit.contradicted": (0.9, "Write `disagreement`."),
    "audit.most_rows": (50, "Write `max_rows`."),
    "audit.features": (
        {"digits": {"backbone": "glyphs", "tap": "block3"}},
        "One `tap` serves all tasks; if several backbones have it, the narrowest features are read.",
    ),
    "audit.seed": (1, "A task always has the same sample: leave it out."),
    "fit.digits_logistic.search.method": (
        "halving",
        "All `values` are tried: list the values to try, and leave this out.",
    ),
    "finetune.digits_tuned.milestones": (
        [0.5],
        "`schedule: step` falls after half and three quarters of the steps: leave it out.",
    ),
    "finetune.digits_tuned.decay": (0.5, "`schedule: step` and `plateau` fall to a tenth each time: leave it out."),
    "distill.student_tuned.plateau": (
        2,
        "`schedule: plateau` falls after 3 epochs without a better validation: leave it out.",
    ),
    "distill.student_tuned.live": (
        True,
        "Write `teacher_outputs: online` for `live: true`, and leave it out for `live: false`.",
    ),
    "distill.student_tuned.pixels": ("own", "Write `preprocessing`, with the same value."),
    "distill.student_tuned.also": ({"parity": "head"}, "Write `extra_tasks`, with the same value."),
    "evaluate.interval": (0.9, "Write `confidence_level`, with the same value."),
    "evaluate.calibration_bins": (10, "The calibration error uses 15 bins, as in the literature: leave it out."),
}


def test_a_key_that_was_a_setting_once_is_refused_with_what_to_write(problems: Check) -> None:
    needed = {
        "freeze.more": {"source": "pretrained", "network": "glyphs", "input": {}},
        "extract.glyphs.run": {},
        "fit.digits_logistic.search": {"parameter": "C", "values": [1, 2]},
    }
    changes = needed | {path: value for path, (value, _) in REMOVED.items()}
    expected = [f"{path}: no longer a setting. {instead}" for path, (_, instead) in REMOVED.items()]
    assert sorted(problems(changes)) == sorted(expected)


@pytest.mark.parametrize("case", ONE_PROBLEM)
def test_a_problem_is_one_line_with_the_path_of_its_key(problems: Check, case: str) -> None:
    changes, line = ONE_PROBLEM[case]
    assert problems(changes) == [line]


def test_a_section_that_is_left_out_has_no_entries_or_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("prepare: {photos: {root: photos}}\nsplit: {photos: {datasets: [photos]}}\n")
    values = project.settings(path)
    assert list(values) == list(project.SECTIONS)
    assert {name for name, found in values.items() if found == {}} == {
        *("sample", "pretrain", "freeze", "extract", "fit", "finetune", "teach", "distill")
    }
    assert values["evaluate"].confidence_level == 0.95
    path.write_text("fit: {run: {task: digits, backbone: net, inputs: [block]}}\n")
    with pytest.raises(ConfigError) as caught:
        project.settings(path)
    assert str(caught.value).splitlines()[1:] == [
        "  - fit.run.task: unknown task 'digits'. Expected one of: (there are none).",
        "  - fit.run.backbone: unknown backbone 'net'. Expected one of: (there are none).",
    ]


@pytest.mark.parametrize("name", ["a b", "a/b", "../up", ".hidden", "-x", "ä", ""])
def test_a_name_that_cannot_be_a_file_name_is_refused(problems: Check, name: str) -> None:
    raw_entry = {"source": "digits"}
    expected = (
        f"sample.{name}: a name has only letters, digits, '-' and '_', a letter or digit first: it becomes a file name."
    )
    assert problems({"sample": {**REAL["sample"], name: raw_entry}}) == [expected]


@pytest.mark.parametrize("name", ["a", "A-1_b", "2024"])
def test_letters_digits_hyphens_and_underscores_make_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed({f"sample.{name}": {"source": "digits"}})))
    assert name in project.settings(tmp_path / "params.yaml")["sample"]


# Names that DVC could not address, and such as mean something else; what is in the file, and the one problem.
NAMES = {
    "a number": ("prepare", 2024, "prepare.2024: expected text as a name, got 2024: DVC addresses entries by text."),
    "a share": ("sample", 1.5, "sample.1.5: expected text as a name, got 1.5: DVC addresses entries by text."),
    "true": ("sample", True, "sample.true: expected text as a name, got true: DVC addresses entries by text."),
    "nothing": ("sample", None, "sample.null: expected text as a name, got nothing: DVC addresses entries by text."),
    "too long": ("sample", "x" * 129, f"sample.{'x' * 129}: a name has at most 128 characters, got 129"),
    "another case": (
        "prepare",
        "Digits",
        "prepare.Digits: expected a name that differs from 'digits' in more than cas",
    ),
    "backbone": (
        "fit",
        "backbone",
        "fit.backbone: expected another name, since `start: backbone` and `run: backbone` m",
    ),
    "Scratch": (
        "fit",
        "Scratch",
        "fit.Scratch: expected another name, since `start: scratch` means new weights. Rename",
    ),
    "none": (
        "fit",
        "none",
        "fit.none: expected another name, since `teacher: none` means no teacher. Rename the entry.",
    ),
    "of finetune": ("finetune", "scratch", "finetune.scratch: expected another name, since `start: scratch` means new"),
    "of distill": ("distill", "backbone", "distill.backbone: expected another name, since `start: backbone` and `run"),
    "of a teacher": ("teach", "none", "teach.none: expected another name, since `teacher: none` means no teacher."),
    "of two sections": ("finetune", "digits_full", "finetune.digits_full: expected a name that no run of `fit` has."),
    "of the third": (
        "distill",
        "parity_logistic",
        "distill.parity_logistic: expected a name that no run of `fit` or `finetune`",
    ),
    "of two but for case": (
        "distill",
        "Digits_Full",
        "distill.Digits_Full: expected a name that differs from 'digits_full'",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_means_something_else_or_cannot_be_addressed_is_refused(problems: Check, case: str) -> None:
    section, name, message = NAMES[case]
    like = {"finetune": "digits_tuned", "distill": "student_tuned", "fit": "digits_full", "teach": "tuned"}
    entry = REAL[section][like.get(section, "digits")]
    (line,) = problems({section: {**REAL[section], name: entry}})
    assert line.startswith(message)


# Several problems ----------------------------------------------------------------------------------------------------


def test_all_problems_of_a_file_come_at_once_in_the_order_of_the_stages(problems: Check) -> None:
    found = problems(
        {
            "sampel": {},
            "prepare.digits": {"root": 3, "chek": "decode", "max_rejected": 2},
            "extract.glyphs.taps.block2.poool": 1,
            "extract.glyphs.taps.pixels.dtype": "float8",
            "split.digits.sizes": {"train": 0.5, "validation": 0.1, "test": 0.1},
            "finetune.digits_tuned.input": "pixel",
            "finetune.digits_tuned.start": "digits_logstic",
            "report": [],
        },
    )
    assert [line.split(": ")[0] for line in found] == [
        "unknown section 'sampel'. Did you mean 'sample' or 'split'? Expected one of",
        "prepare.digits.root",
        "prepare.digits.max_rejected",
        "prepare.digits",
        "extract.glyphs.taps.pixels.dtype",
        "extract.glyphs.taps.block2",
        "split.digits.sizes",
        "finetune.digits_tuned.input",
        "report",
        "finetune.digits_tuned.start",
    ]


def test_a_list_with_a_wrong_entry_is_not_called_too_short(problems: Check) -> None:
    assert problems({"split.digits.datasets": [7, 8]}) == [
        "split.digits.datasets.0: expected text, got 7.",
        "split.digits.datasets.1: expected text, got 8.",
    ]


# Sections against each other -----------------------------------------------------------------------------------------

DISAGREEMENTS = {
    "pretrain.glyphs.dataset": ("glyps", "pretrain.glyphs.dataset: unknown data set 'glyps'. Did you mean 'glyphs'?"),
    "freeze.glyphs.network": ("glyps", "freeze.glyphs.network: unknown pretrained network 'glyps'. Did you mean 'gly"),
    "extract.digits": (
        {"datasets": ["digits"], "taps": {"a": {"node": "input"}}},
        "extract.digits: unknown backbone 'digits'. Expected one of: glyphs, small.",
    ),
    "extract.glyphs.datasets": (
        ["digits", "digit"],
        "extract.glyphs.datasets: unknown data set 'digit'. Did you mean 'digits'? Expected one of: digits, glyphs.",
    ),
    "split.digits.datasets": (["dgits"], "split.digits.datasets: unknown data set 'dgits'. Did you mean 'digits'?"),
    "fit.digits_full.task": ("digit", "fit.digits_full.task: unknown task 'digit'. Did you mean 'digits'?"),
    "fit.digits_logistic.backbone": (
        "mobilenet",
        "fit.digits_logistic.backbone: unknown backbone 'mobilenet'. Expected one of: ",
    ),
    "fit.digits_full.inputs": (
        ["pixels", "block2", ["block3", "blok2"]],
        "fit.digits_full.inputs: unknown tap 'blok2'. Did you mean 'block2' or 'block3'? Expected one of: block1",
    ),
    "finetune.digits_tuned.task": ("digit", "finetune.digits_tuned.task: unknown task 'digit'. Did you mean 'digits'?"),
    "finetune.digits_tuned.start": (
        "digits_logstic",
        "finetune.digits_tuned.start: unknown start 'digits_logstic'. Did you mean 'digits_logistic'",
    ),
    "finetune.digits_scratch.backbone": (
        "mobilenet",
        "finetune.digits_scratch.backbone: unknown backbone 'mobilenet'. Expected one of: ",
    ),
    "finetune.digits_from_block1.tap": (
        "block3",
        "finetune.digits_from_block1.tap: expected a tap with `pool: none`, got 'avg2x2'.",
    ),
}


@pytest.mark.parametrize("path", DISAGREEMENTS)
def test_a_name_that_another_section_lacks_is_the_one_problem(problems: Check, path: str) -> None:
    value, message = DISAGREEMENTS[path]
    (line,) = problems({path: value})
    assert line.startswith(message)


def test_all_disagreements_come_at_once_and_together_with_wrong_settings(problems: Check) -> None:
    wrong = {path: value for path, (value, _) in DISAGREEMENTS.items()} | {
        "evaluate.confidence_level": 2,
        "sample.more": {},
    }
    found = problems(wrong)
    assert found[:2] == [
        "sample.more.source: this key is missing. Expected one of: digits, glyphs.",
        "evaluate.confidence_level: expected less than 1, got 2.",
    ]
    assert len(found) == len(wrong)
    for _, message in DISAGREEMENTS.values():
        assert any(line.startswith(message) for line in found), message


def test_a_torchvision_backbone_needs_no_network_of_ours(tmp_path: Path) -> None:
    entry = {"source": "torchvision", "model": "mobilenet_v2", "weights": "IMAGENET1K_V1"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed({"freeze.mobilenet": entry})))
    assert project.settings(tmp_path / "params.yaml")["freeze"]["mobilenet"].model == "mobilenet_v2"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("prepare.digits.max_rejected", "prepare.digits.max_rejected: expected less than or equal to 1, got 2."),
        ("pretrain.glyphs.widths", "pretrain.glyphs.widths: expected a list, got 2."),
        ("extract.glyphs.datasets", "extract.glyphs.datasets: expected a list, got 2."),
        ("split.digits.sizes", "split.digits.sizes: expected a mapping, got 2."),
        ("freeze", "freeze: expected a mapping of names, got 2."),
        ("prepare", "prepare: expected a mapping of names, got 2."),
    ],
)
def test_an_entry_that_is_wrong_in_itself_is_not_called_unknown_by_those_that_name_it(
    problems: Check, path: str, line: str
) -> None:
    assert problems({path: 2}) == [line]


JUNK = st.sampled_from([None, 3, "x", [], ["x"], {}, {"x": None}, {"x": {}}, {3: {"a": [1]}}, {"x": {"taps": {}}}])
PLACES = [
    *REAL,
    *(f"{section}.{name}" for section in REAL for name in REAL[section]),
    *(
        f"{section}.{name}.{key}"
        for section, (_, named) in project.SECTIONS.items()
        if named
        for name in REAL[section]
        for key in REAL[section][name]
    ),
]


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(PLACES), JUNK, max_size=4), st.sets(st.sampled_from(list(REAL)), max_size=2))
def test_no_half_wrong_file_makes_the_check_crash(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], without: set[str]
) -> None:
    # Deepest first, so that the place of each change is still there.
    ordered = dict(sorted(changes.items(), key=lambda item: -item[0].count(".")))
    path = tmp_path_factory.mktemp("settings") / "params.yaml"
    path.write_text(yaml.safe_dump(changed(ordered, tuple(without))))
    try:
        values = project.settings(path)
    except ConfigError as error:
        _, *lines = str(error).splitlines()
        assert len(lines) == len(set(lines)) > 0
    else:
        assert set(values) == set(project.SECTIONS)


# Wording -------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_at_most_twelve_choices() -> None:
    choices = [f"name{number:02d}" for number in range(30)]
    assert unknown("thing", "zzz", choices) == (
        f"unknown thing 'zzz'. Expected one of: {', '.join(choices[:12])}, … (30 in all)."
    )
    assert unknown("thing", "zzz", []) == "unknown thing 'zzz'. Expected one of: (there are none)."


def test_bullets_put_each_problem_on_a_line() -> None:
    assert bullets("two problems", ["a", "b"]) == "two problems\n  - a\n  - b"


# Stages --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the real params.yaml, as the working directory."""
    (tmp_path / "params.yaml").write_text(SHIPPED.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("in_project")
def test_a_stage_gets_the_entry_that_it_was_called_for(monkeypatch: pytest.MonkeyPatch) -> None:
    name, config = project.entry("pretrain", ["glyphs"])
    assert (name, config.dataset) == ("glyphs", "glyphs")
    monkeypatch.setattr("sys.argv", ["stages/split.py", "digits"])
    assert project.entry("split")[0] == "digits"


@pytest.mark.usefixtures("in_project")
def test_a_stage_that_is_called_wrongly_says_how_it_is_called() -> None:
    for arguments in ([], ["digits", "glyphs"]):
        with pytest.raises(
            ConfigError,
            match=r"usage: python -m stages.prepare NAME \[--quiet\] \[--verbose\], where NAME is one of: digits, ",
        ):
            project.entry("prepare", arguments)
    with pytest.raises(ConfigError, match=r"params.yaml: unknown entry of prepare 'digit'. Did you mean 'digits'\?"):
        project.entry("prepare", ["digit"])
    with pytest.raises(ConfigError, match=r"params.yaml: unknown entry of evaluate 'digit_logistic'. Did you mean"):
        project.entries("evaluate", {"digits_logistic": 1}, ["digit_logistic"])


def test_a_stage_over_all_entries_may_be_called_for_some() -> None:
    runs = {"digits_logistic": 1, "digits_full": 2}
    assert project.entries("evaluate", runs, ["--quiet"]) == list(runs)
    assert project.entries("evaluate", runs, ["digits_full", "--quiet"]) == ["digits_full"]


def stage(error: BaseException | None) -> Callable[[], None]:
    """A stage that ends in an error."""

    def run() -> None:
        if error is not None:
            raise error

    return run


def test_a_stage_without_an_error_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    project.run(stage(None))
    assert capsys.readouterr() == ("", "")


def test_an_error_on_purpose_is_printed_as_it_is() -> None:
    with pytest.raises(SystemExit, match=r"^error: photos: there are no files in it\.$"):
        project.run(stage(DataError("photos: there are no files in it.")))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied", "data/x"),
            r"data/x: Permission denied: .* belongs to user \d+ with the mode \d{4}.*\. Change its owner or mode\.",
        ),
        (FileNotFoundError(2, "No such file or directory", "data/x"), r"data/x: No such file or directory\."),
        (OSError(28, "No space left on device"), r"No space left on device\."),
    ],
)
def test_what_the_system_refuses_is_printed_with_the_file(error: OSError, message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: {message}$"):
        project.run(stage(error))


@pytest.mark.parametrize(
    ("error", "text"), [(KeyboardInterrupt(), "interrupted\n"), (Interrupted("2 rows"), "interrupted: 2 rows\n")]
)
def test_a_stage_that_the_user_ends_says_so_and_exits_as_interrupted(
    error: BaseException, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        project.run(stage(error))
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("raised by a library")])
def test_any_other_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        project.run(stage(error))


def test_a_progress_bar_shows_how_much_is_done_and_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with terminal.bar("prepare digits", "files") as progress:
        progress(1, 4)
        progress.note("read 20%")
        progress(4, 4)
    shown = capsys.readouterr().err
    assert "prepare digits: 100%" in shown
    assert "read 20%" in shown


def test_a_terminal_of_unknown_size_gets_a_bar_and_the_lines_of_a_training() -> None:
    code = """
from stages import terminal
with terminal.bar("fit digits", "heads") as progress:
    progress(1, 4)
    progress.log("epoch 1 of 2: loss 0.5")
    progress(4, 4)
"""
    own, other = pty.openpty()
    assert os.get_terminal_size(other) == (0, 0)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=other, cwd=ROOT) as process:
        os.close(other)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(own, 4096):
                shown += part
        assert process.wait() == 0
    os.close(own)
    lines = shown.decode().replace("\r", "\n").splitlines()
    assert "epoch 1 of 2: loss 0.5" in lines
    [last] = [line for line in lines if line.startswith("fit digits: 100%")]
    assert "4/4 [00:00, " in last  # no end is foreseen of what takes less than seconds


def test_there_is_no_progress_bar_without_a_terminal_or_where_it_shall_be_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show() -> None:
        with terminal.bar("prepare digits", "files") as progress:
            progress(1, 4)
            progress.note("read 20%")

    show()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "argv", ["prepare", "digits", "--quiet"])
    show()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("in_project")
def test_a_stage_may_be_called_quietly() -> None:
    assert project.entry("prepare", ["digits", "--quiet"])[0] == "digits"


def test_a_tap_is_named_like_a_folder() -> None:
    raw = {"extract": {"net": {"datasets": ["a"], "taps": {"../out": {"node": "x"}}}}}
    _, problems = check(raw, {"extract": project.sections()["extract"]})
    assert problems == [
        "extract.net.taps: the tap '../out': a name has letters, digits, '-' and '_' only: a folder gets it."
    ]


def test_a_run_from_a_tap_names_a_tap_of_the_extraction(problems: Check) -> None:
    run = {"task": "digits", "backbone": "glyphs", "start": "backbone", "input": "pixels"}
    (line,) = problems({"finetune.digits_full2": run | {"input": "features", "tap": "blok2"}})
    assert line.startswith("finetune.digits_full2.tap: unknown tap 'blok2'. Did you mean 'block2'")
