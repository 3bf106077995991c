"""Entries inserted into params.yaml: what the text says then, and that all its other lines stay as they are."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from support.projects import SHIPPED

from pipeline.errors import ConfigError
from pipeline.projects.yaml_text import append, block, inline, insert, scalar

ENTRY = {"task": "photos", "inputs": ["a", ["a", "b"]], "params": {"C": 1.0}}
LINES = "  new:\n    task: photos\n    inputs: [a, [a, b]]\n    params: {C: 1.0}\n"


def load(text: str) -> Any:
    return YAML(typ="safe").load(text)


# The text, and the text with `fit.new` in it.
INSERTED = {
    "block": ("fit:\n  old: {a: 1}\n\n# Next\nx: 1\n", f"fit:\n  old: {{a: 1}}\n{LINES}\n# Next\nx: 1\n"),
    "comments of the entry above": (
        "fit:\n  old:\n    a: 1  # one\n    # b: 2\n  # more: {}\n# Next\nx: 1\n",
        f"fit:\n  old:\n    a: 1  # one\n    # b: 2\n  # more: {{}}\n{LINES}# Next\nx: 1\n",
    ),
    "no line end": ("x: 1\nfit:\n  old: {a: 1}", f"x: 1\nfit:\n  old: {{a: 1}}\n{LINES}"),
    "Windows": ("fit:\r\n  old: {a: 1}\r\nx: 1\r\n", f"fit:\n  old: {{a: 1}}\n{LINES}x: 1\n".replace("\n", "\r\n")),
    "other indent": (
        "fit:\n    old:\n        a: 1\nx: 1\n",
        "fit:\n    old:\n        a: 1\n" + textwrap.indent(LINES, "  ") + "x: 1\n",
    ),
    "a list below": (
        "fit:\n  old:\n    a:\n    - 1\n    - 2\nx: 1\n",
        f"fit:\n  old:\n    a:\n    - 1\n    - 2\n{LINES}x: 1\n",
    ),
    "text of several lines": ("fit:\n  old: |\n    a\n    b\nx: 1\n", f"fit:\n  old: |\n    a\n    b\n{LINES}x: 1\n"),
    "braces": (
        "fit: {old: {a: 1}}  # few\nx: 1\n",
        "fit: {old: {a: 1}, new: {task: photos, inputs: [a, [a, b]], params: {C: 1.0}}}  # few\nx: 1\n",
    ),
    "comma before the brace": (
        "fit: {\n  old: {a: 1},  # one, two\n}\n",
        "fit: {\n  old: {a: 1}, new: {task: photos, inputs: [a, [a, b]], params: {C: 1.0}}  # one, two\n}\n",
    ),
    "empty braces": ("fit: {}\nx: 1\n", "fit: {new: {task: photos, inputs: [a, [a, b]], params: {C: 1.0}}}\nx: 1\n"),
    "nothing in it": ("fit:\nx: 1\n", f"fit:\n{LINES}x: 1\n"),
    "missing": ("x: 1  # one", f"x: 1  # one\n\nfit:\n{LINES}"),
    "empty file": ("# Nothing yet\n", f"# Nothing yet\nfit:\n{LINES}"),
}


@pytest.mark.parametrize("name", INSERTED)
def test_an_entry_stands_at_the_end_of_its_section(name: str) -> None:
    text, wanted = INSERTED[name]
    new = insert(text, ["fit"], "new", ENTRY)
    assert new == wanted
    assert load(new)["fit"]["new"] == ENTRY


@pytest.mark.parametrize("section", [*load(SHIPPED.read_text())])
def test_every_line_of_a_file_with_comments_stays(section: str) -> None:
    text = SHIPPED.read_text()
    new = insert(text, [section], "new", ENTRY)
    assert load(new) == {**load(text), section: {**load(text)[section], "new": ENTRY}}
    kept = [line for line in text.splitlines() if not line.startswith(f"{section}: {{")]
    rest = iter(new.splitlines())
    assert [line for line in kept if line not in rest] == []  # all are there, in their order


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: {b: [x, y]}  # both\n", "a: {b: [x, y, new one]}  # both\n"),
        ("a: {b: []}\n", "a: {b: [new one]}\n"),
        ("a:\n  b:\n  - x\n  # no y\nc: 1\n", "a:\n  b:\n  - x\n  - new one\n  # no y\nc: 1\n"),
        ("a:\n  b:\n    -   x  # one\n", "a:\n  b:\n    -   x  # one\n    -   new one\n"),
    ],
)
def test_a_value_stands_at_the_end_of_its_list(text: str, wanted: str) -> None:
    assert append(text, ["a", "b"], "new one") == wanted
    assert load(wanted)["a"]["b"][-1] == "new one"


def test_what_cannot_be_written_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"^fit: expected a mapping, got \[1, 2\]\. Write it as a mapping\.$"):
        insert("fit: [1, 2]\n", ["fit"], "new", ENTRY)
    with pytest.raises(ConfigError, match=r"^a\.b: expected a list, got null\. Write it as a list\.$"):
        append("a: 1\n", ["a", "b"], "x")
    shared = "one: &same\n  old: {a: 1}\nfit: *same\n"  # the entry would stand in both
    with pytest.raises(ConfigError, match=r"(?s)^fit\.new: the layout of params.yaml does not allow .*hand"):
        insert(shared, ["fit"], "new", ENTRY)


@pytest.mark.parametrize(
    "value",
    [
        *("plain", "two words", "über/maß", "a: b", "no", "1e3", "007", "", " x", "a #b", "{x}", "2026-01-01", "*a"),
        *("c:\\x", 'say "hi"', "null", "~", "0x1F", "a,b", "[x]", "line\nline", "- x", "日本", "s3://bucket/x", "yes?"),
        *(1, 1.5, True, None, [], {}, ["a", {"b": [1]}], {"a b": {"c": "d:e"}}),
    ],
)
def test_values_are_read_as_they_were_written(value: Any) -> None:
    assert load(f"x: {inline(value)}")["x"] == value
    assert load(f"x: {{y: {inline(value)}}}")["x"]["y"] == value
    if isinstance(value, dict):
        assert load("\n".join(block({"x": value}, 0)))["x"] == value
    elif not isinstance(value, list):
        assert load(scalar(value)) == value


def test_the_shipped_settings_are_those_of_a_checkout() -> None:
    """Unless they were changed since: params.yaml is for users to edit."""
    import subprocess

    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        pytest.skip("not a git repository")
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], cwd=root, check=False)
    if same.returncode:
        pytest.skip("params.yaml was edited")
    assert SHIPPED.read_text() == (root / "params.yaml").read_text(), "cp params.yaml pipeline/projects/default.yaml"
