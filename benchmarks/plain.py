"""The code that a user writes in thirty lines: a DataLoader, torchvision's transforms, an eager network. Prints JSON.

Run by benchmarks/extract.py and benchmarks/start.py, in a process of its own. Imports nothing of icecore.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models

LAST = {"mobilenet_v2": "classifier", "resnet50": "fc", "vit_b_16": "heads"}


class Photos(Dataset):
    """Image files, decoded and transformed."""

    def __init__(self, paths: list[str], transform: nn.Module) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        with Image.open(self.paths[place]) as image:
            return self.transform(image.convert("RGB"))


def extract(given: argparse.Namespace, paths: list[str]) -> np.ndarray:
    """Return the inputs of the last layer, float32 (images, width)."""
    weights = models.get_model_weights(given.model)["IMAGENET1K_V1"]
    network = models.get_model(given.model, weights=None)
    state = torch.load(given.weights, weights_only=True)
    network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    setattr(network, LAST[given.model], nn.Identity())
    network.eval()
    cores = len(os.sched_getaffinity(0))
    loader = DataLoader(Photos(paths, weights.transforms()), batch_size=given.batch, num_workers=cores)
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bfloat16"):
        for images in loader:
            found.append(network(images).float().numpy())
    return np.concatenate(found)


def main() -> None:
    """Extract all images, then only the first batch; print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=LAST, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="a JSON list of paths")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, required=True, help="where the vectors go, .npy")
    parser.add_argument("--once", action="store_true", help="not the first batch by itself after it")
    given = parser.parse_args()
    paths = json.loads(given.images.read_text())
    start = time.perf_counter()
    np.save(given.out, extract(given, paths))
    whole = time.perf_counter() - start
    if given.once:
        return
    start = time.perf_counter()
    extract(given, paths[: given.batch])
    first = time.perf_counter() - start
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    print(json.dumps({"seconds": whole, "seconds_of_first": first, "versions": versions}))


if __name__ == "__main__":
    main()
