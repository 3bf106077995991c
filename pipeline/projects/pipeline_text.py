"""dvc.yaml of a project: the stages of this repository, with digests of the installed code for its files."""

import io
from pathlib import Path
from typing import Any

from pipeline.errors import requires
from pipeline.projects.code import CODE, STAGES, is_code

HEADER = """\
The pipeline of an icecore project, written by `icecore init`. Every stage is `icecore stage STAGE [ENTRY]` and takes
its settings from the section of params.yaml of the same name; a section that params.yaml leaves out has no stages.
.icecore/code.json has a digest of the installed code of each stage: `icecore repro` and `icecore check` bring it up
to date, so that after an upgrade those stages run again whose code changed.
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
    """Give a stage the command of the installed package, and the digest of its code for the files of the code."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    stage["cmd"] = stage["cmd"].replace(f"python -m stages.{name}", f"icecore stage {name}")
    for dep in [dep for dep in stage["deps"] if is_code(dep)]:
        stage["deps"].remove(dep)
    if not stage["deps"]:
        del stage["deps"]
    keys = CommentedSeq([f"stages.{name}"])
    keys.fa.set_flow_style()
    digest = CommentedMap({Path(CODE).as_posix(): keys})
    if "params" in stage:
        stage["params"].append(digest)
    else:
        stage.insert([*stage].index("outs"), "params", CommentedSeq([digest]))
