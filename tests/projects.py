"""Copies of the project for tests that run DVC in them, and small settings for them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
COPIED = ("pipeline", "stages", "dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", "data/.gitignore")
KEPT = tuple(f"data/{name}/.gitignore" for name in ("pretrained", "models/backbone", "models/scratch"))


class Project:
    """A copy of the project without its history, its own feature cache beside it if it is not given one."""

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        self.root = root
        self.cache = cache or root.parent / "feature-cache"
        for name in (*COPIED, *KEPT):
            source, target = ROOT / name, root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
        (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command of this environment in the project; return what it printed."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # The copy comes first, before the installed project that the test itself runs from.
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(self.root), "ICECORE_CACHE": str(self.cache)}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == expect, output
        return output

    def write(self, params: Mapping[str, Any]) -> None:
        """Write params.yaml."""
        (self.root / "params.yaml").write_text(yaml.safe_dump(dict(params)))

    def repro(self, params: Mapping[str, Any], *targets: str) -> tuple[list[str], str]:
        """Write params.yaml and run DVC; return the stages that ran, in their order, and all output."""
        self.write(params)
        output = self.run("dvc", "repro", *targets)
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")], output

    def read(self, path: str) -> Any:
        """A JSON file of the project."""
        return json.loads((self.root / path).read_text())


def small() -> dict[str, Any]:
    """The default settings with little of everything, the digits as a list with two columns of labels."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sample"]["glyphs"]["sizes"] = [22]
    params["pretrain"]["glyphs"] |= {"steps": 4, "batch_size": 16, "widths": [8, 8, 8]}
    params["split"] = {"digits": params["split"]["digits"] | {"few_shot": {"labels_per_class": 5, "draws": 2}}}
    run = params["fit"]["digits_logistic"] | {"inputs": ["pixels", "block3"], "labels_per_class": [1, 5]}
    params["fit"] = {"digits_logistic": run}
    params["finetune"] = {}
    params["extract"]["glyphs"]["taps"].pop("block1_whole")
    params["evaluate"]["resamples"] = params["compare"]["resamples"] = 100
    return params
