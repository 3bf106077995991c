"""A head on one network's features teaches another network, on photos of several domains, one of them without labels.

The teacher is a logistic regression on MobileNetV2's last features, fitted to the labelled domains of Office-Caltech,
with the C that is best on their validation rows. The student is SqueezeNet with its pretrained weights, on pixels.
Every second image of each class of the target domain is a test row; the others are learned from without their labels,
and test rows not at all. `python benchmarks/distill.py photos` runs it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa
import taught
from taught import TEACHER, School

from pipeline import manifest
from pipeline.backbones.spec import TapSpec
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import sha256_file
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.freeze.config import Torchvision
from pipeline.freeze.run import freeze
from pipeline.manifest import ManifestPaths
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.task import Task

NETWORKS = {"teacher": "mobilenet_v2", "student": "squeezenet1_1"}
LAST = "penultimate"
STRENGTHS = [0.001, 0.01, 0.1, 1.0]
EVERY = 10  # one of so many labelled images of a class is a validation row


def of_domains(root: Path, target: str, *, images: int, size: int | None) -> School:
    """Prepare images of each domain, both networks, the task, and the teacher's logits."""
    school = School(root, pictures.DOMAINS, run="probe")
    for name in pictures.DOMAINS:
        folder = pictures.unpack(name, root / "images", images)
        prepare(PrepareConfig(root=folder), ManifestPaths(school.paths.manifests, name))
    for name, model in NETWORKS.items():
        file = pictures.weights_of(model, root)
        given = {"resize": size, "crop": (size, size)} if size else {}
        settings = {"source": "torchvision", "model": model, "weights": "IMAGENET1K_V1", "input": given}
        freeze(Torchvision(**settings, file=file, sha256=sha256_file(file)), root / "backbones" / name, pretrained=root)
    _write_task(school, target)
    extract(
        ExtractConfig(datasets=pictures.DOMAINS, taps={LAST: TapSpec(node=LAST, dtype="float32")}, engine="torch"),
        backbone=school.paths.backbones / TEACHER,
        manifests=school.paths.manifests,
        out=school.paths.features / TEACHER,
        cache_root=root / "feature-cache",
    )
    search = {"parameter": "C", "values": STRENGTHS}
    fit(
        FitConfig(task="task", backbone=TEACHER, inputs=(LAST,), params={"max_iter": 2000}, search=search),
        task=root / "task.parquet",
        features=school.paths.features / TEACHER,
        models=school.paths.models / school.run,
        predictions=school.paths.models / f"{school.run}.parquet",
    )
    school.teach()
    return school


def _write_task(school: School, target: str) -> None:
    """Write the task, with rows in the order of their keys, class by class."""
    rows = []
    for domain in pictures.DOMAINS:
        table = manifest.read(school.paths.manifests, domain, ["key", "label"])
        seen: Counter[str] = Counter()
        for key, label in sorted(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True)):
            seen[label] += 1
            split = "validation" if seen[label] % EVERY == 2 else "train"
            if domain == target:
                split = "test" if seen[label] % 2 else ""
            if split:
                rows.append({"key": key, "target": label, "split": split})
    Task(pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"]))).write(school.root / "task.parquet")


def compared(school: School, target: str, *, seeds: int, **settings: Any) -> list[str]:
    """Return rows of a table: test accuracy on the target with its range over seeds, and agreement with the teacher."""
    run, _ = school.begin(datasets=(target,), start="backbone")
    task = run.tasks[0].task
    truth, says = np.searchsorted(task.classes, task.targets[task.rows("test")]), taught.said(run)
    own = 100 * float(np.mean(says == truth))
    lines = [f"teacher, {len(truth)} test rows | {own:.1f} | | | "]
    ways: dict[str, dict[str, Any]] = {
        "student, labels of the other domains": {"teacher": "none"},
        "student, taught on all images": {},
    }
    shared = {"datasets": (target,), "start": "backbone", "monitor": "accuracy", "weights": "best", **settings}
    for name, more in ways.items():
        found = [school.learn(seed=seed, **shared, **more).best for seed in range(seeds)]
        right = [100 * float(np.mean(one == truth)) for one in found]
        alike = 100 * float(np.mean([np.mean(one == says) for one in found]))
        lines.append(f"{name} | {np.mean(right):.1f} | {min(right):.1f} | {max(right):.1f} | {alike:.1f}")
    return lines
