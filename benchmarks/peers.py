"""thingsvision over the same images, as its documentation shows it. Prints JSON.

Run by benchmarks/extract.py and benchmarks/start.py with the Python of an environment that has thingsvision 2.7.3
(`make bench-peers`), since that pins a torch of its own. Imports nothing of icecore.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from thingsvision import get_extractor
from thingsvision.utils.data import DataLoader, ImageDataset

BEFORE_LAST = {"mobilenet_v2": "classifier.0", "resnet50": "avgpool"}


def extract(given: argparse.Namespace, paths: list[Path]) -> np.ndarray:
    """Return the inputs of the last layer, float32 (images, width)."""
    extractor = get_extractor(
        model_name=given.model, source="torchvision", device="cpu", pretrained=False, model_path=str(given.weights)
    )
    with tempfile.TemporaryDirectory() as folder:
        # It takes all images below a folder; a list of files beside class folders makes it fail.
        root = Path(folder) / "images"
        for path in paths:
            link = root / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        photos = ImageDataset(
            root=str(root),
            out_path=f"{folder}/order",
            backend=extractor.get_backend(),
            transforms=extractor.get_transformations(resize_dim=256, crop_dim=224),
        )
        batches = DataLoader(dataset=photos, batch_size=given.batch, backend=extractor.get_backend())
        found = extractor.extract_features(
            batches=batches, module_name=BEFORE_LAST[given.model], flatten_acts=True, output_type="ndarray"
        )
        places = {tuple(Path(path).parts[-2:]): row for row, path in enumerate(photos.images)}
    return found[[places[path.parts[-2:]] for path in paths]]


def main() -> None:
    """Extract all images, then only the first batch; print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=BEFORE_LAST, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="a JSON list of paths: .../<class>/<name>")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=("float32",), default="float32")
    parser.add_argument("--out", type=Path, required=True, help="where the vectors go, .npy")
    parser.add_argument("--once", action="store_true", help="not the first batch by itself after it")
    given = parser.parse_args()
    paths = [Path(path) for path in json.loads(given.images.read_text())]
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
        start = time.perf_counter()
        np.save(given.out, extract(given, paths))
        whole = time.perf_counter() - start
        if given.once:
            return
        start = time.perf_counter()
        extract(given, paths[: given.batch])
        first = time.perf_counter() - start
    versions = {name: metadata.version(name) for name in ("thingsvision", "torch", "torchvision")}
    print(json.dumps({"seconds": whole, "seconds_of_first": first, "versions": versions}))


if __name__ == "__main__":
    main()
