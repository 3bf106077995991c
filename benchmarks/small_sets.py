"""Networks trained with the defaults on small sets, against their own probes: `python benchmarks/small_sets.py`.

Caltech, Amazon and Webcam photos of ten classes (benchmarks/pictures.py) at `--size` px: of each class `--known` that
are no test rows, or half where it has fewer, an eighth of them validation rows; and at most 40 test rows. The probe is
a run of `fit` with its defaults on the last features: it learns from validation rows too. All else is trained with the
defaults and `--epochs`:

pixels    all layers, from pixels
tap       the last part, from stored rows
student   SqueezeNet, taught by the probe of MobileNetV2 and by labels

each with a classifier as it starts by default, and with random weights (`classifier: {init: random}`). Prints accuracy
in % and log loss on test rows, means over the seeds of the split, and of each seed the learning rate
and the epoch that is kept; 0 is the network before the first.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pyarrow as pa

from pipeline import manifest
from pipeline.backbones.spec import TapSpec
from pipeline.distill import sources as distill_sources
from pipeline.distill.config import DistillConfig
from pipeline.distill.run import distill
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.files import sha256_file
from pipeline.finetune import setup as finetune_setup
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune
from pipeline.fit.config import FitConfig
from pipeline.fit.run import fit
from pipeline.freeze.config import Torchvision
from pipeline.freeze.run import freeze
from pipeline.manifest import ManifestPaths
from pipeline.metrics import row_log_losses
from pipeline.model_record import NetworkRecord, read_record
from pipeline.predictions import PredictionsFile
from pipeline.prepare.config import PrepareConfig
from pipeline.prepare.run import prepare
from pipeline.task import Task
from pipeline.teach.config import TeachConfig
from pipeline.teach.outputs import Paths as TeachPaths
from pipeline.teach.run import teach

CUTS = {"squeezenet1_1": "features.8", "mobilenet_v2": "features.14"}
"""Networks, and the node behind which `tap` trains."""

STUDENT, TEACHER = CUTS
TEST = 40
LOSSES = {"labels": 0.1, "soft": {"weight": 0.9, "temperature": 4.0}}
STARTS: Mapping[str, Mapping[str, Any]] = {"default": {}, "random": {"classifier": {"init": "random"}}}


@dataclass(frozen=True)
class Project:
    """Folders of a set: its manifests, backbones, features, and the runs of one split."""

    root: Path
    size: int

    def prepare(self, images: Path) -> None:
        """List the images, freeze the networks, and store what runs read."""
        prepare(PrepareConfig(root=images), ManifestPaths(self.root / "manifests", "data"))
        taps = {"last": TapSpec(node="penultimate", dtype="float32")}
        for network, node in CUTS.items():
            file = pictures.weights_of(network, self.root)
            given = {"resize": self.size, "crop": (self.size, self.size)}
            settings: dict[str, Any] = {
                "source": "torchvision",
                "model": network,
                "weights": "IMAGENET1K_V1",
                "input": given,
            }
            freeze(
                Torchvision(**settings, file=file, sha256=sha256_file(file)),
                self.root / "backbones" / network,
                pretrained=self.root,
            )
            extract(
                ExtractConfig(datasets=("data",), taps={**taps, "middle": TapSpec(node=node, dtype="float32")}),
                backbone=self.root / "backbones" / network,
                manifests=self.root / "manifests",
                out=self.root / "features" / network,
                cache_root=self.root / "feature-cache",
            )

    def split(self, known: int, seed: int) -> None:
        """Write the task: of each class `known` rows that are no test rows."""
        table = manifest.read(self.root / "manifests", "data", ["key", "label"])
        keys, labels = (np.array(table[name].to_pylist()) for name in ("key", "label"))
        random, rows = np.random.default_rng(seed), []
        for name in sorted(set(labels)):
            own = random.permutation(np.flatnonzero(labels == name))
            count = min(known, len(own) // 2)
            for place, row in enumerate(own[: count + TEST]):
                split = "validation" if place < count // 8 else "train" if place < count else "test"
                rows.append({"key": str(keys[row]), "target": name, "split": split})
        Task(pa.Table.from_pylist(rows).sort_by("key")).write(self.root / "task.parquet")

    def probe(self, network: str) -> Path:
        """Fit the probe of a network; return its predictions."""
        predictions = self.root / "models" / f"{network}.parquet"
        fit(
            FitConfig.model_validate({"task": "task", "backbone": network, "inputs": ["last"]}),
            task=self.root / "task.parquet",
            features=self.root / "features" / network,
            models=self.root / "models" / network,
            predictions=predictions,
        )
        return predictions

    def tune(self, network: str, **settings: Any) -> Path:
        """Fine-tune a network; return its predictions."""
        given = {"task": "task", "backbone": network, "start": "backbone", "input": "pixels", **settings}
        paths = finetune_setup.Paths(
            task=self.root / "task.parquet",
            backbone=self.root / "backbones" / network,
            manifests=self.root / "manifests",
            features=self.root / "features" / network,
            start=None,
            model=self.root / "models" / "run",
            predictions=self.root / "models" / "run.parquet",
            curves=self.root / "curves",
            cache=self.root / "cache",
        )
        finetune(FinetuneConfig.model_validate(given), paths, datasets=["data"])
        return paths.predictions

    def teach(self) -> None:
        """Store the logits of the probe of the teacher's network for all samples."""
        config = {"run": TEACHER, "backbone": TEACHER, "datasets": ["data"], "input": "last"}
        paths = TeachPaths(
            run=self.root / "models" / TEACHER,
            backbone=self.root / "backbones" / TEACHER,
            features=self.root / "features" / TEACHER,
            manifests=self.root / "manifests",
            out=self.root / "teachers" / "head",
            cache=self.root / "feature-cache",
        )
        teach(TeachConfig.model_validate(config), paths)

    def distill(self, **settings: Any) -> Path:
        """Teach the student; return its predictions."""
        given = {"task": "task", "student": STUDENT, "start": "backbone", "teacher": "head", "losses": LOSSES}
        paths = distill_sources.Paths(
            tasks=self.root,
            student=self.root / "backbones" / STUDENT,
            manifests=self.root / "manifests",
            teachers=self.root / "teachers",
            models=self.root / "models",
            backbones=self.root / "backbones",
            features=self.root / "features",
            model=self.root / "models" / "run",
            predictions=self.root / "models" / "run.parquet",
            curves=self.root / "curves",
            cache=self.root / "cache",
        )
        distill(DistillConfig.model_validate(given | settings), paths, datasets=["data"])
        return paths.predictions

    def chosen(self) -> str:
        """Return the learning rate of the last training run, and the epoch of its saved weights; 0 is its start."""
        record = read_record(self.root / "models" / "run")
        assert isinstance(record, NetworkRecord)
        return f"{record.settings['learning_rate']:.1g}: {record.fits[0].kept['epoch'] + 1:.0f}"


def measured(predictions: Path) -> tuple[float, float]:
    """Return accuracy in %, and mean log loss, on the test rows of a run."""
    file = PredictionsFile.open(predictions)
    (one,) = list(file)
    test = one.splits == "test"
    losses = row_log_losses("classification", one.targets[test], one.scores[test], file.classes)
    return 100 * float(np.mean(one.predicted[test] == one.targets[test])), float(losses.mean())


def row(project: Project, network: str, way: str, start: str, *, known: int, seeds: range, epochs: int) -> str:
    """Return a line of the table: the probe, and the trained networks."""
    probe, trained, chosen = [], [], []
    for seed in seeds:
        project.split(known, seed)
        probe.append(measured(project.probe(network)))
        settings: dict[str, Any] = {"epochs": epochs, "seed": seed, **STARTS[start]}
        if way == "student":
            project.probe(TEACHER)
            project.teach()
            path = project.distill(**settings)
        else:
            stored = {"input": "features", "tap": "middle"} if way == "tap" else {}
            path = project.tune(network, **settings, **stored)
        trained.append(measured(path))
        chosen.append(project.chosen())
    cells = [f"{accuracy:.1f} | {loss:.3f}" for accuracy, loss in (np.mean(one, axis=0) for one in (probe, trained))]
    return f"| {project.root.name} | {network} | {way} | {start} | {' | '.join(cells)} | {', '.join(chosen)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=pictures.DOMAINS, default=["caltech", "amazon", "webcam"])
    parser.add_argument("--networks", nargs="+", choices=list(CUTS), default=list(CUTS))
    parser.add_argument("--ways", nargs="+", choices=["pixels", "tap", "student"], default=["pixels", "tap", "student"])
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--known", type=int, default=24, help="rows per class that are no test rows")
    parser.add_argument("--size", type=int, default=64, help="px")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--root", type=Path, help="keep images and features there, for the next time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.root or Path(temporary)
        os.environ.setdefault("ICECORE_CACHE", str(root / "cache"))
        print("| set | network | way | classifier | probe, % | log loss | trained, % | log loss | rate: epoch |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for name in given.sets:
            project = Project(root / f"{given.size}px" / name, given.size)
            if not (project.root / "features").is_dir():
                project.prepare(pictures.unpack(name, root, 10_000))
            for network, way, start in itertools.product(given.networks, given.ways, given.starts):
                if way != "student" or network == STUDENT:
                    seeds = range(given.seeds)
                    print(
                        row(project, network, way, start, known=given.known, seeds=seeds, epochs=given.epochs),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
