"""Write dvc.yaml of a project: the stages of this repository, with digests of the installed code instead of files."""

import io
from pathlib import Path
from typing import Any

from pipeline.errors import requires
from pipeline.projects.code import DIGESTS, STAGES, is_code

HEADER = """\
The pipeline of an icecore project, written by `icecore init`. Every stage runs `icecore stage STAGE [ENTRY]` with the
settings of its section in params.yaml; a section that is left out has no stages. .icecore/code.json has a digest of
each stage's installed code. `icecore repro` and `icecore check` update the digests, so that after an upgrade only the
stages with changed code run again.
"""


def pipeline_text() -> str:
    """Return dvc.yaml of a project."""
    with requires("pipeline", what="dvc.yaml"):
        from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 200
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(STAGES.read_text(encoding="utf-8"))
    for name, stage in document["stages"].items():
        _depend_on_digest(name, stage.get("do", stage))
    document.yaml_set_start_comment(HEADER)
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def _depend_on_digest(name: str, stage: Any) -> None:
    """Replace a stage's command by that of the installed package, and its code files by a digest."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    stage["cmd"] = stage["cmd"].replace(f"python -m stages.{name}", f"icecore stage {name}")
    for dep in [dep for dep in stage["deps"] if is_code(dep)]:
        stage["deps"].remove(dep)
    if not stage["deps"]:
        del stage["deps"]
    keys = CommentedSeq([f"stages.{name}"])
    keys.fa.set_flow_style()
    digest = CommentedMap({Path(DIGESTS).as_posix(): keys})
    if "params" in stage:
        stage["params"].append(digest)
    else:
        stage.insert([*stage].index("outs"), "params", CommentedSeq([digest]))
