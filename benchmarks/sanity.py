"""Check fine-tuning on a real network: ResNet-20 on lossless images of CIFAR-10.

The weights were trained on these very images, so as they are they know nearly all of them. With a new classifier,
fitted to a few of the images before anything else is trained (LP-FT, Kumar et al. 2022), the network should still
know the others, whether all of it is trained from pixels or what comes after a cut on stored rows. With a random one,
steps that are large enough for it spoil what is before it, and few images do not mend that. From scratch on 3,000
images it should be well above chance. `python benchmarks/finetune.py sanity` runs it; tests/test_cifar.py holds it to
bounds.
"""

from pathlib import Path

from tuned import Place, named, placed, write_task

from pipeline.finetune.inputs import FromPixels
from pipeline.training.loop import evaluate

CUT, LAST, PROBE = "layer2", "penultimate", "probe"
RATE, SCRATCH_RATE = 0.0005, 0.003


def of_cifar(root: Path, **sizes: int) -> Place:
    """Prepare lossless images, ResNet-20 with its weights, and a task with a number of rows per class in each split.

    `tuned.write_task` writes another task on the same images.
    """
    count = 10 * sum(sizes.values())
    return placed(root, "cifar10", "resnet20", images=count, sizes=sizes, steps=0, size=None)


def as_it_is(place: Place) -> float:
    """Return the test accuracy of the network with its own classifier."""
    run, one = place.begin(input="pixels")
    assert isinstance(run.inputs, FromPixels), "pixels are read"
    rows = run.task.rows("test")
    held = run.inputs.samples(rows, one.targets.of(rows), training=False, seed=0)
    return float(evaluate(run.source.module, held, one.context)["validation_accuracy"])


def fine_tuned(place: Place, *, epochs: int, start: str = PROBE, batch: int = 16) -> dict[str, float]:
    """Return the test accuracy with a new classifier, of the whole network trained, and of the part after the tap.

    `start`: PROBE, or backbone: a random classifier.
    """
    shared = {"epochs": epochs, "batch_size": batch, "learning_rate": RATE, "monitor": "loss", "weights": "last"}
    place.extract([CUT, LAST])
    if start == PROBE:
        place.probe(PROBE, LAST, max_iter=1000)
    return {
        "all of it, from pixels": place.fit(start=start, input="pixels", **shared).accuracy,
        f"from {CUT}, stored": place.fit(start=start, input="features", tap=named(CUT), **shared).accuracy,
    }


def from_scratch(place: Place, *, epochs: int, batch: int = 16) -> float:
    """Return the test accuracy of training from random weights."""
    return place.fit(
        start="scratch",
        input="pixels",
        batch_norm="train",
        epochs=epochs,
        batch_size=batch,
        learning_rate=SCRATCH_RATE,
        schedule="one_cycle",
        augment=[{"name": "random_crop", "padding": 4}, {"name": "horizontal_flip"}],
        monitor="loss",
        weights="last",
    ).accuracy


def lines(root: Path, *, labels: int, scratch: int, test: int, epochs: int) -> list[str]:
    """Return all results as rows of a table; `labels`, `scratch`, `test`: images per class."""
    place = of_cifar(root, train=scratch, test=test)
    drawn = from_scratch(place, epochs=epochs)
    write_task(place.paths, {"train": labels, "test": test})
    found = {"as it is": as_it_is(place)}
    for start, name in ((PROBE, "fitted"), ("backbone", "random")):
        for what, accuracy in fine_tuned(place, epochs=epochs, start=start).items():
            found[f"a {name} classifier, {10 * labels:,} labels, {what}"] = accuracy
    found[f"from scratch, {10 * scratch:,} labels"] = drawn
    return [f"{name} | {100 * accuracy:.1f}" for name, accuracy in found.items()]
