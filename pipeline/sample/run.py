"""Sample data for the default run: real PNG files, written offline from data that scikit-learn and matplotlib ship.

`digits`: the 1,797 handwritten digits of scikit-learn (Alpaydin and Kaynak, 1998), 8×8 grey, white on black.
`glyphs`: letters and digits printed in matplotlib's fonts, in several sizes, 32×32 grey, white on black.
"""

import string
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import requires
from pipeline.files import AnyPath, as_path, fresh_folder
from pipeline.runtime import SILENT, Reporter
from pipeline.sample.config import Characters, SampleConfig

SIDE = 32
# matplotlib's other fonts have no letters, or a placeholder for each letter.
FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
KINDS: Mapping[Characters, str] = {
    "digit": string.digits,
    "upper": string.ascii_uppercase,
    "lower": string.ascii_lowercase,
}

Picture = tuple[str, str, Image.Image]
"""Class, file name and image."""


def sample(config: SampleConfig, folder: AnyPath, *, reporter: Reporter = SILENT) -> int:
    """Write one folder of images per class; return the number of images."""
    folder = as_path(folder, "sample: folder")
    pictures = list(_digits() if config.source == "digits" else _glyphs(config))
    with fresh_folder(folder) as new:
        for number, (label, name, image) in enumerate(pictures, start=1):
            path = new / label / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            reporter.progress(number, len(pictures))
    return len(pictures)


def _digits() -> Iterator[Picture]:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    for number, (pixels, label) in enumerate(zip(bundled.images, bundled.target, strict=True)):
        grey = np.round(pixels * (255 / 16)).astype(np.uint8)
        yield str(label), f"{number:04d}", Image.fromarray(grey)


def _glyphs(config: SampleConfig) -> Iterator[Picture]:
    for font in fonts():
        for size in config.sizes:
            face = ImageFont.truetype(str(font), size)
            for kind in config.characters:
                for character in KINDS[kind]:
                    # The kind is part of the class name: file systems that ignore case would merge the folders a and A.
                    yield f"{kind}_{character}", f"{font.stem}-{size}", draw(character, face)


def fonts() -> list[Path]:
    """Return matplotlib's fonts that have all letters and digits, sorted by name."""
    with requires("report", what="the fonts of printed characters"):
        import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted({path for pattern in FONTS for path in folder.glob(f"{pattern}.ttf") if "Display" not in path.name})


def draw(character: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw a character in white on black, its ink centred in 32×32 pixels."""
    canvas = Image.new("L", (3 * SIDE, 3 * SIDE), 0)
    ImageDraw.Draw(canvas).text((SIDE, SIDE), character, fill=255, font=face)
    # The bounding box that the font states includes the space before the next letter; the drawn pixels do not.
    ink = canvas.getbbox()
    assert ink is not None, "fonts() returns only fonts that have every character"
    left, top = (ink[0] + ink[2] - SIDE) // 2, (ink[1] + ink[3] - SIDE) // 2
    return canvas.crop((left, top, left + SIDE, top + SIDE))
