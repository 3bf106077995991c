"""Audit a task: `python -m stages.audit digits`."""

import sys

from pipeline.audit.config import Extracted
from pipeline.audit.run import audit
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
    print(f"{name}: {_said(near, 'near duplicates across splits')}; {_said(odd, 'labels that neighbours contradict')}")


def _said(found: dict[str, object], what: str) -> str:
    return f"{what} not looked for: {found['why']}" if "why" in found else f"{found['count']:,} {what}"


if __name__ == "__main__":
    project.run(main)
