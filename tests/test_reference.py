"""The list of settings: every key of every section, with its type, default and meaning, as the models have them."""

import pytest

from pipeline.settings import reference
from stages import project

SECTIONS = project.sections()
FOUND = {one.key: one for name, section in SECTIONS.items() for one in reference.list_settings(name, section)}


@pytest.mark.parametrize(
    ("key", "kind", "default", "meaning"),
    [
        ("split.NAME.sizes.test", "number", "default 0.2", "share, or rows per class"),
        ("split.NAME.use", "mapping of text to train | validation | test | none", "default {}", "use a split of the "),
        ("split.NAME.target", "text or list of text", "default label", "the column to learn; for a multilabel task"),
        ("prepare.NAME.root", "text", "needed", "a folder, a .csv or .parquet list, a .tar, or the URL of any of the"),
        ("freeze.NAME(torchvision).weights", "text", "default DEFAULT", "entry of the weights enum, which also gi"),
        ("freeze.NAME(pretrained).source", "pretrained", "needed", "A network of the stage `pretrain`"),
        (
            "extract.NAME.taps.NAME.dtype",
            "float16 | bfloat16 | float32 | int8",
            "default float16",
            "dtype of stored values",
        ),
        (
            "extract.NAME.views.augment[](rotation).degrees",
            "number",
            "default 15",
            "largest angle in degrees, in either direction",
        ),
        ("fit.NAME.memory_gb", "number or none", "default none", "by default half of what is free"),
        ("evaluate.metric", "settings", "", "the deciding metric, by kind of task"),
        (
            "distill.NAME.losses.soft.temperature",
            "number",
            "default 4",
            "temperature that divides the logits of student and teacher",
        ),
        ("report.title", "text", "default icecore report", "title of the page"),
    ],
)
def test_a_setting_has_its_type_default_and_meaning(key: str, kind: str, default: str, meaning: str) -> None:
    found = FOUND[key]
    assert (found.type, found.default) == (kind, default)
    assert found.meaning.startswith(meaning)


def test_every_key_of_every_section_is_listed_with_a_meaning() -> None:
    assert len(FOUND) > 440
    assert all(one.meaning for one in FOUND.values())
    for name, (_, named) in project.SECTIONS.items():
        assert any(key.startswith(f"{name}.NAME" if named else f"{name}.") for key in FOUND)


def test_settings_are_two_lines_each_below_what_the_section_is() -> None:
    text = reference.describe_settings({"report": SECTIONS["report"], "compare": SECTIONS["compare"]})
    assert text.splitlines()[:5] == [
        "report: Settings of the report.",
        "  report.title: text; default icecore report",
        "      title of the page",
        "",
        "compare: Settings of the paired tests.",
    ]
