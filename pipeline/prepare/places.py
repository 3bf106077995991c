"""The place of a sample, its domain and split, by its folder and by its own row or .json."""

from collections.abc import Mapping

from pipeline.manifest import split_of

Refused = tuple[str, str] | tuple[None, None]


def place_of(*sources: Mapping[str, str]) -> tuple[dict[str, str], Refused]:
    """Return the place of a sample by all that names it, and kind and reason of its refusal where two differ."""
    found: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            before = found.setdefault(name, value)
            if _plain(before) != _plain(value):
                reason = (
                    f"its {name} is both {before!r} and {value!r}, by its folders or its own label: correct one, or "
                    "leave the label out with `columns`"
                )
                return found, ("unreadable", reason)
            found[name] = value
    return found, (None, None)


def _plain(value: str) -> str:
    return split_of(value) or value
