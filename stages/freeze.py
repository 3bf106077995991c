"""Freeze a backbone: `python -m stages.freeze glyphs`."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.backbones import user_code
from pipeline.errors import BackboneError, counted
from pipeline.files import write_json
from pipeline.freeze.config import Module
from pipeline.freeze.run import freeze
from pipeline.runtime import Reporter
from stages import project


def main() -> None:
    """Write `data/backbones/<name>/`, and a digest of its weights, which runs with `input: pixels` depend on."""
    name, config = project.entry("freeze")
    spec = freeze(config, project.BACKBONES / name, pretrained=project.PRETRAINED, reporter=Reporter(message=print))
    write_json(project.DIGESTS / name / "pixels.json", {"weights_digest": spec.weights_digest})
    if isinstance(config, Module):
        link_code(project.settings()["freeze"].values(), project.CODE / "module")
    print(f"{name}: weights {spec.weights_digest[:16]}, input {spec.input.shape}, {counted(len(spec.taps), 'tap')}")
    print(f"  images: {spec.input.description}")
    print(f"  `icecore layers {name}` lists the taps")


def link_code(configs: Iterable[object], folder: Path) -> None:
    """Link the user's modules, which entries build networks from, into a folder that stages depend on.

    Every entry writes the links of all entries, so their order does not matter. Links to unused modules are removed.
    """
    files: dict[str, Path] = {}
    for config in configs:
        if isinstance(config, Module):
            with contextlib.suppress(BackboneError):  # the stage of that entry reports the problem
                files |= user_code.trace_imports(config.factory.partition(":")[0]).files
    modules = {
        f"{module}{file.suffix}": file
        for module, file in files.items()
        if not module.startswith(f"{user_code.OWN_PACKAGE}.") and not user_code.is_installed(file)
    }
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in modules:
            link.unlink()
    for link_name, file in modules.items():
        link, target = folder / link_name, Path(os.path.relpath(file, folder.resolve()))
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


if __name__ == "__main__":
    project.run(main)
