"""Settings of the stage `report`."""

from pydantic import Field

from pipeline.settings.check import Settings


class ReportConfig(Settings):
    """Settings of the report."""

    title: str = Field(default="icecore report", description="title of the page")
