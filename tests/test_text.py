"""Text for people: tables, bytes and times."""

import pytest

from pipeline.errors import counted
from pipeline.text import duration, human, table

HEAD, ROWS = ("tap", "rows"), [("deep", "12"), ("a wide one", "3")]


def test_a_table_has_a_line_under_its_header_and_columns_to_the_left() -> None:
    assert table(HEAD, ROWS).splitlines() == [
        "tap         rows",
        "──────────  ────",
        "deep        12",
        "a wide one  3",
    ]
    assert table(HEAD, []).splitlines() == ["tap  rows", "───  ────"]


def test_a_table_below_a_sentence_is_set_in_and_its_numbers_stand_to_the_right() -> None:
    assert table(HEAD, ROWS, inset=True).splitlines() == [
        "  tap         rows",
        "  deep          12",
        "  a wide one     3",
    ]


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 B"), (1000, "1.0 kB"), (51_380_224, "51.4 MB"), (2e9, "2.0 GB"), (3e12, "3.0 TB")]
)
def test_bytes_are_readable(size: int, text: str) -> None:
    assert human(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59, "59.0 s"), (600, "10 min"), (7380, "2 h 3 min")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (2000, ("row",), "2,000 rows"),
        (1, ("class has", "classes have"), "1 class has"),
        (3, ("class has", "classes have"), "3 classes have"),
    ],
)
def test_a_number_and_its_noun_agree(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text
