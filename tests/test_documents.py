"""README.md and docs/: every block of commands or of Python is run, or says in a comment above it why it is not."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

from pipeline.backbones import serialization
from pipeline.backbones.spec import InputSpec
from pipeline.cli import main
from pipeline.readers.image import ImageSpec

ROOT = Path(__file__).parent.parent
GENERATED = "settings.md"
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != GENERATED)]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^ *```(?P<kind>console|python|bash)\n(?P<text>.*?)```", re.M | re.S
)
GUIDES = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *PAGES]
FILE = re.compile(r"`((?:[\w.]+/)*[\w.]*(?:/|\.py|\.html|\.yaml))`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@dataclass(frozen=True)
class Block:
    """A block of a page; `reason` says why it is not run."""

    page: str
    kind: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without what stands in front of `icecore` and without comments."""
        text = self.text.replace("\\\n", " ")
        lines = [line.strip().removeprefix("$ ") for line in text.splitlines() if re.match(r" *\$ ", line)]
        return [shlex.split(line, comments=True) for line in lines]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            yield Block(page.stem, found["kind"], found["text"], found["reason"])


BLOCKS = list(blocks())
RUN = sorted({block.page for block in BLOCKS if block.reason is None})


def test_pages_have_blocks_that_are_run_and_blocks_that_are_not() -> None:
    assert {"README", "vectors", "howto-layers", "layers"} <= {*RUN}
    assert sum(block.reason is None for block in BLOCKS) >= 6
    assert sum(block.reason is not None for block in BLOCKS) >= 6


def test_every_command_of_the_pages_is_one_that_there_is() -> None:
    """Blocks that are not run too: names of commands and of their options are right."""
    group = typer.main.get_command(main.app)
    tried = 0
    for block in BLOCKS:
        for words in block.commands:
            if words[0] != "icecore" or "…" in words:
                continue
            command: Any = group
            name, *rest = words[1:]
            while hasattr(command, "commands"):
                assert name in command.commands, words
                command, name, *rest = command.commands[name], *(rest or [""])
            if words[1] == "repro":  # whose arguments are DVC's
                continue
            options = {option for one in command.params for option in [*one.opts, *one.secondary_opts]}
            assert {word for word in words if word.startswith("--")} <= {*options, "--help"}, words
            tried += 1
    assert tried >= 15


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.kind == "python"], ids=lambda one: one.page)
def test_every_import_of_the_pages_is_there(block: Block) -> None:
    imported = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.ImportFrom)]
    for node in imported:
        exec(ast.unparse(node), {})  # raises ImportError where a name is not there


def test_every_link_between_pages_leads_to_a_file() -> None:
    links = [(page, link) for page in PAGES for link in LINK.findall(page.read_text())]
    assert len(links) > 10
    missing = [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert [line for line in missing if not line.endswith(GENERATED)] == []


def test_every_source_file_that_the_documents_name_exists() -> None:
    """A path is relative to the root, to `pipeline/`, or to the folder that was named before it."""
    named, missing = 0, []
    for page in GUIDES:
        folder = ROOT
        for path in FILE.findall(page.read_text()):
            if path.startswith("data/") or path == "infer.py":  # artefacts
                continue
            places = [parent / path for parent in (ROOT, ROOT / "pipeline", folder) if (parent / path).exists()]
            if not places and path.endswith((".py", ".html")):
                missing.append(f"{page.name}: {path}")
            elif places and "/" in path:
                folder = places[0] if path.endswith("/") else places[0].parent
            named += bool(places)
    assert named > 150
    assert missing == []


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frozen MobileNetV2 with random weights that takes images of 32×32."""
    from torchvision import models

    torch.manual_seed(0)
    module = models.mobilenet_v2()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the statistics of the one batch, so that values keep their size through the layers
    with torch.no_grad():
        module.train()(torch.randn(8, 3, 64, 64))
    folder = tmp_path_factory.mktemp("frozen") / "mobilenet_v2"
    inputs = InputSpec(image=ImageSpec(resize=(32, 32)), mean=(0.5,) * 3, std=(0.5,) * 3)
    settings = {"family": "torchvision", "name": "mobilenet_v2", "num_classes": 1000}
    serialization.write(folder, module, architecture=settings, origin={}, inputs=inputs)
    return folder


@pytest.fixture
def photos(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/<class>/*.png, and with `mobilenet_v2/`, which stands for the large network of that name."""
    (tmp_path / "mobilenet_v2").symlink_to(network)
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_in_their_order(page: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.page != page or block.reason is not None:
            continue
        if block.kind == "python":
            exec(compile(block.text, f"{page}.md", "exec"), names)
        for words in block.commands:
            assert words[0] == "icecore", f"{words}: expected a command of icecore, or why it is not run"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main.main()
            assert ended.value.code in (None, 0), words
    if "head" in names:
        assert names["X"].shape == (8, 1280)
        assert names["head"].classes_.tolist() == ["cat", "dog"]
    if page == "vectors":
        assert names["vectors"].shape == (8, 1280)
        assert (photos / "features" / "features-13-mean" / "index.json").is_file()
