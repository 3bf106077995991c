"""Settings of Sphinx for `make docs`, which also writes settings.md from the models of params.yaml."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import __version__  # noqa: E402
from pipeline.settings import reference  # noqa: E402
from stages import project as stages  # noqa: E402

project = "icecore"
author = "the authors of icecore"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"icecore {release}"
autodoc_preserve_defaults = True
default_role = "code"  # of docstrings
autodoc_typehints = "signature"
autodoc_class_signature = "separated"


def write_settings(_: Any) -> None:
    """Write settings.md, a heading per section of params.yaml and what `icecore settings` lists of it."""
    parts = [
        "# Settings",
        "Every key of `params.yaml`, as `icecore settings` lists them: type, default and meaning. NAME stands for the "
        "name of an entry.",
    ]
    for name, section in stages.sections().items():
        parts += [f"## {name}", f"```text\n{reference.describe_settings({name: section}).rstrip()}\n```"]
    path = Path(__file__).with_name("settings.md")
    text = "\n\n".join(parts) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Write what is generated before Sphinx looks for pages."""
    app.connect("builder-inited", write_settings)
