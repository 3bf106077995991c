"""Settings of the stage `sample`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings.check import Settings

# The largest size at which the widest letter, a bold W, fits into the frame.
LARGEST = 27

Characters = Literal["digit", "upper", "lower"]


class SampleConfig(Settings):
    """The sample data to write."""

    source: Literal["digits", "glyphs"] = Field(
        description="scikit-learn's digits, or letters and digits printed in matplotlib's fonts"
    )
    sizes: Annotated[tuple[Annotated[int, Field(ge=6, le=LARGEST)], ...], Field(min_length=1)] = Field(
        default=(18, 22, 26), description="heights of the printed letters, in points (`source: glyphs`)"
    )

    characters: Annotated[tuple[Characters, ...], Field(min_length=1)] = Field(
        default=("digit", "upper", "lower"),
        description="printed characters: digits, capital letters, small letters (`source: glyphs`)",
    )

    @model_validator(mode="after")
    def _settings_of_glyphs(self) -> "SampleConfig":
        for name in ("sizes", "characters"):
            if self.source == "digits" and name in self.model_fields_set:
                raise ValueError(f"`{name}` belong to `source: glyphs`: leave them out")
        return self
