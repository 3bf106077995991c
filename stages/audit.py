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
    result = audit(
        values["audit"],
        name,
        config.datasets,
        task=project.TASKS / f"{name}.parquet",
        manifests=project.MANIFESTS,
        features=project.FEATURES,
        extracted={
            backbone: Extracted(entry.datasets, list(entry.taps)) for backbone, entry in values["extract"].items()
        },
        reporter=Reporter(message=lambda line: print(f"{name}: {line}", flush=True)),
    )
    write_json(project.AUDITS / f"{name}.json", result)
    duplicates = _describe(result["near_duplicates"], "near duplicate across splits", "near duplicates across splits")
    labels = _describe(result["contradicted"], "label that neighbours contradict", "labels that neighbours contradict")
    print(f"{name}: {duplicates}; {labels}")


def _describe(findings: dict[str, Any], noun: str, nouns: str) -> str:
    """Return the number of findings, or why they were not searched."""
    if "why" in findings:
        return f"{nouns} not searched: {findings['why']}"
    return counted(findings["count"], noun, nouns)


if __name__ == "__main__":
    project.run(main)
