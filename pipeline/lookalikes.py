"""Names that a person cannot tell apart on a screen: odd blanks, letters without width, letters of other scripts."""

import unicodedata
from collections.abc import Callable, Iterable

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
"""Letters that are drawn as nothing, and that `str.isspace` does not count."""

_AS_DRAWN = ("<wide>", "<noBreak>", "<compat> 0066")
"""Decompositions that are drawn as the letter itself: full width, blanks that keep lines whole, ligatures of f."""


def normalise_look(name: str) -> str:
    """Return what two names have in common that a person cannot tell apart on a screen.

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
    return _group(names, normalise_look)


def quote_alike(group: Iterable[str]) -> str:
    """Return the names of a group with the codes of all letters that are not ASCII, which tell them apart."""
    return " and ".join(ascii(name) for name in group)


def describe(names: Iterable[str]) -> list[str]:
    """Return a sentence for each group of names that look the same, or differ in case only, and for each odd blank."""
    there = set(names)
    alike = group_alike(there)
    lines = [f"{quote_alike(group)} look the same and are different values." for group in alike]
    grouped = {name for group in alike for name in group}
    lines += [
        f"{quote_alike(group)} differ in case only and are different values."
        for group in _group(there - grouped, lambda name: normalise_look(name).casefold())
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
    """Whether a name has blanks at its ends or in pairs, or letters that no script needs and no screen shows."""
    controls = any(unicodedata.category(one) == "Cc" or one in "\u200b\u2060\ufeff\u00ad" for one in name)
    return controls or name != name.strip() or not name or "  " in name
