"""Train the source network and write it in the backbone format."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from pipeline import manifest
from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import DataError, counted
from pipeline.files import AnyPath, as_path
from pipeline.pretrain.augment import distort
from pipeline.pretrain.config import PretrainConfig
from pipeline.readers.image import ImageReader
from pipeline.runtime import SILENT, Reporter, repeatable_kernels, seed_everything
from pipeline.sources import SampleLocation, read, read_many


@repeatable_kernels()
def pretrain(
    config: PretrainConfig, folder: AnyPath, *, manifests: AnyPath, reporter: Reporter = SILENT
) -> BackboneSpec:
    """Train on a data set with random distortions and write the network to `folder`; return its spec.

    A twentieth of the samples, at least one, is held out. `origin` of the spec records the accuracy on the held-out
    samples without distortions.
    """
    folder = as_path(folder, "pretrain: folder")
    manifests = as_path(manifests, "pretrain: manifests")
    images, targets, classes = _load(config, manifests)
    seed_everything(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator)
    holdout_size = max(1, len(order) // 20)
    holdout, train = order[:holdout_size], order[holdout_size:]
    network = glyphs.GlyphNet(classes=len(classes), widths=config.widths)
    _train(network, images[train], targets[train], config, generator, reporter)
    with torch.inference_mode():
        correct = network.eval()(_normalise(images[holdout])).argmax(1) == targets[holdout]
    return serialization.write(
        folder,
        network,
        architecture={"family": "glyphs", "classes": len(classes), "widths": list(config.widths)},
        origin={
            "source": "pretrained",
            **config.model_dump(mode="json"),
            "holdout_accuracy": round(correct.float().mean().item(), 4),
        },
        inputs=glyphs.INPUT,
        classes=classes,
    )


def _train(
    network: torch.nn.Module,
    images: Tensor,
    targets: Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    reporter: Reporter,
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    network.to(memory_format=torch.channels_last).train()
    for step in range(config.steps):
        rows = torch.randint(len(images), (config.batch_size,), generator=generator)
        batch = _normalise(distort(images[rows], generator))
        loss = functional.cross_entropy(network(batch), targets[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        reporter.progress(step + 1, config.steps)


def _normalise(images: Tensor) -> Tensor:
    """Normalise values in [0, 1] with the network's mean and standard deviation."""
    return (images - glyphs.INPUT.mean[0]) / glyphs.INPUT.std[0]


def _load(config: PretrainConfig, manifests: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return all images, (n, 1, 32, 32) in [0, 1], their class numbers and the class names."""
    column = manifest.label_column(config.target)
    table = manifest.read(manifests, config.dataset, ["path", "size", "container", "offset", column])
    labels = table[column].to_pylist()
    if missing := labels.count(None):
        raise DataError(
            f"{config.dataset}: {counted(missing, 'row has', 'rows have')} no value in {config.target!r}. Give it."
        )
    classes = sorted({str(label) for label in labels})
    if len(classes) < 2:
        raise DataError(f"{config.dataset}: expected at least two classes in {config.target!r}, got {classes}.")
    reader = ImageReader(glyphs.INPUT.image)
    pixels = np.stack(_read_pixels(reader, _locations(table)))
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([numbers[str(label)] for label in labels])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, targets, classes


def _locations(table: pa.Table) -> list[SampleLocation]:
    """Return the location of each row of a manifest."""
    columns = (table[name].to_pylist() for name in ("path", "container", "offset", "size"))
    return [SampleLocation(*row) for row in zip(*columns, strict=True)]


def _read_pixels(reader: ImageReader, locations: list[SampleLocation]) -> list[np.ndarray]:
    """Return the pixels of all samples in order, (height, width, 1) uint8 each. Reads containers front to back."""
    pixels: dict[SampleLocation, np.ndarray] = {}
    ordered = sorted(locations, key=lambda location: (location.container or "", location.offset or 0))
    for container, group in itertools.groupby(ordered, key=lambda location: location.container):
        members = list(group)
        contents = _read_files(members) if container is None else read_many(container, members)
        for location, data in zip(members, contents, strict=True):
            try:
                if isinstance(data, OSError):
                    raise data
                pixels[location] = reader(data)["pixels"]
            except (OSError, DataError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise DataError(f"{location.path}: {reason}. Run prepare again, with `check: decode`.") from None
    return [pixels[location] for location in locations]


def _read_files(locations: list[SampleLocation]) -> Iterator[bytes | OSError]:
    for location in locations:
        try:
            yield read(location.path)
        except OSError as error:
            yield error
