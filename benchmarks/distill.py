"""Distillation from stored logits of a teacher, against a teacher that runs in every step, and against labels only.

    python benchmarks/distill.py                                                   all parts
    python benchmarks/distill.py epoch --pairs resnet50-mobilenet_v2 --size 224 --images 64
    ICECORE_ASSETS=… python benchmarks/distill.py views --data cifar10 --train 200 --epochs 20 --views 1 4
    ICECORE_ASSETS=… python benchmarks/distill.py photos --target webcam --seeds 1 --epochs 4
    python benchmarks/distill.py curves --images 200 --steps 20
    python benchmarks/distill.py epoch curves --images 40 --size 64 --steps 4 --rounds 1      to see them work

epoch     seconds an epoch of a student: on labels alone, from stored scores, with a live teacher; runs in turn, round
          after round, the best of each. `rate` is alone over stored (wanted: at least 0.9); weights are random, as is
          right for time
views     the price of stored scores: of K views of each sample, drawn from anew in each epoch, against a live teacher
          that sees new augmentations, the clean samples, and labels alone; accuracy on test rows of the last epoch, and
          of that with the best validation: mean and range over seeds, which are those of the student's weights and of
          the order. Seconds: of teaching (what was stored before was paid for then), and of an epoch. ResNet-56 teaches
          ResNet-20, from scratch, on lossless images of CIFAR-10: the teacher's weights were trained on these images,
          test rows among them, so these numbers compare ways and say nothing of new images. On digits the fine-tuned
          network of printed characters teaches one with a seventh of its weights
photos    a logistic head on MobileNetV2's features, fitted to the other domains of Office-Caltech, teaches SqueezeNet,
          pretrained, on all of them and on the target's images without labels, but for those it is tested on
curves    the largest relative difference of a step's loss between stored scores and a live teacher, clean images, same
          seed (wanted: below 1e-4)

An epoch is timed from the end of its first step to that of its last, for as many steps as it has.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import domains
import numpy as np
import pictures
import taught
import torch
import tuned
from finetune import table
from taught import School

PAIRS = {"resnet56-resnet20": 32, "resnet50-mobilenet_v2": None}
"""Teacher and student, and the side of their images, px; None: as is asked for."""

DATA = ("cifar10", "digits")
AUGMENT = {
    "digits": [{"name": "affine", "degrees": 15, "translate": [0.1, 0.1], "scale": [0.8, 1.2]}],
    "cifar10": [{"name": "random_crop", "padding": 4}, {"name": "horizontal_flip"}],
}
RATES = {"digits": 0.003, "cifar10": 0.01}
NONE = "none"


# Epochs --------------------------------------------------------------------------------------------------------------


def epoch(given: argparse.Namespace) -> None:
    """Time an epoch of each pair of networks."""
    rows = []
    for pair in given.pairs:
        side = PAIRS[pair] or given.size or 160
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            school = of_pair(Path(name), pair, side, given)
            teaching = school.teach()
            best: dict[str, float] = {}
            shared = {"batch_size": given.batch, "epochs": 2, "monitor": "loss"}
            ways = {"alone": {"teacher": NONE}, "stored": {}, "live": {"teacher_outputs": "online"}}
            for _ in range(given.rounds):
                for way, more in ways.items():
                    seconds = tuned.fastest(school.learn(**shared, **more).ends, 2)
                    best[way] = min(best.get(way, np.inf), seconds)
            numbers = [f"{best[way]:.2f}" for way in ways]
            ratios = [f"{best['alone'] / best['stored']:.2f}", f"{best['live'] / best['stored']:.2f}"]
            rows.append(" | ".join([pair, str(side), *numbers, *ratios, f"{teaching:.1f}"]))
    head = "teacher and student | px | labels alone, s | stored, s | live, s | rate | live / stored | teaching, s"
    table(f"{given.images} images, batches of {given.batch}", head, rows)


def of_pair(root: Path, pair: str, side: int, given: argparse.Namespace) -> School:
    """Return a pair of networks with random weights, and images of their size."""
    teacher, student = pair.split("-")
    data = "drawn" if pictures.assets() is None else "cifar10" if side == 32 else "caltech"
    sizes = {"train": max(1, given.images // 10)}
    return taught.of_pair(root, data, teacher, student, images=given.images, sizes=sizes, side=side, real=False)


# Views ---------------------------------------------------------------------------------------------------------------


def views(given: argparse.Namespace) -> None:
    """Print the cost of stored views, against an online teacher, and the gain over labels."""
    for data in given.data:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            school = of_data(Path(name), data, given)
            augment = AUGMENT[data]
            rows = [price("labels alone", 0.0, school, data, given, teacher=NONE, augment=augment)]
            seconds = school.teach()
            rows.append(price("clean, stored", seconds, school, data, given))
            for count in given.views:
                seconds += school.teach(views={"count": count, "augment": augment})
                rows.append(price(f"{count} stored views", seconds, school, data, given, views=count))
            rows.append(price("live", 0.0, school, data, given, teacher_outputs="online", augment=augment))
            head = (
                "the student learns from | last epoch | least | most | best epoch | least | most | teaching, s | "
                "an epoch, s"
            )
            what = f"{data}, {given.train} labels per class, {given.epochs} epochs, {given.seeds} seeds"
            table(f"{what}; teacher: {teacher_of(school):.1f} % of the test rows", head, rows)


def price(label: str, teaching: float, school: School, data: str, given: argparse.Namespace, **run: Any) -> str:
    """Return a row of the table: one student per seed."""
    shared = {"epochs": given.epochs, "batch_size": given.batch, "learning_rate": RATES[data], "monitor": "accuracy"}
    schedule = {"schedule": "one_cycle", "weights": "last"}
    found = [school.learn(seed=seed, **shared, **schedule, **run) for seed in range(given.seeds)]
    numbers = [spread([one.accuracy(one.last) for one in found]), spread([one.accuracy(one.best) for one in found])]
    seconds = float(np.median([tuned.fastest(one.ends, given.epochs) for one in found]))
    return " | ".join([label, *numbers, f"{teaching:.1f}", f"{seconds:.2f}"])


def spread(found: list[float]) -> str:
    """Return mean, minimum and maximum, in per cent."""
    return f"{100 * np.mean(found):.1f} | {100 * min(found):.1f} | {100 * max(found):.1f}"


def teacher_of(school: School) -> float:
    """Return the accuracy of the teacher on test rows, in per cent."""
    run, _ = school.begin()
    task = run.tasks[0].task
    truth = np.searchsorted(task.classes, task.targets[task.rows("test")])
    return 100 * float(np.mean(taught.said(run) == truth))


def of_data(root: Path, data: str, given: argparse.Namespace) -> School:
    """Prepare a data set with a number of labels per class, its teacher and its student."""
    sizes = {"train": given.train, "validation": given.validation, "test": given.test}
    if data == "digits":
        return taught.of_digits(root, sizes=sizes, steps=given.pretrain, epochs=5)
    count, real = 10 * sum(sizes.values()), pictures.assets() is not None
    return taught.of_pair(root, data, "resnet56", "resnet20", images=count, sizes=sizes, side=32, real=real)


# Curves --------------------------------------------------------------------------------------------------------------


def curves(given: argparse.Namespace) -> None:
    """Compare the losses with stored logits and with an online teacher, step by step."""
    rows = []
    for data in given.data:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            school = of_data(Path(name), data, given)
            school.teach()
            epochs = math.ceil(given.steps / math.ceil(10 * given.train / given.batch))
            shared = {"batch_size": given.batch, "epochs": epochs, "weights": "last", "monitor": "loss"}
            losses = []
            for outputs in ("stored", "online"):
                begun, goal = taught.watched(school.begin(teacher_outputs=outputs, **shared))
                school.learn(begun=begun)
                losses.append(np.array(goal.losses[: given.steps]))
            apart = np.abs(losses[0] - losses[1]) / np.abs(losses[1])
            rows.append(f"{data} | {len(apart)} | {losses[1][0]:.4f} | {losses[1][-1]:.4f} | {apart.max():.1e}")
    head = "data | steps | first loss | last loss | largest relative difference"
    table(f"Stored and live, batches of {given.batch}", head, rows)


# Photos --------------------------------------------------------------------------------------------------------------


def photos(given: argparse.Namespace) -> None:
    """Teach a network with a head, with one domain's labels withheld."""
    if pictures.assets() is None:
        print("\nphotos: ICECORE_ASSETS is not set, so there are neither the photos nor the weights")
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        school = domains.of_domains(Path(name), given.target, images=given.photos, size=given.size)
        rows = domains.compared(
            school,
            given.target,
            seeds=given.seeds,
            epochs=given.epochs,
            batch_size=given.batch,
            learning_rate=given.photo_rate,
        )
        head = "network | accuracy on the target, % | least | most | agrees with the teacher, %"
        px = given.size or 224
        table(f"Target {given.target}, {px} px, {given.epochs} epochs, {given.seeds} seeds", head, rows)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "epoch": epoch,
    "views": views,
    "photos": photos,
    "curves": curves,
}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="of epoch")
    parser.add_argument("--images", type=int, default=160, help="of epoch")
    parser.add_argument("--rounds", type=int, default=3, help="of epoch")
    parser.add_argument("--size", type=int, help="of the images of epoch (160) and photos (224) where it is free, px")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="of views and curves")
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8], help="how many")
    parser.add_argument("--train", type=int, default=100, help="training rows per class, of views and curves")
    parser.add_argument("--validation", type=int, default=20, help="rows per class")
    parser.add_argument("--test", type=int, default=50, help="rows per class")
    parser.add_argument("--pretrain", type=int, default=200, help="steps of the network of printed characters")
    parser.add_argument("--steps", type=int, default=100, help="of curves")
    parser.add_argument("--target", choices=pictures.DOMAINS, default="webcam", help="whose labels are withheld")
    parser.add_argument("--photos", type=int, default=933, help="of each domain, at most")
    parser.add_argument("--photo-rate", type=float, default=0.0003, help="learning rate of photos")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="of views and photos")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    given = parser.parse_args()
    if wrong := [name for name in given.parts if name not in PARTS]:
        parser.error(f"unknown part {wrong[0]!r}: expected {', '.join(PARTS)}")
    where = "CUDA" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}")
    for name in given.parts or PARTS:
        PARTS[name](given)


if __name__ == "__main__":
    main()
