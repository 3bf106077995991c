"""Audit a task: `python -m stages.audit digits`."""

import sys
from typing import Any

from pipeline.audit.config import Extracted
from pipeline.audit.run import audit
from pipeline.errors import counted
from pipeline.files import write_json
from pipeline.runtime import Reporter
from stages import project


def main() -> None:
    """Write `data/audits/<name>.json`."""
    name, config = project.entry("split", sys.argv[1:])
    values = project.settings()
    found = audit(
        values["audit"],
        name,
        config.datasets,
        task=project.TASKS / f"{name}.parquet",
        manifests=project.MANIFESTS,
        features=project.FEATURES,
        extracted={key: Extracted(one.datasets, list(one.taps)) for key, one in values["extract"].items()},
        reporter=Reporter(message=lambda line: print(f"{name}: {line}", flush=True)),
    )
    write_json(project.AUDITS / f"{name}.json", found)
    near, odd = found["near_duplicates"], found["contradicted"]
    duplicates = _describe(near, "near duplicate across splits", "near duplicates across splits")
    labels = _describe(odd, "label that neighbours contradict", "labels that neighbours contradict")
    print(f"{name}: {duplicates}; {labels}")


def _describe(found: dict[str, Any], noun: str, nouns: str) -> str:
    """Return how many there are, or why they were not looked for."""
    return f"{nouns} not looked for: {found['why']}" if "why" in found else counted(found["count"], noun, nouns)


if __name__ == "__main__":
    project.run(main)
