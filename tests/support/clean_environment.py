"""An environment that has onnxruntime, NumPy and Pillow only: what a user of an exported model installs."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

CLEAN = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
for name in ("torch", "pipeline", "sklearn"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script with the packages of one folder only."""


def clean_folder(folder: Path) -> Path:
    """The packages that the script names, and what these need, without any other."""
    for distribution in ("onnxruntime-gpu", "numpy", "pillow", "flatbuffers", "packaging", "protobuf"):
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            continue
        for top in {Path(file).parts[0] for file in files} - {"..", "__pycache__"}:
            source = Path(str(metadata.distribution(distribution).locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def run_clean(folder: Path, script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script by an interpreter that knows the packages of one folder only."""
    command = [sys.executable, "-I", "-S", "-c", CLEAN, str(folder), str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
