"""Text for people: tables, bytes and times."""

from collections.abc import Sequence


class Line(str):
    """A line for people; `more` explains it to those who ask for it."""

    more: str

    def __new__(cls, text: str, more: str = "") -> "Line":
        """Make a line that is `text` wherever text is wanted."""
        line = super().__new__(cls, text)
        line.more = more
        return line


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, inset: bool = False) -> str:
    """Columns for the terminal, all to the left, with a line under the header.

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
    """Bytes as people read them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
