"""Whether the numbers of a run follow from its present inputs: settings, files, code and versions of packages."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluate.config import EvaluateConfig
from pipeline.files import digest, read_json, sha256_file
from pipeline.model_record import JSON
from pipeline.runtime import versions

CODE = ("metrics.py", "model_record.py", "predictions.py", "task.py", "files.py", "runtime.py")
"""Modules of `pipeline/` outside this package that the numbers depend on."""


def inputs_digest(config: EvaluateConfig, *, predictions: Path, task: Path, model: Path) -> str:
    """Return a digest of everything that the numbers depend on: settings, files, code and package versions."""
    files = [sha256_file(path) for path in (predictions, task, model / JSON)]
    here = Path(__file__).parent
    code = [sha256_file(path) for path in (*sorted(here.glob("*.py")), *(here.parent / name for name in CODE))]
    made_by = versions("scikit-learn", "numpy", "scipy")
    return digest({"settings": config.model_dump(mode="json"), "files": files, "code": code, "versions": made_by})


def is_up_to_date(now: str, *, tables: Path, others: Sequence[Path]) -> bool:
    """Return whether all files of an evaluation exist and its tables have the inputs digest `now`."""
    return all(path.is_file() for path in (tables, *others)) and read_json(tables).get("evidence") == now
