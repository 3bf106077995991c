"""Fine-tuning from the middle of a network, on stored activations, against running the frozen part in every epoch.

    python benchmarks/finetune.py                    all parts, small
    python benchmarks/finetune.py cuts --images 512 --models mobilenet_v2 resnet50
    python benchmarks/finetune.py views --data digits --labels 20 --epochs 30
    python benchmarks/finetune.py gradual --data cifar10 --labels 40 --epochs 5
    ICECORE_ASSETS=… python benchmarks/finetune.py sanity --labels 30 --epochs 5

cuts      seconds an epoch, from three cuts of each network, runs in turn, round after round, the best of each. The
          bound is the trained part alone, on batches that lie in memory, and then the reading of stored rows alone;
          `of the bound` is that over what the run on stored rows took; `arithmetic` is the ratio that multiply-adds
          promise, where the backward pass is two forward ones
views     the price of stored views in the place of live augmentation: accuracy on test rows of the epoch with the best
          validation, mean and range over seeds, and seconds: of the extraction, of an epoch, of both together
gradual   unfreezing in three steps, as three runs on stored rows of three cuts, which one extraction gives, against one
          run that runs the frozen part anew: plain SGD without dropout, so that both are the same steps; `moved` and
          `apart` are the largest change of a weight in training, and between the two, in parts of the largest weight
          of its tensor
sanity    ResNet-20 on lossless images of CIFAR-10: benchmarks/sanity.py says what should come out; left out where the
          images are not there

An epoch is timed from the end of its first step to that of its last, for as many steps as it has.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import sanity
import torch
import tuned
from torch import nn
from tuned import Fit, Place, named, placed

from pipeline.backbones.spec import read_spec
from pipeline.finetune.setup import RunContext
from pipeline.training.data import Batch, Samples
from pipeline.training.job import TrainingJob

CUTS = {
    "mobilenet_v2": ("features.6", "features.13", "features.17"),
    "resnet50": ("layer2", "layer3", "layer4.1"),
}
BLOCKS = {"digits": ("block3", "block2", "block1"), "cifar10": ("features.17", "features.13", "features.6")}
AUGMENT = {
    "digits": [{"name": "affine", "degrees": 15, "translate": [0.1, 0.1], "scale": [0.8, 1.2]}],
    "cifar10": [{"name": "random_crop", "padding": 12}, {"name": "horizontal_flip"}, {"name": "color_jitter"}],
}
RATES = {"digits": 0.002, "cifar10": 0.0005}


def table(title: str, head: str, rows: list[str]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n\n| {head} |\n|{'---|' * (head.count('|') + 1)}")
    print("\n".join(f"| {row} |" for row in rows), flush=True)


# Cuts ----------------------------------------------------------------------------------------------------------------


def cuts(given: argparse.Namespace) -> None:
    """Time an epoch from three split points of each network."""
    data = "caltech" if pictures.assets() else "drawn"
    for model in given.models:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            sizes = {"train": given.images // 10}
            place = placed(Path(name), data, model, images=given.images, sizes=sizes, steps=0, size=given.size)
            place.extract(CUTS[model])
            rows = [row_of_cut(place, node, given) for node in CUTS[model]]
            head = (
                "cut | live, s | stored, s | ratio | arithmetic | frozen part | trained | reading | of the bound | MB"
            )
            table(f"{model}, {given.images} images of {given.size or 224} px, batches of {given.batch}", head, rows)


class Held(Samples):
    """Samples whose batches are in memory, in the order of epoch 0."""

    def __init__(self, samples: Samples, size: int) -> None:
        self._samples, self._batches = samples, list(samples.batches(size, epoch=0))

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._samples.shape

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        del size, epoch  # as they were
        return iter(self._batches[start:])


def row_of_cut(place: Place, node: str, given: argparse.Namespace) -> str:
    """Return a row of the table: all runs in turn, the best time of each."""
    shared = {"batch_size": given.batch, "epochs": 2, "weights": "last", "monitor": "loss"}
    best: dict[str, float] = {}

    def keep(what: str, seconds: float) -> None:
        best[what] = min(best.get(what, np.inf), seconds)

    for _ in range(given.rounds):
        live = place.fit(input="pixels", train={"from_tap": node}, **shared)
        keep("live", live.epoch(2))
        keep("prefix", tuned.prefix_seconds(live, node, epoch=0))
        stored = place.fit(input="features", tap=named(node), **shared)
        keep("stored", stored.epoch(2))
        keep("reading", tuned.reading_seconds(stored, epoch=0))
        alone = place.begin(input="features", tap=named(node), **shared)
        keep("alone", place.fit(begun=alone, samples=Held(alone[1].samples, given.batch)).epoch(2))
    bound = best["alone"] + best["reading"]
    spec = read_spec(place.paths.backbone)
    whole, before = max(tap.multiply_adds for tap in spec.taps.values()), spec.taps[node].multiply_adds
    rows = len(stored.one.samples)
    numbers = [
        f"{best['live']:.2f}",
        f"{best['stored']:.2f}",
        f"{best['live'] / best['stored']:.2f}",
        f"{(before + 3 * (whole - before)) / (3 * (whole - before)):.2f}",
        f"{best['prefix']:.2f}",
        f"{best['alone']:.2f}",
        f"{best['reading']:.2f}",
        f"{bound / best['stored']:.2f}",
        f"{rows * np.prod(spec.taps[node].shape) * 4 / 2**20:.0f}",
    ]
    return " | ".join([node, *numbers])


# Views ---------------------------------------------------------------------------------------------------------------


def views(given: argparse.Namespace) -> None:
    """Print the cost of K stored views, against online augmentation and against none."""
    for data in given.data:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            place = of_task(Path(name), data, given)
            node = BLOCKS[data][1]
            shared = settings(data, given)
            augment = AUGMENT[data]
            rows = []
            clean = place.extract([node])
            rows.append(price("none, stored", clean, place, given, **shared, input="features", tap=named(node)))
            for count in given.views:
                seconds = place.extract([node], views={"count": count, "augment": augment}) + clean
                clean = seconds  # what was there before was paid for then
                run = shared | {"input": "features", "tap": named(node), "views": count}
                rows.append(price(f"{count} stored view{'s' * (count > 1)}", seconds, place, given, **run))
            run = shared | {"input": "pixels", "train": {"from_tap": node}, "augment": augment}
            rows.append(price("live", 0.0, place, given, **run))
            head = "augmentation | accuracy | least | most | extraction, s | an epoch, s | together, s"
            title = f"{data}, from {node}, {given.labels} labels per class, {given.epochs} epochs, {given.seeds} seeds"
            table(title, head, rows)


def price(label: str, extraction: float, place: Place, given: argparse.Namespace, **run: Any) -> str:
    """Return a row of the table: one run per seed."""
    fits = [place.fit(seed=seed, **run) for seed in range(given.seeds)]
    found = [100 * fit.accuracy for fit in fits]
    epoch = float(np.median([fit.epoch(given.epochs) for fit in fits]))
    return (
        f"{label} | {np.mean(found):.1f} | {min(found):.1f} | {max(found):.1f} | {extraction:.1f} | {epoch:.2f} | "
        f"{extraction + epoch * given.epochs:.1f}"
    )


# Gradual unfreezing --------------------------------------------------------------------------------------------------


class Later(Samples):
    """Samples whose first epoch has another number than 0."""

    def __init__(self, samples: Samples, first: int) -> None:
        self._samples, self._first = samples, first

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._samples.shape

    def batches(self, size: int, *, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        return self._samples.batches(size, epoch=None if epoch is None else epoch + self._first, start=start)


def gradual(given: argparse.Namespace) -> None:
    """Compare gradual unfreezing with three runs."""
    for data in given.data:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            place = of_task(Path(name), data, given)
            nodes, epochs = BLOCKS[data], given.epochs
            extraction = place.extract(nodes)
            shared = settings(data, given) | {
                "monitor": "loss",
                "optimiser": "sgd", "momentum": 0.0, "schedule": "constant", "warmup": 0.0, "weights": "last",
                "learning_rate": 10 * RATES[data],
            }  # fmt: skip
            rows = []
            for seed in range(given.seeds):
                steps = {number * epochs: node for number, node in enumerate(nodes) if number}
                run = shared | {"epochs": 3 * epochs, "train": {"from_tap": nodes[0]}, "unfreeze": steps}
                live = place.fit(begun=certain(place.begin(seed=seed, **run)))
                stored = sequence(place, nodes, seed=seed, shared=shared)
                start = place.begin(seed=seed, **shared)[1].network
                moved, off = apart(live.one.network, start), apart(live.one.network, stored[-1].one.network)
                seconds = [sum_of(live, 3 * epochs), sum(sum_of(fit, epochs) for fit in stored)]
                rows.append(
                    f"{seed} | {100 * live.accuracy:.1f} | {100 * stored[-1].accuracy:.1f} | {moved:.1e} | {off:.1e} | "
                    f"{seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[0] / seconds[1]:.2f} | "
                    f"{seconds[0] / (seconds[1] + extraction):.2f}"
                )
            head = "seed | live, % | stored, % | moved | apart | live, s | stored, s | ratio | with the extraction"
            title = f"{data}, from {', '.join(nodes)}, {epochs} epochs each, {given.labels} labels per class"
            table(title, head, rows)


def sequence(place: Place, nodes: tuple[str, ...], *, seed: int, shared: dict[str, Any]) -> list[Fit]:
    """Run on the stored rows of each node, each run from the weights of the one before."""
    fits: list[Fit] = []
    for number, node in enumerate(nodes):
        run, one = certain(place.begin(seed=seed, input="features", tap=named(node), **shared))
        if fits:
            one.network.load_state_dict(fits[-1].one.network.state_dict())
        fits.append(place.fit(begun=(run, one), samples=Later(one.samples, number * shared["epochs"])))
    return fits


def certain(begun: tuple[RunContext, TrainingJob]) -> tuple[RunContext, TrainingJob]:
    """Return a run whose steps depend on its rows only: without dropout, which is seeded by the number of the step."""
    for part in begun[1].network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return begun


def sum_of(fit: Fit, epochs: int) -> float:
    """Return the seconds of all steps."""
    return (fit.ends[-1] - fit.ends[0]) * len(fit.ends) / (len(fit.ends) - 1) if epochs else 0.0


def apart(left: nn.Module, right: nn.Module) -> float:
    """Return the largest difference of two networks' weights, relative to the largest value of the tensor."""
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    off = [((a.float() - b.float()).abs().max() / a.float().abs().max().clamp_min(1e-30)).item() for a, b in pairs]
    return max(off)


# Sanity --------------------------------------------------------------------------------------------------------------


def real(given: argparse.Namespace) -> None:
    """Check a real network on images of its training set."""
    if pictures.assets() is None:
        print("\nsanity: ICECORE_ASSETS is not set, so there are neither the images nor the weights")
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        counts = {"labels": given.labels, "scratch": given.scratch, "test": min(given.test, 366 - given.scratch)}
        rows = sanity.lines(Path(name), **counts, epochs=given.epochs)
        table(f"ResNet-20 on CIFAR-10, {given.epochs} epochs", "network | accuracy on test images, %", rows)


# Settings ------------------------------------------------------------------------------------------------------------


def of_task(root: Path, data: str, given: argparse.Namespace) -> Place:
    """Prepare a task with a number of labels per class, at most 20 validation rows per class, and test rows."""
    sizes = {"train": given.labels, "validation": min(20, given.labels), "test": given.test}
    size = tuned.SIDE if data == "cifar10" else None
    return placed(root, data, "mobilenet_v2", images=4000, sizes=sizes, steps=given.steps, size=size)


def settings(data: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of all runs on a data set."""
    return {"epochs": given.epochs, "batch_size": given.batch, "learning_rate": RATES[data], "monitor": "accuracy"}


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "cuts": cuts,
    "views": views,
    "gradual": gradual,
    "sanity": real,
}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--models", nargs="+", choices=CUTS, default=list(CUTS))
    parser.add_argument("--images", type=int, default=160, help="of cuts")
    parser.add_argument("--size", type=int, help="of the images of cuts, px; by default that of the weights")
    parser.add_argument("--rounds", type=int, default=2, help="of cuts")
    parser.add_argument("--data", nargs="+", choices=BLOCKS, default=["digits"])
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8], help="how many")
    parser.add_argument("--labels", type=int, default=10, help="training rows per class")
    parser.add_argument("--test", type=int, default=100, help="test rows per class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400, help="of the network that is trained here")
    parser.add_argument("--scratch", type=int, default=300, help="training rows per class of sanity, from scratch")
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
