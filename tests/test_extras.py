"""The distribution: its name, what is declared, and the extra that whoever lacks a library is told of."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.projects import SHIPPED

import pipeline
from pipeline.backbones import user_code
from pipeline.errors import MissingExtraError, PipelineError
from pipeline.store.features import Features

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Names of imports that are not those of their distributions.
DISTRIBUTIONS = {
    **{"PIL": "pillow", "sklearn": "scikit-learn", "ruamel": "ruamel.yaml", "distributed": "dask"},
    **{"lightning_fabric": "lightning-fabric", "onnxruntime": "onnxruntime-gpu", "pydantic_core": "pydantic"},
}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!; ]", one, maxsplit=1)[0] for one in requirements}


def test_the_distribution_has_a_name_and_a_version_of_its_own() -> None:
    assert PROJECT["name"] == "icecore-features"
    assert PROJECT["version"] == pipeline.__version__
    assert PROJECT["scripts"] == {"icecore": "pipeline.cli.main:main"}


def test_features_of_networks_that_import_icecore_keep_their_addresses() -> None:
    """backbone.json, and so the digest of a column, names the package `icecore`, whatever pip calls it."""
    assert user_code._versions({"pipeline"}) == {"icecore": "0.1.0"}


def test_no_text_tells_to_install_the_other_project_of_the_name() -> None:
    wrong = re.compile(r"pip install +['\"]?icecore(?!-features)|icecore\[")
    files = [
        path for end in ("md", "py", "toml", "yaml") for path in ROOT.rglob(f"*.{end}") if ".venv" not in path.parts
    ]
    assert len(files) > 200
    assert [str(path) for path in files if path != Path(__file__) and wrong.search(path.read_text())] == []


def test_every_library_that_the_code_imports_is_declared() -> None:
    imported = set()
    for path in [ROOT / "icecore.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "pipeline", "stages", "pillow_heif"}  # users install the last themselves
    needed = {DISTRIBUTIONS.get(name, name) for name in imported}
    extras = {name for extra, listed in EXTRAS.items() if extra != "dev" for name in names(listed)}
    declared = names(PROJECT["dependencies"]) | extras
    assert {"scipy", "markupsafe", "numpy"} <= needed <= declared
    assert declared - needed - {"onnxruntime", "icecore-features", "dvc", "skops", "ruamel.yaml.clib", "timm"} == set()


def test_all_brings_every_extra_that_is_no_tool() -> None:
    (every,) = EXTRAS["all"]
    assert every == f"icecore-features[{','.join(sorted(set(EXTRAS) - {'all', 'dev'}))}]"


def train() -> None:
    from pipeline.finetune.config import FinetuneConfig
    from pipeline.training.loop import make_fabric

    make_fabric(FinetuneConfig(task="t", backbone="b", start="backbone", input="pixels"))


def connect() -> None:
    from pipeline.workers import WorkersConfig
    from pipeline.workers.client import open_client

    with open_client(WorkersConfig(workers=2), gpus=0):
        pass


def report() -> None:
    from pipeline.report import run
    from pipeline.report.config import ReportConfig

    run.report(ReportConfig(), [], Path("index.html"))


def draw() -> None:
    from pipeline.report.figures import axes_of

    with axes_of(1, 1, [], name="a"):
        pass


def fonts() -> None:
    from pipeline.sample.run import fonts

    fonts()


def read() -> None:
    from pipeline.settings.params import read_params

    read_params(SHIPPED)


def repro() -> None:
    from pipeline.cli.reproduce import reproduce

    reproduce([], stages=[], say=print)


def heads() -> None:
    from pipeline.heads.skops_import import skops_io

    skops_io()


NEEDED: list[tuple[str, str, Callable[[], None], str]] = [
    ("train", "lightning_fabric", train, "training a network"),
    ("cluster", "distributed", connect, "several processes or machines"),
    ("report", "jinja2", report, "the report"),
    ("report", "matplotlib", draw, "figures of the report"),
    ("report", "matplotlib", fonts, "the fonts of printed characters"),
    ("pipeline", "ruamel.yaml", read, "params.yaml"),
    ("pipeline", "dvc", repro, "`icecore repro`"),
    ("pipeline", "skops.io", heads, "saved heads"),
]


@pytest.mark.parametrize(("extra", "module", "use", "what"), NEEDED, ids=[use.__name__ for _, _, use, _ in NEEDED])
def test_whoever_lacks_a_library_reads_the_name_of_its_extra(
    extra: str, module: str, use: Callable[[], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = (
        rf"^{what}: expected the libraries of the extra `{extra}`, got: .*{module}.* Run `pip install 'icecore-feat"
    )
    with pytest.raises(MissingExtraError, match=message) as raised:
        use()
    assert f"icecore-features[{extra}]" in str(raised.value)
    assert isinstance(raised.value, PipelineError)
    assert isinstance(raised.value.__cause__, ImportError)


OPTIONAL = (
    *("dask", "distributed", "dvc", "jinja2", "lightning_fabric", "markupsafe", "matplotlib", "onnx", "onnxruntime"),
    *("onnxscript", "openvino", "rich", "ruamel.yaml", "skops", "timm"),
)


def test_vectors_of_a_folder_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import embed
    from pipeline.backbones import glyphs, serialization

    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    network = glyphs.GlyphNet(classes=2, widths=(4,))
    settings = {"family": "glyphs", "classes": 2, "widths": [4]}
    serialization.write(
        tmp_path / "tiny", network, architecture=settings, origin={}, inputs=glyphs.INPUT, classes=["n", "y"]
    )
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.full((32, 32), 60 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    job = embed.job(str(tmp_path / "tiny"), ["penultimate"], tmp_path / "images")
    embed.embed(job, tmp_path / "out", cache_root=tmp_path / "cache")
    assert Features.open(tmp_path / "out" / "penultimate").load().shape == (3, 4)
