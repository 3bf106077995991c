"""The place of a sample, that is its domain and split, which its folder and its row or .json may both name."""

from collections.abc import Mapping

from pipeline.manifest import split_of

Refused = tuple[str, str] | tuple[None, None]


def merge_places(*sources: Mapping[str, str]) -> tuple[dict[str, str], Refused]:
    """Merge the places that several sources name; also return kind and reason of an error where two sources differ."""
    place: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            before = place.setdefault(name, value)
            if _canonical(before) != _canonical(value):
                reason = (
                    f"its {name} is both {before!r} and {value!r}, by its folders or its own label: correct one, or "
                    "leave the label out with `columns`"
                )
                return place, ("unreadable", reason)
            place[name] = value
    return place, (None, None)


def _canonical(value: str) -> str:
    return split_of(value) or value
