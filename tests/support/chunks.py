"""Bounds of chunks for tests of streaming estimators."""

import itertools


def even_chunks(rows: int, count: int) -> list[slice]:
    """Return the bounds of `count` chunks of nearly the same size."""
    ends = [rows * number // count for number in range(count + 1)]
    return [slice(*bounds) for bounds in itertools.pairwise(ends)]
