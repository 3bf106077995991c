"""Fixtures that several test files share: small real files, never mocks of our own code."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Folder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's feature cache."""
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "feature-cache"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real weights and data sets; tests that need it are skipped where ICECORE_ASSETS is not set."""
    folder = os.environ.get("ICECORE_ASSETS")
    if not folder:
        pytest.skip("ICECORE_ASSETS is not set: it names a folder of real weights and data sets")
    return Path(folder)


@pytest.fixture
def image_folder(tmp_path: Path) -> Folder:
    """A function that writes a class-folder data set of small PNG files, all of different content."""

    def write(classes: tuple[str, ...] = ("cat", "dog"), *, each: int = 6, name: str = "photos", side: int = 8) -> Path:
        random = np.random.default_rng(len(classes) * 1000 + each)
        for label in classes:
            for number in range(each):
                path = tmp_path / name / label / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
        return tmp_path / name

    return write
