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
    """Train on every sample of a data set, distorted anew each time, and write the network below `folder`.

    A twentieth of the samples is held out, but at least one; its accuracy, undistorted, stands in `origin`.
    """
    folder = as_path(folder, "pretrain: folder")
    manifests = as_path(manifests, "pretrain: manifests")
    images, targets, classes = _load(config, manifests)
    seed_everything(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator)
    few = max(1, len(order) // 20)
    held, used = order[:few], order[few:]
    network = glyphs.GlyphNet(classes=len(classes), widths=config.widths)
    _train(network, images[used], targets[used], config, generator, reporter)
    with torch.inference_mode():
        right = network.eval()(_normalise(images[held])).argmax(1) == targets[held]
    return serialization.write(
        folder,
        network,
        architecture={"family": "glyphs", "classes": len(classes), "widths": list(config.widths)},
        origin={
            "source": "pretrained",
            **config.model_dump(mode="json"),
            "holdout_accuracy": round(right.float().mean().item(), 4),
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
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.steps)
    network.to(memory_format=torch.channels_last).train()
    for step in range(config.steps):
        rows = torch.randint(len(images), (config.batch_size,), generator=generator)
        batch = _normalise(distort(images[rows], generator))
        loss = functional.cross_entropy(network(batch), targets[rows], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        reporter.progress(step + 1, config.steps)


def _normalise(images: Tensor) -> Tensor:
    """Convert values in [0, 1] to what the network expects."""
    return (images - glyphs.INPUT.mean[0]) / glyphs.INPUT.std[0]


def _load(config: PretrainConfig, manifests: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return all images in [0, 1], (n, 1, 32, 32), their class numbers and the names of the classes."""
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
    pixels = np.stack(_pixels(reader, _places(table)))
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([numbers[str(label)] for label in labels])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, targets, classes


def _places(table: pa.Table) -> list[SampleLocation]:
    """Return where the rows of a manifest are."""
    columns = (table[name].to_pylist() for name in ("path", "container", "offset", "size"))
    return [SampleLocation(*row) for row in zip(*columns, strict=True)]


def _pixels(reader: ImageReader, places: list[SampleLocation]) -> list[np.ndarray]:
    """Return the pixels of all samples, (height, width, 1) uint8 each, in their order."""
    found: dict[SampleLocation, np.ndarray] = {}
    ordered = sorted(places, key=lambda place: (place.container or "", place.offset or 0))
    for container, group in itertools.groupby(ordered, key=lambda place: place.container):
        inside = list(group)
        data = _whole(inside) if container is None else read_many(container, inside)
        for place, one in zip(inside, data, strict=True):
            try:
                if isinstance(one, OSError):
                    raise one
                found[place] = reader(one)["pixels"]
            except (OSError, DataError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise DataError(f"{place.path}: {reason}. Run prepare again, with `check: decode`.") from None
    return [found[place] for place in places]


def _whole(places: list[SampleLocation]) -> Iterator[bytes | OSError]:
    for place in places:
        try:
            yield read(place.path)
        except OSError as error:
            yield error
