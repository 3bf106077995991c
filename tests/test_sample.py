"""Sample data: the digits of scikit-learn and the glyphs of matplotlib's fonts as folders of PNG files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from pydantic import ValidationError
from sklearn.datasets import load_digits

from pipeline.readers.sample_key import content_key
from pipeline.runtime import Reporter
from pipeline.sample.config import LARGEST, SampleConfig
from pipeline.sample.run import KINDS, SIDE, draw, fonts, sample

GLYPHS = SampleConfig(source="glyphs", sizes=(14, 26))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, written once."""
    folder = tmp_path_factory.mktemp("sample") / "digits"
    assert sample(SampleConfig(source="digits"), folder) == 1797
    return folder


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The glyphs in two sizes, written once."""
    folder = tmp_path_factory.mktemp("sample") / "glyphs"
    assert sample(GLYPHS, folder) == len(fonts()) * 2 * 62
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The digests of all files below a folder, by their paths."""
    return {p.relative_to(folder).as_posix(): content_key(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_there_are_1797_digits_in_ten_folders(digits: Path) -> None:
    counts = Counter(path.parent.name for path in digits.rglob("*.png"))
    assert set(counts) == set("0123456789")
    assert sum(counts.values()) == 1797
    assert min(counts.values()) == 174


def test_digits_are_those_of_scikit_learn(digits: Path) -> None:
    bundled = load_digits()
    for number in (0, 1, 900, 1796):
        with Image.open(digits / str(bundled.target[number]) / f"{number:04d}.png") as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            np.testing.assert_array_equal(np.asarray(image), np.round(bundled.images[number] * 255 / 16))


def test_there_are_62_classes_of_glyphs_in_every_font_and_size(glyphs: Path) -> None:
    counts = Counter(path.parent.name for path in glyphs.rglob("*.png"))
    assert len(counts) == 62
    assert {name.split("_")[0] for name in counts} == set(KINDS)
    assert set(counts.values()) == {len(fonts()) * 2}
    assert len(fonts()) > 10


def test_of_some_characters_the_glyphs_are_the_same(glyphs: Path, tmp_path: Path) -> None:
    config = SampleConfig(source="glyphs", sizes=(14,), characters=("digit", "lower"))
    sample(config, tmp_path / "some")
    every = contents(glyphs)
    wanted = {name: key for name, key in every.items() if name.startswith(("digit_", "lower_")) and "-14." in name}
    assert contents(tmp_path / "some") == wanted


def test_no_two_class_folders_differ_in_case_only(glyphs: Path) -> None:
    names = [path.name.lower() for path in glyphs.iterdir()]
    assert len(set(names)) == 62


def ink(image: Image.Image) -> tuple[int, int, int, int]:
    """The box around all that is not black."""
    box = image.getbbox()
    assert box
    return box


def test_glyphs_are_in_the_middle_of_the_frame(glyphs: Path) -> None:
    for path in glyphs.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (SIDE, SIDE))
            left, top, right, bottom = ink(image)
            assert abs(left - (SIDE - right)) <= 1, path
            assert abs(top - (SIDE - bottom)) <= 1, path


def test_every_glyph_is_whole_at_the_largest_size() -> None:
    for font in fonts():
        face = ImageFont.truetype(str(font), LARGEST)
        for character in "".join(KINDS.values()):
            left, top, right, bottom = ink(draw(character, face))
            whole = face.getmask(character).getbbox()
            assert (right - left, bottom - top) == (whole[2] - whole[0], whole[3] - whole[1]), (font, character)


def test_every_character_has_a_picture_of_its_own_in_a_font(glyphs: Path) -> None:
    pictures = {path.parent.name: content_key(path.read_bytes()) for path in glyphs.rglob("DejaVuSans-26.png")}
    assert len(pictures) == 62
    # A capital I and a small l, say, are the same strokes in some fonts; a font without letters has one box for all.
    assert len(set(pictures.values())) >= 60


@pytest.mark.parametrize("config", [SampleConfig(source="digits"), GLYPHS])
def test_writing_again_gives_the_same_bytes(
    config: SampleConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sample(config, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(request.getfixturevalue(config.source))


def test_an_earlier_sample_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "data" / "old").mkdir(parents=True)
    (tmp_path / "data" / "old" / "file.png").write_text("old")
    told: list[tuple[int, int]] = []
    sample(
        SampleConfig(source="glyphs", sizes=(8,)),
        tmp_path / "data",
        reporter=Reporter(progress=lambda *now: told.append(now)),
    )
    assert not (tmp_path / "data" / "old").exists()
    total = len(contents(tmp_path / "data"))
    assert told == [(number, total) for number in range(1, total + 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "letters"}, "'digits' or 'glyphs'"),
        ({"source": "glyphs", "sizes": (5,)}, "greater than or equal to 6"),
        ({"source": "glyphs", "sizes": (LARGEST + 1,)}, f"less than or equal to {LARGEST}"),
        ({"source": "glyphs", "sizes": ()}, "at least 1 item"),
        ({"source": "glyphs", "characters": ["capital"]}, "'digit', 'upper' or 'lower'"),
        ({"source": "digits", "characters": ["digit"]}, "`characters` belong to `source: glyphs`: leave them out"),
        ({"source": "digits", "sizes": [18]}, "`sizes` belong to `source: glyphs`: leave them out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SampleConfig.model_validate(settings)
