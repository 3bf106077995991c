"""params.yaml as DVC reads it, and what is left of it after DVC rewrote it."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.projects import SHIPPED

from pipeline.errors import ConfigError
from pipeline.settings.check import normalise_import_path
from pipeline.settings.params import check_rewriting, read_params, unusual_values

ROOT = Path(__file__).parent.parent

# Texts after `a: ` and what they mean in YAML 1.2; most mean something else in 1.1.
VALUES: dict[str, Any] = {
    "1e-3": 0.001,
    "1E-3": 0.001,
    "1e5": 100000.0,
    "0.00001": 0.00001,
    "12e03": 12000.0,
    ".5": 0.5,
    "010": 10,
    "0o10": 8,
    "08": 8,
    "0x1f": 31,
    "1_000": 1000,
    "+1": 1,
    "1:30": "1:30",
    "[on, off, yes, no, y, n]": ["on", "off", "yes", "no", "y", "n"],
    "[true, False, ~, null]": [True, False, None, None],
    "'1e-3'": "1e-3",
    "{2024: 1, 1.5: 2, true: 3, ~: 4, '2024': 5}": {2024: 1, 1.5: 2, True: 3, None: 4, "2024": 5},
    "{b: &x {c: 1}, d: {<<: *x, e: 2}, f: *x}": {"b": {"c": 1}, "d": {"c": 1, "e": 2}, "f": {"c": 1}},
    "package.module:Net": "package.module:Net",
    "\t1": 1,
    "[.inf, -.inf]": [math.inf, -math.inf],
}

# Texts that are refused, and what the message has besides the line.
REFUSED = {
    "a: 1\nb: 2\na: 3": 'found duplicate key "a" with value "3" (original value: "1")\n  in params.yaml, line 3, '
    "column 1. Rename one of the two, or leave it out.",
    "x: {1: a, 1.0: b}": 'found duplicate key "1.0"',
    "a: 1\n---\nb: 2": "but found another document\n  in params.yaml, line 2",
    "a:\n\t- 1": "found character that cannot start any token\n  in params.yaml, line 2, column 1. Indent with spaces",
    "a: {f: package.module:Net}": "found unexpected ':'\n  in params.yaml, line 1, column 22 In {…} and […]",
    "a: !!python/object/apply:os.mkdir [x]": "could not determine a constructor for the tag",
    "a: !thing 3": "could not determine a constructor for the tag '!thing'",
    "%YAML 1.3\n---\na: 1": "found incompatible YAML document",
    "a: 2001-99-99": "month must be in 1..12",
}


def by_dvc(text: str) -> Any:
    """What DVC reads."""
    from dvc.utils.serialize import parse_yaml

    return parse_yaml(text, "params.yaml")


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.mark.parametrize("text", VALUES)
def test_values_mean_what_they_mean_to_dvc(params: Path, text: str) -> None:
    params.write_text(f"a: {text}\n")
    assert repr(read_params(params)) == repr({"a": VALUES[text]}) == repr(by_dvc(f"a: {text}\n"))


@pytest.mark.parametrize("text", REFUSED)
def test_what_dvc_cannot_read_is_refused_with_the_line(params: Path, text: str) -> None:
    params.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_params(params)
    assert str(refused.value).startswith(f"{params}: not valid YAML. ")
    assert REFUSED[text] in str(refused.value)
    assert "To suppress" not in str(refused.value)
    with pytest.raises(Exception, match=r"params.yaml|month"):
        by_dvc(text)


def test_a_byte_order_mark_is_passed_over(params: Path) -> None:
    params.write_text("\ufeffa: 1\r\nb: 2\r\n", encoding="utf-8")
    assert read_params(params) == {"a": 1, "b": 2}


SCALARS = st.sampled_from([text for text in VALUES if text[0] not in "[{\t"]) | st.text(
    "01:.e-+_xon~'\"#{}[], \t&*!", max_size=6
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "2", "1e1", "on", "~"]), SCALARS), min_size=1, max_size=3))
def test_any_text_is_read_as_dvc_reads_it_or_by_neither(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    text = "\n".join(f"{key}: {value}" for key, value in lines)
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    try:
        ours: Any = read_params(path)
    except ConfigError:
        ours = None
    try:
        theirs = by_dvc(text)
    except Exception:  # noqa: BLE001 - whatever DVC ends with
        theirs = None
    assert repr(ours) == repr(theirs if isinstance(theirs, dict) else None)


def test_an_anchor_within_itself_is_a_problem_and_no_endless_loop(params: Path) -> None:
    params.write_text("a: &x {b: [*x]}")
    assert unusual_values(read_params(params)) == ["a.b.0: expected a value, got an anchor that contains itself."]
    params.write_text("a: {2001-01-01: 1}")
    assert unusual_values(read_params(params)) == ["a: expected text as a key, got 2001-01-01. Write it in quotes."]
    params.write_text("a: &x {b: 1}\nc: [*x, *x]")
    assert unusual_values(read_params(params)) == []
    params.write_text("a: " + "[" * 5000 + "]" * 5000)
    (line,) = unusual_values(read_params(params))
    assert line == "expected settings, got mappings and lists that are nested too deeply."


# What `dvc exp run -S` leaves -----------------------------------------------------------------------------------------


def rewritten(path: Path, *overrides: str) -> Any:
    """The file after `dvc exp run -S` changed it, as DVC reads it."""
    from dvc.utils.hydra import apply_overrides

    apply_overrides(path, list(overrides))
    return read_params(path)


def test_the_projects_own_settings_survive_being_rewritten(params: Path) -> None:
    params.write_text(SHIPPED.read_text())
    before = read_params(params)
    assert check_rewriting(params) == []
    after = rewritten(params, "fit.digits_logistic.params.C=0.00001", "evaluate.seed=3")
    assert after["fit"]["digits_logistic"]["params"] == {"C": 0.00001}
    before["fit"]["digits_logistic"]["params"]["C"], before["evaluate"]["seed"] = 0.00001, 3
    assert after == before


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("own: {factory: 'package.module:Net'}", "own.factory"),
        ("own: {inner: ['s3://bucket']}", "own.inner.0"),
        ("own: {head: {'sklearn.svm:SVC': {}}}", "own.head.sklearn.svm:SVC"),
        ("own: {mark: '?x'}", "own.mark"),
        ("own: {'1:30': 2}", "own.1:30"),
    ],
)
def test_a_text_that_dvc_would_write_and_not_read_again_is_named(params: Path, text: str, where: str) -> None:
    params.write_text(f"{text}\nb: {{seed: 0}}\n")
    assert check_rewriting(params) == [
        f"{where}: `dvc exp run -S` rewrites params.yaml without these quotes, and cannot read it then. Write the "
        "surrounding mapping or list without braces or brackets, one entry per line."
    ]
    with pytest.raises(ConfigError, match="not valid YAML"):
        rewritten(params, "b.seed=1")


@pytest.mark.parametrize(
    "text",
    [
        "own:\n  factory: 'package.module:Net'\n  arguments: {width: 64}",
        "own: {factory: package.module.Net, rename: {'1': odd, '010': x, 'on': y, '1e3': z}, digest: '1234e567'}",
        "own: {separators: [';', '|', '=', ' ', '\\t', '<<'], unfreeze: {2: block2}, dates: ['2001-01-01', '~']}",
        "own: {patterns: ['block3.*', '*.weight'], C: 1e-3, big: 1_000, none: , '1_0': '0o7'}",
    ],
)
def test_other_texts_survive(params: Path, text: str) -> None:
    params.write_text(f"{text}\nb: {{seed: 0}}\n")
    before = read_params(params)
    assert check_rewriting(params) == []
    assert rewritten(params, "b.seed=1") == before | {"b": {"seed": 1}}


def test_a_file_that_dvc_cannot_rewrite_is_named(params: Path) -> None:
    params.write_text("a:\t1\n")
    (line,) = check_rewriting(params)
    assert line.startswith("`dvc exp run -S` cannot rewrite params.yaml. while scanning for the next token")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("a.b.Net", "a.b:Net"), ("a.b:Net", "a.b:Net"), ("Net", "Net"), ("logistic", "logistic"), ("a:B.c", "a:B.c")],
)
def test_an_import_path_may_be_written_with_dots(written: str, meant: str) -> None:
    assert normalise_import_path(written) == meant
