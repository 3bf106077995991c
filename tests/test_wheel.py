"""The built wheel, installed outside of the repository: README's commands on photos, and everything else that it does.

Its environment has the libraries of this one and nothing of the repository. Most commands start from the preloaded
process, with the installed code; one starts as a user's does.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import preloaded
from support.clean_environment import clean_folder, run_clean

from pipeline.backbones import glyphs, serialization

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
[COMMANDS] = [re.findall(r"^\$ (.*)$", block, re.MULTILINE) for block in BLOCKS if "$ icecore run " in block]
"""The commands of README from the install to the class of a new photo."""

EACH = 4  # photos of each class


class Installed:
    """The wheel in an environment of its own, and the folder that a user works in."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "mein Ordner é"
        self.folder.mkdir()
        self.cache = root / "cache"
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root / "dist")]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
        [self.wheel] = (root / "dist").glob("*.whl")
        venv.create(root / "env", symlinks=True)
        self.bin = root / "env" / "bin"
        [self.site] = (root / "env").glob("lib/python*/site-packages")
        (self.site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        install = ["uv", "pip", "install", "--offline", "--no-deps", "--python", str(self.bin / "python")]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        subprocess.run([*install, str(self.wheel)], env=environment, check=True, capture_output=True)

    def shell(self, line: str, *, cwd: Path | None = None, as_user: bool = False) -> str:
        """Run a line of a shell; return what it printed. as_user: start the interpreter of the environment."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["ICECORE_CACHE"] = str(self.cache)
        if as_user:
            environment["PATH"] = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        else:
            environment |= preloaded.start() | {"PYTHONPATH": str(self.site)}
        done = subprocess.run(
            ["sh", "-c", line], cwd=cwd or self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def write_photos(folder: Path) -> None:
    """Write photos/<class>/, dark ants and bright bees, and new.jpg, a bee."""
    random = np.random.default_rng(0)
    for place, label in enumerate(("ants", "bees")):
        (folder / "photos" / label).mkdir(parents=True)
        names = [folder / "photos" / label / f"{number}.jpg" for number in range(EACH)]
        for path in [*names, folder / "new.jpg"]:
            pixels = random.integers(120 * place, 120 * place + 120, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def write_network(folder: Path) -> None:
    """Write a small network as a backbone. A folder of the name of a model stands for it: nothing is downloaded."""
    torch.manual_seed(0)
    settings = {"family": "glyphs", "classes": 2, "widths": [4, 4, 8]}
    network = glyphs.GlyphNet(classes=2, widths=(4, 4, 8))
    serialization.write(folder, network, architecture=settings, origin={}, inputs=glyphs.INPUT)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(tmp_path_factory.mktemp("wheel"))
    write_photos(made.folder)
    write_network(made.folder / "mobilenet_v2")
    return made


@pytest.fixture(scope="module")
def project(installed: Installed) -> Path:
    """The project that the second command of README makes; what the command printed is in `said.txt` beside it."""
    said = installed.shell(COMMANDS[1])
    (installed.folder / "said.txt").write_text(said)
    return installed.folder / "photos-icecore"


def test_three_commands_lead_from_the_install_to_a_report_and_to_the_class_of_a_new_photo(
    installed: Installed, project: Path
) -> None:
    install, _, predict = COMMANDS
    assert re.match(r"pip install '\.\[pipeline,report\]'", install)
    [found] = metadata.distributions(path=[str(installed.site)], name="icecore-features")
    assert {"pipeline", "report"} <= {*(found.metadata.get_all("Provides-Extra") or [])}

    said = (installed.folder / "said.txt").read_text()
    assert said.startswith(f"{installed.folder / 'photos'}: 8 images of 2 classes (ants 4, bees 4).\n")
    assert "11 of 11 stages ran" in said
    assert "few_labels_mobilenet_v2" in said
    assert "report: data/report/index.html" in said
    assert (project / "data" / "report" / "index.html").is_file()
    steps = ["cd photos-icecore", "icecore wrong photos_mobilenet_v2", "icecore predict photos_mobilenet_v2 NEW.jpg"]
    assert said.endswith("\n  ".join(["next:", *steps, ""]).rstrip(" "))
    header, _, row = installed.shell(predict).splitlines()
    assert header.split() == ["path", "prediction", "confidence"]
    assert re.fullmatch(r"\.\./new\.jpg +bees +0\.\d{3}", row)


def test_what_was_trained_is_exported_explained_and_used_from_python(
    installed: Installed, project: Path, tmp_path: Path
) -> None:
    new = installed.folder / "new.jpg"
    installed.shell("icecore export photos_mobilenet_v2 ../exported", cwd=project)
    done = run_clean(
        clean_folder(tmp_path),
        installed.folder / "exported" / "infer.py",
        installed.folder / "exported/model.onnx",
        new,
    )
    assert done.stdout.split("\t")[:2] == [str(new), "bees"], done.stderr
    installed.shell("icecore explain photos_mobilenet_v2 ../new.jpg --out page.html", cwd=project)
    page = (project / "page.html").read_text()
    assert 'alt="evidence for bees' in page
    assert "Nearest training samples" in page
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = f"""{block}
assert icecore.__file__.startswith({str(installed.site)!r})
assert (X.shape, sorted(y)) == ((8, 8), ["ants"] * 4 + ["bees"] * 4)
model = icecore.load("photos-icecore/data/models/photos_mobilenet_v2")
print(model.predict(["new.jpg"]), model.classes)
"""
    (installed.folder / "script.py").write_text(code)
    said = installed.shell("python -m script")
    assert "test rows" in said
    assert said.endswith("['bees'] ('ants', 'bees')\n")


def test_a_second_project_takes_the_features_of_the_first(installed: Installed, project: Path) -> None:
    """Made by the interpreter of the environment, as a user starts it."""
    before = sorted(installed.cache.rglob("*.h5"))
    assert before
    said = installed.shell("icecore init 'Projekt 2' --images photos", as_user=True)
    assert "icecore repro" in said
    assert "8 samples, 0 rejected; rows of all taps: 0 to compute, 8 reused" in installed.shell(
        "dvc repro extract@mobilenet_v2", cwd=installed.folder / "Projekt 2"
    )
    assert sorted(installed.cache.rglob("*.h5")) == before
    params = (project / "params.yaml").read_bytes()
    assert "0 of 11 stages ran" in installed.shell("icecore run photos --backbone mobilenet_v2 --target label")
    assert (project / "params.yaml").read_bytes() == params


def test_the_demo_reaches_its_report_in_an_empty_folder(installed: Installed) -> None:
    demo = installed.folder / "icecore-demo"
    said = installed.shell("icecore demo")
    assert said.endswith("next:\n  cd icecore-demo\n  icecore wrong digits_probe\n")
    assert "report: data/report/index.html" in said
    assert "digits_probe" in (demo / "data" / "report" / "index.html").read_text()
    numbers = json.loads((demo / "data" / "metrics" / "runs" / "digits_probe.json").read_text())
    assert numbers["accuracy"] > 0.95
    assert "0 of 15 stages ran" in installed.shell("icecore repro", cwd=demo)


def test_an_upgrade_runs_the_stages_again_whose_code_changed(installed: Installed, project: Path) -> None:
    code = installed.site / "pipeline" / "fit" / "run.py"
    code.write_text(code.read_text() + "\nMORE = 1\n")
    said = installed.shell("icecore check --fast", cwd=project)
    assert "note: the installed code of these stages is another one: fit, finetune, distill\n" in said
    assert "is another one" not in installed.shell("icecore check --fast", cwd=project)
    status = json.loads(installed.shell("dvc status --json fit@photos_mobilenet_v2", cwd=project))
    assert list(status) == ["fit@photos_mobilenet_v2"]
