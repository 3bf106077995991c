"""Copies of the project for tests that run DVC in them, and small settings for them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from support import preloaded

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pipeline" / "projects" / "default.yaml"
"""The settings of the default run, which no user edits: params.yaml of a checkout is theirs."""
# Stages as a user runs them, without DVC, which would remove their outputs first; in one process, to be quick.
BY_HAND = """
import runpy, sys
for stage in sys.argv[1:]:
    name, *entry = stage.split("@")
    sys.argv = [name, *entry]
    runpy.run_module(f"stages.{name}", run_name="__main__")
"""
COPIED = ("pipeline", "stages", "dvc.yaml", ".dvcignore", ".dvc/config", "data/.gitignore")
SOURCES = ("pretrained", "folder", "torchvision", "timm", "module")
KEPT = tuple(
    f"data/{name}/.gitignore"
    for name in (
        *("pretrained", "model_digests/backbone", "model_digests/scratch", "teachers"),
        *(f"code/{source}" for source in SOURCES),
    )
)


class Project:
    """A copy of the project without its history, its own feature cache beside it if it is not given one."""

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        self.root = root
        self.cache = cache or root.parent / "feature-cache"
        self.preloaded = True
        """Whether commands and stages start from a process that has imported the libraries; else as a user's do."""

        self._last: tuple[Mapping[str, Any], tuple[str, ...]] | None = None  # what DVC has brought about
        for name in (*COPIED, *KEPT):
            source, target = ROOT / name, root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        shutil.copyfile(SHIPPED, root / "params.yaml")
        (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command of this environment in the project; return what it printed."""
        # The copy comes first, before the installed project that the test itself runs from.
        environment = {"PYTHONPATH": str(self.root), "ICECORE_CACHE": str(self.cache)}
        if self.preloaded:
            environment |= preloaded.start()
        else:
            environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | environment
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == expect, output
        return output

    def write(self, params: Mapping[str, Any]) -> None:
        """Write params.yaml."""
        self._last = None
        (self.root / "params.yaml").write_text(yaml.safe_dump(dict(params)))

    def repro(self, params: Mapping[str, Any], *targets: str) -> tuple[list[str], str]:
        """Write params.yaml and run DVC; return the stages that ran, in their order, and all output.

        The stage `settings` runs whenever params.yaml changed, and is not among them.
        """
        self.write(params)
        output = self.run("dvc", "repro", *targets)
        self._last = (params, targets)
        ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
        return [stage for stage in ran if stage != "settings"], output

    def settle(self, params: Mapping[str, Any], *targets: str) -> None:
        """Run DVC, unless that is what was run last: a process that finds nothing to do takes seconds."""
        if self._last != (params, targets):
            self.repro(params, *targets)

    def by_hand(self, *stages: str) -> None:
        """Run stages such as `fit@digits` without DVC."""
        self._last = None
        self.run("python", "-c", BY_HAND, *stages)

    def set_up(self, params: Mapping[str, Any]) -> None:
        """Write params.yaml, run all its stages in one process, and let DVC take what they made as its own."""
        self.write(params)
        self.by_hand(*self.run("dvc", "stage", "list", "--name-only").split())
        self.run("dvc", "commit", "--force")

    def read(self, path: str) -> Any:
        """A JSON file of the project."""
        return json.loads((self.root / path).read_text())


def write_digits(folder: Path) -> None:
    """Write the first 30 digits of each class as class folders: 300 images."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number, pixels in enumerate(bundled.images[bundled.target == label][:30]):
            Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / str(label) / f"{number:02d}.png")


def default() -> dict[str, Any]:
    """The settings of the default run."""
    params: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    return params


def small() -> dict[str, Any]:
    """The default settings with little of everything: 300 digits (`write_digits`), which the network learns itself."""
    params = default()
    del params["sample"]["glyphs"]
    params["prepare"] = {"digits": {"root": "digits"}}
    params["pretrain"]["glyphs"] |= {"dataset": "digits", "steps": 4, "batch_size": 16, "widths": [8, 8, 8]}
    del params["extract"]["glyphs"]["taps"]["block2"]
    params["split"] = {"digits": params["split"]["digits"] | {"few_shot": {"labels_per_class": 5, "draws": 2}}}
    run = params["fit"]["digits_logistic"] | {"inputs": ["pixels", "block3"], "labels_per_class": [1, 5]}
    params["fit"] = {"digits_logistic": run}
    params["finetune"] = params["teach"] = params["distill"] = {}
    del params["freeze"]["small"]
    del params["extract"]["glyphs"]["taps"]["block1_whole"]
    params["evaluate"]["resamples"] = params["compare"]["resamples"] = 100
    return params
