"""Runs of `finetune` and `distill` with combined settings: what is saved gives what was predicted and measured.

A cell is a combination of settings of a small network on small photos. The saved network is read back and run on the
photos as Pillow decodes them: its outputs are compared with the predictions, the loss and the accuracy that the run
recorded with scikit-learn's of these, and what was frozen with the backbone's own weights.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from allpairspy import AllPairs
from PIL import Image
from pydantic import ValidationError
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import accuracy_score, mean_squared_error

from pipeline.backbones import serialization
from pipeline.distill.config import DistillConfig
from pipeline.distill.run import distill
from pipeline.distill.sources import Paths as DistillPaths
from pipeline.errors import PipelineError
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.run import finetune
from pipeline.finetune.setup import Paths
from pipeline.predictions import Predictions, PredictionsFile
from pipeline.readers.sample_key import content_key
from pipeline.task import Kind, Task
from support.small_training import backbone
from support.teachers import CLASSES, TAPS, VIEWS, World

FINETUNE: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "kind": {name: {} for name in ("classification", "multilabel", "regression")},
    "start": {"backbone": {}, "scratch": {}, "a run of fit": {}},
    "input": {
        "pixels": {},
        "features": {"input": "features", "tap": "early"},
        "views": {"input": "features", "tap": "early", "views": 2},
    },
    "train": {
        "all": {},
        "head": {"train": "head"},
        "last_k": {"train": {"last_k": 2}},
        "from_tap": {"train": {"from_tap": "block2"}},
        "patterns": {"train": {"patterns": ["block3.*"]}},
        "unfreeze": {"train": "head", "unfreeze": {1: "block2"}},
    },
    "batch_norm": {name: {"batch_norm": name} for name in ("frozen", "train", "recalibrate")},
    "classifier": {
        "linear": {},
        "random": {"classifier": {"init": "random"}},
        "hidden": {"classifier": {"hidden": 5, "dropout": 0.2}},
        "convolution": {"classifier": {"convolution": 1}},
    },
    "optimiser": {
        "adamw": {},
        "sgd": {"optimiser": "sgd", "momentum": 0.5, "layer_decay": 0.7},
        "ema": {"ema": 0.5},
        "accumulate": {"accumulate": 2, "clip": 1.0},
        "bfloat16": {"precision": "bfloat16"},
    },
    "schedule": {name: {"schedule": name} for name in ("cosine", "one_cycle", "step", "plateau", "constant")},
    "loss": {
        "plain": {},
        "smoothing": {"label_smoothing": 0.1},
        "weights": {"class_weights": "balanced"},
        "mixup": {"mixup": 0.2},
        "cutmix": {"cutmix": 1.0},
        "augment": {"augment": [{"name": "horizontal_flip"}, {"name": "rotation", "degrees": 10}]},
    },
    "kept": {
        "best": {},
        "last": {"weights": "last"},
        "patience": {"patience": 1},
        "accuracy": {"monitor": "accuracy"},
    },
    "labels": {"all": {}, "few": {"labels_per_class": [2, 4]}},
}

DISTILL: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "kind": {name: {} for name in ("classification", "multilabel")},
    "teacher": {"network": {}, "head": {}, "both": {}, "none": {}},
    "start": {name: {"start": name} for name in ("scratch", "backbone")},
    "losses": {
        "soft": {"losses": {"soft": {"temperature": 2.0}}},
        "ramps": {"losses": {"soft": {"weight": [1, 0.2]}, "labels": [0, 1]}},
        "decoupled": {"losses": {"decoupled": {"beta": 2.0}, "labels": 0.1}},
        "hints": {"losses": {"labels": 1, "hints": [{"student": "block2", "teacher": "block2"}]}},
        "attention": {"losses": {"labels": 1, "attention": [{"student": "block2", "teacher": "block2"}]}},
        "relational": {"losses": {"soft": {}, "relational": {}}},
        "labels": {"losses": {"labels": 1}},
    },
    "images": {
        "stored": {},
        "views": {"views": 2},
        "live": {"teacher_outputs": "online"},
        "live augment": {"teacher_outputs": "online", "augment": [{"name": "horizontal_flip"}]},
        "own": {"preprocessing": "own"},
    },
    "extra_tasks": {"one task": {}, "two tasks": {"extra_tasks": {"brightness": "none"}}},
    "labels": {
        "all": {},
        "few": {"labels_per_class": [2, 4]},
        "few and the rest": {"labels_per_class": [4], "unlabelled": True},
    },
    "batch_norm": {name: {"batch_norm": name} for name in ("train", "frozen", "recalibrate")},
    "training": {
        "adamw": {},
        "sgd": {"optimiser": "sgd", "schedule": "step"},
        "ema": {"ema": 0.5, "weights": "last"},
        "smoothing": {"label_smoothing": 0.1, "class_weights": "balanced"},
    },
}
AXES = {"finetune": FINETUNE, "distill": DISTILL}

CONFLICTS: Mapping[str, Sequence[tuple[str, str, str, str, str]]] = {
    "finetune": [
        (
            "start",
            "scratch",
            "input",
            "features|views",
            "`start: scratch` trains all weights: expected `input: pixels`",
        ),
        (
            "start",
            "scratch",
            "train",
            "head|last_k|from_tap|patterns|unfreeze",
            "`start: scratch` has nothing to freeze",
        ),
        ("start", "scratch", "batch_norm", "frozen", "`start: scratch` has nothing to freeze"),
        ("start", "a run of fit", "classifier", "hidden|convolution", "expected"),
        ("start", "a run of fit", "classifier", "random", "classifier.init: expected none with `start: "),
        (
            "input",
            "features|views",
            "loss",
            "mixup|cutmix|augment",
            "are of pixels: expected `views` with `input: feat",
        ),
        ("kind", "regression", "loss", "smoothing", "label_smoothing: expected none for a regression, which has no cl"),
        ("kind", "regression", "loss", "weights", "class_weights: expected none for a regression, which has no cl"),
        ("kind", "regression", "kept", "accuracy", "monitor: expected loss for a regression, which has no accuracy"),
        (
            "kind",
            "multilabel|regression",
            "loss",
            "mixup|cutmix",
            ", since it mixes images of two classes. Leave it out.",
        ),
        ("kind", "multilabel|regression", "labels", "few", "`labels_per_class` needs classes, and the task is a "),
    ],
    "distill": [
        ("kind", "multilabel", "losses", "decoupled", "decoupled"),
        ("kind", "multilabel", "labels", "few|few and the rest", "`labels_per_class` needs classes, and the task is a"),
        ("teacher", "none", "losses", "soft|ramps|decoupled|hints|attention|relational", "`teacher: none` "),
        ("teacher", "none", "images", "views|live|live augment|own", "teacher"),
        ("teacher", "network|head|both", "losses", "labels", "no loss uses the teacher"),
        ("teacher", "both", "losses", "hints|attention|relational", "need a single teacher of the task: set one"),
        (
            "teacher",
            "both",
            "images",
            "live|live augment",
            "`teacher_outputs: online` runs a single teacher of a single task",
        ),
        ("teacher", "head", "losses", "hints|attention|relational", "expected a network"),
        ("teacher", "head", "images", "live|live augment", "expected a network"),
        (
            "extra_tasks",
            "two tasks",
            "images",
            "live|live augment",
            "`teacher_outputs: online` runs a single teacher of a single task",
        ),
        (
            "start",
            "scratch",
            "batch_norm",
            "frozen",
            "`start: scratch` has no statistics to keep: expected `batch_norm",
        ),
        ("losses", "soft|relational", "training", "smoothing", "belong to `losses.labels`, which has no weight"),
        ("losses", "soft|relational", "labels", "few and the rest", "has no effect if `labels` have no weight"),
    ],
}
"""Values of two axes that are refused together, and what the error says."""

MEANT: Mapping[tuple[str, str, str], Mapping[str, str]] = {
    ("finetune", "scratch", "train"): {"batch_norm": "train"},
    ("distill", "multilabel", "labels"): {"losses": "ramps"},
    ("distill", "none", "images"): {"losses": "labels"},
}
"""What else a conflict needs, not to be refused for another reason."""

TOLERANCE = 2e-3
"""Of outputs and of what was measured; batches of another size are summed in another order."""


class Outcome(NamedTuple):
    """What became of a cell: `ok`, `refused` or `FAILED`; how far its values are off; why it was refused or failed."""

    state: str
    off: float | None
    why: str


Cell = dict[str, Any]
"""The value of each axis, a text."""


def cells(stage: str, order: int) -> list[Cell]:
    """Return the combinations that allpairspy makes with `n` of this order; of 2, every two values meet."""
    axes = AXES[stage]

    def allowed(row: Sequence[str]) -> bool:
        cell = dict(zip(axes, row, strict=False))
        return not any(
            cell.get(one) in first.split("|") and cell.get(other) in second.split("|")
            for one, first, other, second, _ in CONFLICTS[stage]
        )

    rows = AllPairs([list(one) for one in axes.values()], n=order, filter_func=allowed)
    found = [dict(zip(axes, row, strict=True)) for row in rows]
    left = [
        {one: name, other: value}
        for one, other in itertools.combinations(axes, 2)
        for name, value in itertools.product(axes[one], axes[other])
    ]
    for pair in left:  # which allpairspy loses to its filter
        if not any(pair.items() <= cell.items() for cell in found):
            found += _completed(pair, axes, lambda cell: allowed([cell.get(axis, "") for axis in axes]))
    return found


def _completed(pair: Cell, axes: Mapping[str, Mapping[str, Any]], allowed: Callable[[Cell], bool]) -> list[Cell]:
    """Return one cell with two values, or none where these are refused together or with all else."""
    if not allowed(pair):
        return []
    rest = [axis for axis in axes if axis not in pair]
    if not rest:
        return [{axis: pair[axis] for axis in axes}]
    for name in axes[rest[0]]:
        if done := _completed({**pair, rest[0]: name}, axes, allowed):
            return done
    return []


def covering(stage: str) -> list[Cell]:
    """Return some of the combinations of two, that together have every value of every axis."""
    every = cells(stage, 2)
    left = {pair for cell in every for pair in cell.items()}
    chosen = []
    while left:
        chosen.append(max(every, key=lambda cell: len(left & set(cell.items()))))
        left -= set(chosen[-1].items())
    return chosen


def conflicts(stage: str) -> list[tuple[Cell, str]]:
    """Return a cell of each two values that are refused together, the rest as it is by default, and the message."""
    plain = {axis: next(iter(values)) for axis, values in AXES[stage].items()}
    return [
        (plain | MEANT.get((stage, name, other), {}) | {one: name, other: value}, message)
        for one, first, other, second, message in CONFLICTS[stage]
        for name in first.split("|")
        for value in second.split("|")
    ]


class Place:
    """The photos, backbones and features that the cells share, and heads and teachers from when a cell needs them."""

    def __init__(self, root: Path) -> None:
        self.world = world = World(root, taps={**TAPS, "early": {"node": "block1", "dtype": "float32"}})
        labels, random = world.labels, np.random.default_rng(0)
        bright = [CLASSES.index(label) for label in labels]
        self.targets: dict[Kind, list[Any]] = {
            "classification": labels,
            "multilabel": [["dark"] if label == "dark" else ["light", label] for label in labels],
            "regression": [1000.0 + 100 * one + float(random.normal()) for one in bright],
        }
        self.tasks = {
            kind: world.task(kind, one).rename(root / f"{kind}.parquet") for kind, one in self.targets.items()
        }
        light = ["dark" if label == "dark" else "light" for label in labels]
        world.task("classification", light).rename(root / "brightness.parquet")
        backbone(root / "small", widths=(3, 4, 4), seed=5)
        (root / "features-of").mkdir()
        (root / "features-of" / "net").symlink_to(root / "features")
        files = sorted((root / "photos").rglob("*.png"))
        images = {content_key(path.read_bytes()): np.asarray(Image.open(path), np.float32) / 255 for path in files}
        self.images = {key: torch.from_numpy(one)[None] for key, one in images.items()}

    def probe(self, kind: Kind, *, few: bool = False) -> str:
        """Return the name of a run of `fit` on a kind of task, which is made where it is not there."""
        name, more = (f"probe-{kind}-few", {"labels_per_class": [2, 4]}) if few else (f"probe-{kind}", {})
        if not (self.world.root / "models" / name).exists():
            head = "ridge" if kind == "regression" else "logistic"
            self.world.fit(name, kind=kind, targets=self.targets[kind], head=head, **more)
        return name

    def teacher(self, what: str, kind: Kind) -> str:
        """Return the name of a teacher, `network` or `head`, which is made where it is not there."""
        name = f"{what}-{kind}"
        out = self.world.root / "teachers" / name
        if out.exists():
            return name
        if what == "head":
            self.world.taught(self.probe(kind), out, head="logistic", views=2)
        else:
            self.world.finetune(name, kind=kind, targets=self.targets[kind], epochs=2, batch_norm="train")
            self.world.taught(name, out, views=VIEWS, hints=["block2", "penultimate"])
        return name

    def run(self, stage: str, cell: Cell, out: Path) -> Outcome:
        """Run a cell below `out`, and compare what it left."""
        given: dict[str, Any] = {"epochs": 2, "batch_size": 8, "device": "cpu", "learning_rate": 0.01}
        for axis, name in cell.items():
            given |= AXES[stage][axis][name]
        try:
            (self._finetune if stage == "finetune" else self._distill)(cell, given, out)
        except (ValidationError, PipelineError) as error:
            return Outcome("refused", None, " ".join(str(error).split()))
        except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            return Outcome("FAILED", None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return self._compared(stage, cell, out)

    def _finetune(self, cell: Cell, given: dict[str, Any], out: Path) -> None:
        start = cell["start"]
        if start == "a run of fit":
            start = self.probe(cell["kind"], few=cell["labels"] == "few" and cell["kind"] == "classification")
        given |= {"task": cell["kind"], "backbone": "net", "start": start}
        config = FinetuneConfig.model_validate({"input": "pixels", **given})
        root = self.world.root
        paths = Paths(
            task=self.tasks[cell["kind"]],
            backbone=root / "net",
            manifests=root / "manifests",
            features=root / "features",
            start=root / "models" / start if start.startswith("probe") else None,
            model=out / "model",
            predictions=out / "run.parquet",
            curves=out / "curves",
            cache=out / "cache",
        )
        finetune(config, paths, datasets=["photos"])

    def _distill(self, cell: Cell, given: dict[str, Any], out: Path) -> None:
        names = {"both": ["network", "head"], "none": []}.get(cell["teacher"], [cell["teacher"]])
        teacher = [self.teacher(name, cell["kind"]) for name in names] or "none"
        config = DistillConfig.model_validate({"task": cell["kind"], "student": "small", "teacher": teacher, **given})
        root = self.world.root
        paths = DistillPaths(
            tasks=root,
            student=root / "small",
            manifests=root / "manifests",
            teachers=root / "teachers",
            models=root / "models",
            backbones=root,
            features=root / "features-of",
            model=out / "model",
            predictions=out / "run.parquet",
            curves=out / "curves",
            cache=out / "cache",
        )
        distill(config, paths, datasets=["photos"])

    def _compared(self, stage: str, cell: Cell, out: Path) -> Outcome:
        """Compare the saved network with the predictions of its training set, and these with what was recorded."""
        made = json.loads((out / "model" / "model.json").read_text())
        saved = serialization.read(out / "model" / "backbone")
        which = {name: made["backbone"][name] for name in ("labels", "draw")}
        [got] = [
            one for one in PredictionsFile.open(out / "run.parquet") if (one.labels, one.draw) == (*which.values(),)
        ]
        [record] = [one for one in made["fits"] if {name: one[name] for name in which} == which]
        images = torch.stack([self.images[key] for key in got.keys])
        with torch.inference_mode():
            logits = saved.module.eval()((images - 0.5) / 0.5).double().numpy()
        task = Task.read(self.tasks[cell["kind"]])
        outputs = 1 if task.kind == "regression" else len(task.classes)
        off = _off_predictions(task, logits[:, :outputs], got)
        tolerance = 2e-2 if cell.get("optimiser") == "bfloat16" else TOLERANCE  # which predicts in bfloat16 too
        why = "" if off <= tolerance else "the saved network predicts otherwise"
        if cell["batch_norm"] != "recalibrate":  # which is done after the epochs were measured
            measured = _off_measured(task, got, logits[:, :outputs], record["kept"])
            off, why = max(off, measured), why if measured <= tolerance else f"{why} measured otherwise".strip()
        if moved := self._moved(cell, saved.module.state_dict()) if stage == "finetune" else []:
            why = f"{why} frozen and changed: {', '.join(moved[:3])}".strip()
        return Outcome("FAILED" if why else "ok", off, why)

    def _moved(self, cell: Cell, now: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the weights and statistics that should be the backbone's own and are not."""
        frozen = {
            "head": ("block1", "block2", "block3"),
            "from_tap": ("block1", "block2"),
            "patterns": ("block1", "block2"),
            "unfreeze": ("block1", "block2"),
        }.get(cell["train"], ("block1",) if cell["input"] != "pixels" else ())
        before = serialization.read(self.world.root / "net").module.state_dict()
        return (
            [name for name, one in before.items() if name.startswith(frozen) and not torch.equal(one, now[name])]
            if (frozen)
            else []
        )


def _off_predictions(task: Task, logits: np.ndarray, got: Predictions) -> float:
    """Return how far predictions are from those of logits (rows, outputs): 1 and more where classes differ."""
    if task.kind == "regression":
        return _off(got.predicted, logits[:, 0])
    scores = softmax(logits, axis=1) if task.kind == "classification" else expit(logits)
    sure = np.sort(scores, axis=1)[:, -1] - np.sort(scores, axis=1)[:, -2] > 1e-4
    if task.kind == "classification":
        differ = (np.array(task.classes, dtype=object)[logits.argmax(axis=1)] != got.predicted)[sure]
    else:
        differ = ((logits > 0) != got.predicted)[np.abs(scores - 0.5) > 1e-4]
    return max(_off(got.scores, scores), float(differ.sum()))


def _off_measured(task: Task, got: Predictions, logits: np.ndarray, kept: Mapping[str, float]) -> float:
    """Return how far the recorded loss and accuracy are from those of the validation rows."""
    rows = got.splits == "validation"
    targets, predicted, logits = got.targets[rows], got.predicted[rows], logits[rows]
    if task.kind == "regression":
        spread = task.targets[task.rows("train")].std()
        return _off(kept["validation_loss"], mean_squared_error(targets / spread, predicted / spread))
    # Of logits, since log_loss cuts probabilities that are nearly 0.
    if task.kind == "multilabel":
        loss = -(log_expit(logits) * targets + log_expit(-logits) * ~targets).mean()
    else:
        numbers = [task.classes.index(name) for name in targets]
        loss = -log_softmax(logits, axis=1)[np.arange(len(numbers)), numbers].mean()
    accuracy = accuracy_score(targets, predicted)
    return max(_off(kept["validation_loss"], loss), _off(kept["validation_accuracy"], accuracy))


def _off(got: Any, want: Any) -> float:
    """The largest difference, in units of the largest wanted number or of 1."""
    return float(np.abs(np.asarray(got) - want).max() / max(1.0, np.abs(want).max()))
