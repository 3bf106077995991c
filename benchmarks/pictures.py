"""The images and networks of the extraction benchmarks: photos on disk, synthetic images, a tiny network.

caltech    photos of 118 to 2,016 px, 80 of each of ten classes       $ICECORE_ASSETS/images/office_caltech10.tar
amazon     933 photos of the same classes, 300 × 300 px, from a shop  the same
webcam     295 photos of the same classes, 149 to 752 px              the same
cifar10    32 × 32 px, JPEG                                           $ICECORE_ASSETS/images/cifar10-subset.tar
lossless   4,000 of CIFAR-10's training images as they are            $ICECORE_ASSETS/images/cifar10-png-train4000.tar
drawn      smooth random fields of 500 × 375 px, JPEG: where ICECORE_ASSETS is not set
"""

import os
import tarfile
from collections import defaultdict
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import models

from pipeline.backbones import glyphs, serialization
from pipeline.backbones.spec import InputSpec
from pipeline.files import sha256_file
from pipeline.freeze.config import Torchvision
from pipeline.freeze.run import freeze
from pipeline.readers.image import ImageSpec

DOMAINS = ("amazon", "webcam", "caltech")
ARCHIVES = {name: ("images/office_caltech10.tar", f"office_caltech10/{name}/") for name in DOMAINS} | {
    "cifar10": ("images/cifar10-subset.tar", "cifar10-subset/test/"),
    "lossless": ("images/cifar10-png-train4000.tar", "cifar10-png-train4000/train/"),
}
WEIGHTS = {
    "mobilenet_v2": "weights/mobilenet_v2-tf2_int8_dequant.pth",
    "squeezenet1_1": "weights/squeezenet1_1-deepscale_v1.1_fp16.pth",
}
SIDE = 8  # of the smallest images, px


def assets() -> Path | None:
    """Return the folder of real photos and weights; None if there is none."""
    folder = os.environ.get("ICECORE_ASSETS")
    return Path(folder) if folder else None


def data_sets() -> list[str]:
    """Return the data sets of extraction that this machine has."""
    return ["caltech", "cifar10"] if assets() else ["drawn"]


def unpack(name: str, folder: Path, count: int) -> Path:
    """Put `count` images, as many of each class, into `folder/<name>/<class>/`."""
    root, own = folder / name, assets()
    if name == "drawn" or own is None:
        draw(root, count, size=(500, 375), suffix=".jpg", classes=10)
        return root
    archive, inside = ARCHIVES[name]
    with tarfile.open(own / archive) as tar:
        members = defaultdict(list)
        for member in sorted(tar, key=lambda member: member.name):
            if member.isfile() and member.name.startswith(inside):
                members[Path(member.name).parent.name].append(member)
        in_turn = (member for turn in zip_longest(*members.values()) for member in turn if member is not None)
        for _, member in zip(range(count), in_turn, strict=False):
            member.name = member.name.removeprefix(inside)
            tar.extract(member, root, filter="data")
    return root


def draw(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (SIDE, SIDE),
    suffix: str = ".png",
    classes: int = 1,
    first: int = 0,
) -> None:
    """Draw random images of (width, height): noise where they are tiny, else smooth fields; the same ones each time."""
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        path = folder / f"{number % classes:02d}" / f"{number:07d}{suffix}"
        if number < first + classes:
            path.parent.mkdir(parents=True, exist_ok=True)
        (coarse if size == coarse.size else coarse.resize(size, Image.Resampling.BICUBIC)).save(path)


def weights_of(model: str, folder: Path) -> Path:
    """Return the file of a model's state dict: real weights if `WEIGHTS` has them, otherwise random ones."""
    own = assets()
    if model in WEIGHTS and own is not None and (own / WEIGHTS[model]).is_file():
        return own / WEIGHTS[model]
    torch.manual_seed(0)
    path = folder / f"{model}.pth"
    torch.save(models.get_model(model, weights=None).state_dict(), path)
    return path


def backbone_of(model: str, folder: Path) -> tuple[Path, Path]:
    """Freeze a torchvision model with the preprocessing of its first ImageNet weights; also return its weights file."""
    file, frozen = weights_of(model, folder), folder / "backbones" / model
    settings = {"source": "torchvision", "model": model, "weights": "IMAGENET1K_V1"}
    freeze(Torchvision(**settings, file=file, sha256=sha256_file(file)), frozen, pretrained=folder)
    return frozen, file


def tiny(folder: Path) -> Path:
    """Freeze a tiny network: three blocks of eight channels on 8 × 8 px, random weights."""
    torch.manual_seed(0)
    widths = (8, 8, 8)
    serialization.write(
        folder,
        glyphs.GlyphNet(classes=2, widths=widths),
        architecture={"family": "glyphs", "classes": 2, "widths": list(widths)},
        origin={"source": "random"},
        inputs=InputSpec(image=ImageSpec(mode="L", resize=(SIDE, SIDE)), mean=(0.5,), std=(0.5,)),
    )
    return folder


def labels(paths: list[str]) -> list[str]:
    """Return the class of each image: its folder."""
    return [Path(path).parent.name for path in paths]


def by_class(names: list[str], share: float) -> np.ndarray:
    """Return which images are training images: the first `share` of each class, bool (images,)."""
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    train = np.zeros(len(names), dtype=bool)
    train[list(chain.from_iterable(own[: round(share * len(own))] for own in places.values()))] = True
    return train
