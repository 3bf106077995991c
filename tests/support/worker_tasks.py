"""Functions for workers, which import this module: a test's own module would take them seconds."""

import os

from pipeline.errors import HeadError


def square(number: int) -> int:
    """Return the square."""
    return number**2


def deadly(number: int) -> int:
    """Return the number; 3 ends the worker."""
    if number == 3:
        os._exit(1)
    return number


def refusing(number: int) -> int:
    """Refuse every number."""
    raise HeadError(f"number {number}: expected another, got this. Give another.")
