"""Text for people: tables, sizes and durations; and names that look alike on a screen.

Such names have odd blanks, letters without width, or letters of other scripts.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence


class Line(str):
    """A line for people, with an optional longer explanation in `more`."""

    more: str

    def __new__(cls, text: str, more: str = "") -> "Line":
        """Create a line that equals `text` as a string."""
        line = super().__new__(cls, text)
        line.more = more
        return line


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, inset: bool = False) -> str:
    """Format a table for the terminal, left-aligned, with a line under the header.

    `inset`, for a table that stands below a sentence: two spaces in, without the line, all but the first column to the
    right.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def drawn(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if inset and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return ("  " if inset else "") + "  ".join(cells).rstrip()

    under = [] if inset else ["  ".join("─" * width for width in widths)]
    return "\n".join([drawn(lines[0]), *under, *map(drawn, lines[1:])])


def human(size: int) -> str:
    """Format a number of bytes, such as 1.5 MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """Format a number of seconds, such as 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


_PAIRS = (
    # Cyrillic
    "АA ВB ЕE ЅS ІI ЈJ КK МM НH ОO РP СC ТT УY ХX ҮY ԌG ԚQ ԜW аa еe ѕs іi јj оo рp сc уy хx һh ԁd ԛq ԝw ѵv ҽe"
    # Greek, Armenian and Latin
    " ΑA ΒB ΕE ΖZ ΗH ΙI ΚK ΜM ΝN ΟO ΡP ΤT ΥY ΧX οo νv օo ɑa ɡg µμ"
    # hyphens and quotes
    " ‐- ‑- ‒- –- —- −- ﹣- ’' ‘' ʼ' ′' “\" ”\" ″\""
)
_SAME = str.maketrans({pair[0]: pair[1] for pair in _PAIRS.split(" ")})
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Invisible letters that `str.isspace` does not count."""

_AS_DRAWN = ("<wide>", "<noBreak>", "<compat> 0066")
"""Decompositions that are drawn as the letter itself: full width, blanks that keep lines whole, ligatures of f."""


def normalise_lookalikes(name: str) -> str:
    """Normalise a name so that names that look alike on a screen become equal.

    Composed letters; blanks of any width as one, and none at the ends; no letters without width; Latin letters in the
    place of those of other scripts that are drawn alike. Case stays, since it can be seen.
    """
    if name.isascii() and name.isprintable():
        return " ".join(name.split())
    letters = []
    for letter in name:
        if unicodedata.decomposition(letter).startswith(_AS_DRAWN) or "\u2160" <= letter <= "\u217f":
            letters.append(unicodedata.normalize("NFKC", letter))
        elif letter.isspace() or letter in _BLANK:
            letters.append(" ")
        elif not _has_no_width(letter):
            letters.append(letter)
    composed = unicodedata.normalize("NFC", "".join(letters))
    return " ".join(composed.translate(_SAME).split())


def group_alike(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of two or more different names that look the same, each sorted."""
    return _group(names, normalise_lookalikes)


def quote_alike(group: Iterable[str]) -> str:
    """Return the names of a group with the codes of all letters that are not ASCII, which tell them apart."""
    return " and ".join(ascii(name) for name in group)


def describe_alike(names: Iterable[str]) -> list[str]:
    """Return a sentence for each group of names that look the same, or differ in case only, and for each odd blank."""
    there = set(names)
    alike = group_alike(there)
    lines = [f"{quote_alike(group)} look the same and are different values." for group in alike]
    grouped = {name for group in alike for name in group}
    lines += [
        f"{quote_alike(group)} differ in case only and are different values."
        for group in _group(there - grouped, lambda name: normalise_lookalikes(name).casefold())
    ]
    lines += [
        f"{name!a} has blanks or control characters that cannot be seen."
        for name in sorted(there - grouped)
        if _is_odd(name)
    ]
    return lines


def _group(names: Iterable[str], by: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(by(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _has_no_width(letter: str) -> bool:
    return (
        unicodedata.category(letter) in ("Cc", "Cf")
        or letter == "\u034f"
        or "\ufe00" <= letter <= "\ufe0f"
        or "\U000e0100" <= letter <= "\U000e01ef"
    )


def _is_odd(name: str) -> bool:
    """Return whether a name has blanks at its ends or in pairs, or letters that no script needs and no screen shows."""
    controls = any(unicodedata.category(one) == "Cc" or one in "\u200b\u2060\ufeff\u00ad" for one in name)
    return controls or name != name.strip() or not name or "  " in name


def readable(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a file's name that are no text become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def digits(value: float) -> str:
    """Return a number with four digits, and with a minus sign that is as wide as a digit."""
    return f"{value:.4g}".replace("-", "−")
