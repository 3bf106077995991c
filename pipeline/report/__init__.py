"""The report: a leaderboard for the terminal, and one self-contained HTML page.

leaderboard   reads what evaluation wrote, orders it, prints it
figures       SVG figures
page          the page, from page.html
"""

from pipeline.config import Settings


class ReportConfig(Settings):
    """The report's page."""

    title: str = "icecore report"
