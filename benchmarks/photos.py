"""Fine-tuning on photos: the whole MobileNetV2 and two parts of it, against the linear probe on its last features.

    ICECORE_ASSETS=… python benchmarks/photos.py
    ICECORE_ASSETS=… python benchmarks/photos.py --domains amazon webcam caltech
    ICECORE_ASSETS=… python benchmarks/photos.py --ways pixels --starts probe
    python benchmarks/photos.py --images 60 --train 2 --validation 1 --test 2 --size 64 --epochs 1    to see it work

Ten classes of Office-Caltech, photos of one domain, or of several pooled. Each method has a few settings (the probe
its C, a network its learning rate); that with the best validation accuracy is reported on test rows, which choose
nothing. Fine-tuning should reach the accuracy of the probe less one point; from pixels images are flipped at random.
LP-FT starts from the probe with its C, the convex solution on the last features, instead of a new classifier (Kumar et
al. 2022). The published recipe chooses nothing: SGD with the values that Li et al. 2020 ("Rethinking the
hyperparameters for fine-tuning", section 1) call the usual ones, random crops and flips, BatchNorm in training, and a
learning rate that falls twice.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from tuned import Place, named, placed

from pipeline.store.features import Features
from pipeline.task import Task
from pipeline.training.loop import evaluate

CUTS = ("features.13", "features.17")
LAST, PROBE, RECIPE = "penultimate", "probe", "recipe"
PIXELS = "pixels"
RATES = (0.00003, 0.0001, 0.0004)
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
PUBLISHED: dict[str, Any] = {
    "input": PIXELS,
    "optimiser": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0001,
    "schedule": "step",
    "warmup": 0.0,
    "batch_norm": "train",
    "augment": [{"name": "random_resized_crop"}, {"name": "horizontal_flip"}],
}


def probe(place: Place) -> tuple[float, float, str, float]:
    """Return validation and test accuracy of a logistic regression on the last features, its setting, and its C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task, features = Task.read(place.paths.task), Features.open(place.paths.features / LAST)
    X = features.load(list(task.keys)).reshape(len(task), -1)
    train, validation, test = (task.rows(name) for name in ("train", "validation", "test"))
    found = []
    for strength in STRENGTHS:
        head = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        head.fit(X[train], task.targets[train])
        scores = [float(np.mean(head.predict(X[rows]) == task.targets[rows])) for rows in (validation, test)]
        found.append((*scores, f"C {strength:g}", strength))
    return max(found, key=lambda one: one[0])


def tune(place: Place, **settings: Any) -> tuple[float, float, str]:
    """Return validation and test accuracy of a fine-tuned network for each learning rate."""
    found = [trained(place, learning_rate=rate, label_smoothing=0.1, **settings) for rate in RATES]
    return max(found, key=lambda one: one[0])


def trained(place: Place, **settings: Any) -> tuple[float, float, str]:
    """Return validation and test accuracy of a network that is fine-tuned once."""
    fit = place.fit(monitor="accuracy", **settings)
    assert fit.one.validation is not None, "the task has validation rows"
    kept = evaluate(fit.one.module, fit.one.validation, fit.one.context)["validation_accuracy"]
    return kept, fit.accuracy, f"learning rate {fit.run.config.learning_rate:g}"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", choices=pictures.DOMAINS, default=["caltech"])
    parser.add_argument("--images", type=int, default=1123, help="of each domain, at most")
    parser.add_argument("--train", type=int, default=50, help="rows per class")
    parser.add_argument("--validation", type=int, default=10, help="rows per class")
    parser.add_argument("--test", type=int, default=25, help="rows per class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, help="of the images, px; by default that of the weights")
    parser.add_argument("--ways", nargs="+", choices=(PIXELS, *CUTS, RECIPE), default=[PIXELS, *CUTS, RECIPE])
    parser.add_argument("--starts", nargs="+", choices=("backbone", PROBE), default=["backbone", PROBE])
    given = parser.parse_args()
    data = "+".join(given.domains) if pictures.assets() else "drawn"
    sizes = {"train": given.train, "validation": given.validation, "test": given.test}
    shared = {"epochs": given.epochs, "batch_size": 32}
    with tempfile.TemporaryDirectory() as folder:
        place = placed(Path(folder), data, "mobilenet_v2", images=given.images, sizes=sizes, steps=0, size=given.size)
        place.extract([LAST, *CUTS])
        print(f"torch {torch.__version__}, {data}, {sizes} rows per class\n")
        print("| method | validation | test | chosen | seconds |\n|---|---|---|---|---|")
        start = time.perf_counter()
        *found, strength = probe(place)
        show("linear probe", *found, time.perf_counter() - start)
        place.probe(PROBE, LAST, C=strength, max_iter=2000)
        ways: dict[str, dict[str, Any]] = {node: {"input": "features", "tap": named(node)} for node in CUTS}
        ways[PIXELS] = {"input": PIXELS, "augment": [{"name": "horizontal_flip"}]}
        for way in given.ways:
            for begin in given.starts if way in ways else ():
                start = time.perf_counter()
                found = tune(place, **shared, **ways[way], start=begin)
                show(f"{'LP-FT, ' if begin == PROBE else ''}from {way}", *found, time.perf_counter() - start)
        if RECIPE in given.ways:
            start = time.perf_counter()
            show("published recipe", *trained(place, **shared, **PUBLISHED), time.perf_counter() - start)


def show(name: str, validation: float, test: float, chosen: str, seconds: float) -> None:
    """Print a row."""
    print(f"| {name} | {100 * validation:.1f} | {100 * test:.1f} | {chosen} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
