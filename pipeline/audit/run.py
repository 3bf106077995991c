"""Audit one task; the expected cost is reported before the computation starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audit import counts
from pipeline.audit.config import AuditConfig, Extracted, choose
from pipeline.audit.findings import add_paths, list_near_duplicates, list_suspect_labels, reason_not_judged
from pipeline.audit.neighbours import multiply_adds
from pipeline.audit.rows import preference, select_rows
from pipeline.errors import counted
from pipeline.files import AnyPath, as_path
from pipeline.runtime import Reporter
from pipeline.store.features import Features
from pipeline.task import Task


def audit(
    config: AuditConfig,
    name: str,
    datasets: Sequence[str],
    *,
    task: AnyPath,
    manifests: AnyPath,
    features: AnyPath,
    extracted: Mapping[str, Extracted],
    reporter: Reporter,
) -> dict[str, Any]:
    """Audit one task, and return the content of `data/audits/<task>.json`.

    features: the folder with a folder per backbone. extracted: the data sets and taps of each backbone.

    If no backbone has features of all data sets of the task, the parts that need features hold only the reason, `why`.
    """
    task = as_path(task, "audit: task")
    manifests = as_path(manifests, "audit: manifests")
    features = as_path(features, "audit: features")
    loaded = Task.read(task)
    record = {
        "format": 1,
        "task": name,
        "kind": loaded.kind,
        "rows": len(loaded),
        "classes": counts.classes(loaded),
        "targets": counts.targets(loaded),
        "domains": counts.domains(loaded),
        "shift": counts.shift(loaded),
        "byte_duplicates": counts.copies(manifests, datasets, loaded),
    }
    sources = choose(config, datasets, extracted)
    if isinstance(sources, str):
        return record | {"near_duplicates": {"why": sources}, "contradicted": {"why": sources}}
    taps = [Features.open(features / source.backbone / source.tap) for source in sources]
    best = min(range(len(sources)), key=lambda index: preference(taps[index]))
    backbone, tap = sources[best].backbone, sources[best].tap
    audited = select_rows(config, loaded, taps[best])
    about = {"backbone": backbone, "tap": tap, **audited.about}
    why = reason_not_judged(config, audited)
    cost = multiply_adds([len(own) for own in audited.by_split.values()], len(audited.mean), neighbours=not why)
    reporter.message(
        f"{counted(len(audited.rows), 'row')} of {backbone}/{tap}, {len(audited.mean):,} wide: {cost:.1e} multiply-adds"
    )
    duplicates: dict[str, Any] = about | list_near_duplicates(config, audited)
    suspects: dict[str, Any] = {"why": why} if why else about | list_suspect_labels(config, audited)
    add_paths(manifests, datasets, duplicates["pairs"], suspects.get("rows", []))
    return record | {"near_duplicates": duplicates, "contradicted": suspects}
