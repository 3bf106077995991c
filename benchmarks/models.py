"""Every classification model of torchvision and one small model of each timm family, from freezing to a training step.

Each model is built with random weights and frozen. Then `penultimate` of two images is extracted, and replayed to the
logits where the model has a classifier. Then a classifier of three classes is put on the model, one step of training is
taken, and the trained model is written, read, and compared with itself. Images are small where the model takes such.
Each model runs in a process of its own.
`python benchmarks/models.py --match '^resnet' --source torchvision` runs a part.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones import replace_classifier as headed
from pipeline.backbones import serialization, timm_models, torchvision_models
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.replay import check_replay, expected_logits
from pipeline.backbones.spec import WIDE, InputSpec, TapSpec
from pipeline.engines.memory_format import keep_contiguous
from pipeline.engines.torch_engine import TorchEngine

CLASSES, IMAGES = 3, 2
SIDES = (112, 96)  # of small images: 112 is what patches of 14 and 16 and windows of 7 divide
TRIED = 4  # models of a family of timm, of which the smallest is taken

SMALL = re.compile(r"atto|femto|pico|nano|tiny|xxs|xs|small|mini|lite|(^|_)[st](_|$|\d)|[a-z][01](_|$)|0[0-5]0|18|128")

# Kinds of models that are not the smallest of their family: without a classifier, with two, with attention pooling.
MORE = (
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "vit_base_patch16_siglip_224",
    "vit_base_patch32_clip_224",
    "vit_small_patch14_reg4_dinov2",
)


@dataclass(frozen=True)
class Result:
    """What a model gave: the shape of a row of `penultimate`, and the name of the new classifier."""

    shape: tuple[int, ...]
    classifier: str


def check_model(architecture: Mapping[str, Any], inputs: InputSpec, folder: Path) -> Result:
    """Freeze, extract, replay, train one step, write and read one model; raises an error that names the cause."""
    torch.manual_seed(0)
    network = serialization.build(architecture)
    serialization.write(folder / "frozen", network, architecture=architecture, origin={}, inputs=inputs)
    frozen = serialization.read(folder / "frozen")
    channels, height, width = inputs.shape
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, height, width, channels), dtype=np.uint8)
    taps = {PENULTIMATE: TapSpec(node=PENULTIMATE, dtype="float32")}
    if "logits" in frozen.spec.taps:
        taps["logits"] = TapSpec(node="logits", dtype="float32")
    rows = TorchEngine(frozen, taps, batch_size=IMAGES).run({"pixels": pixels})
    shape = frozen.spec.taps[PENULTIMATE].shape
    _expect(rows[PENULTIMATE].shape == (IMAGES, *shape), f"rows of {shape}, got {rows[PENULTIMATE].shape[1:]}")
    _expect(len(shape) == 1 and shape[0] <= WIDE, f"a vector of at most {WIDE:,} values, got rows of {shape}")
    _expect(bool(np.isfinite(rows[PENULTIMATE]).all()), "finite features")
    _expect(not np.array_equal(*rows[PENULTIMATE]), "other features for another image")
    if "logits" in rows:
        logits = expected_logits(frozen, rows[PENULTIMATE], rows["logits"])
        check_replay(frozen, rows[PENULTIMATE], logits, dtype="float32", where="replay")

    network, headed_architecture = headed.replace_classifier(frozen.spec, frozen.module, classes=CLASSES)
    scaled = (pixels / 255 - np.array(inputs.mean)) / np.array(inputs.std)
    images = torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))
    train_step(network, images, classifier=headed_architecture["at"])
    serialization.write(folder / "trained", network, architecture=headed_architecture, origin={}, inputs=inputs)
    again = serialization.read(folder / "trained").module
    with torch.inference_mode():
        before, after = network(images), again(images)
    _expect(before.shape == (IMAGES, CLASSES), f"logits of {(IMAGES, CLASSES)}, got {tuple(before.shape)}")
    _expect(torch.allclose(before, after, rtol=1e-4, atol=1e-5), "the trained outputs after writing and reading")
    return Result(shape, headed_architecture["at"])


def train_step(network: nn.Module, images: Tensor, *, classifier: str) -> None:
    """Take one step on all weights; raises ValueError if the loss is not finite, or weights stay as they were."""
    network.train().requires_grad_(True)
    keep_contiguous(network)
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    logits = network(images)
    _expect(isinstance(logits, Tensor), f"logits as one tensor in training, got {type(logits).__name__}")
    loss = nn.functional.cross_entropy(logits, torch.arange(IMAGES))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = {name for name, one in network.named_parameters() if not torch.equal(one, before[name])}
    _expect(bool(torch.isfinite(loss)), f"a finite loss, got {float(loss.detach())}")
    own = {name for name in moved if name.startswith(f"{classifier}.")}
    _expect(bool(own), "a new classifier that is trained")
    _expect(bool(moved - own), "weights before the classifier that are trained")
    network.eval().requires_grad_(False)


def torchvision_model(name: str) -> tuple[dict[str, Any], InputSpec, int]:
    """Return the architecture of a model, its input and its number of parameters."""
    entry = torchvision_models.weights_entry(name, "DEFAULT")
    return (
        torchvision_models.architecture(name, entry, None),
        torchvision_models.preprocessing(entry),
        int(entry.meta["num_params"]),
    )


def timm_model(name: str) -> tuple[dict[str, Any], InputSpec, int]:
    """Return the architecture of a model, its input and its number of parameters."""
    entry = timm_models.weights_entry(name, None)
    architecture = timm_models.architecture(name, entry, None)
    inputs = timm_models.preprocessing(name, entry, own_size=True)
    return architecture, inputs, _parameters(architecture)


def timm_names() -> list[str]:
    """Return a small model of each family of timm, chosen by its name, then `MORE`."""
    import timm

    names = []
    for family in timm.list_modules():
        models = [name for name in timm.list_models(module=family) if not name.startswith("test_")]
        likely = sorted(models, key=lambda name: (not SMALL.search(name), len(name), name))[:TRIED]
        names.append(min(likely, key=lambda name: timm_model(name)[2]))
    return [*names, *(name for name in MORE if name not in names)]


def main() -> None:
    """Print a row for each model, then how many hold and the causes of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=("torchvision", "timm"), help="only models of this package")
    parser.add_argument("--match", default="", help="a regular expression; with `--source timm`, any model of timm")
    parser.add_argument("--seconds", type=float, default=40, help="the longest that a model may take")
    parser.add_argument("--gigabytes", type=float, default=1, help="the most weights of a model, as float32")
    parser.add_argument("--minutes", type=float, default=120, help="the longest that all may take; the rest is not run")
    given = parser.parse_args()
    torch.set_num_threads(1)  # threads of a parent do not exist in its forks
    end = time.monotonic() + 60 * given.minutes
    outcomes: dict[str, list[str]] = {"ok": [], "skipped": [], "failed": [], "not run": []}
    print("| model | side | penultimate | classifier | outcome | seconds |\n|---|---|---|---|---|---|")
    for source, name in _chosen(given.source, given.match):
        if time.monotonic() > end:
            outcomes["not run"].append(name)
            continue
        start = time.perf_counter()
        cells = _in_process(source, name, seconds=given.seconds, gigabytes=given.gigabytes)
        row = (f"{source} {name}", *cells, f"{time.perf_counter() - start:.1f}")
        print(f"| {' | '.join(row)} |", flush=True)
        outcome = cells[-1]
        kind = outcome.partition(":")[0]
        outcomes[kind].append(name if kind == "ok" else f"{name} ({outcome.partition(': ')[2]})")
    print("\n" + ", ".join(f"{len(names)} {kind}" for kind, names in outcomes.items()))
    for kind in ("failed", "skipped", "not run"):
        for name in outcomes[kind]:
            print(f"{kind}: {name}")


def _chosen(source: str | None, match: str) -> Iterator[tuple[str, str]]:
    if source != "timm":
        sizes = {name: torchvision_model(name)[2] for name in torchvision_models.names()}
        yield from (
            ("torchvision", name) for name in sorted(sizes, key=lambda name: sizes[name]) if re.search(match, name)
        )
    if source != "torchvision":
        names = timm_models.names() if source and match else timm_names()
        yield from (("timm", name) for name in names if re.search(match, name))


def _in_process(source: str, name: str, *, seconds: float, gigabytes: float) -> tuple[str, str, str, str]:
    """Return the cells of a model: the side of its images, `penultimate`, the classifier, the outcome."""
    with tempfile.TemporaryDirectory() as folder:  # here, since the process may be killed before it removes its files
        return _run_process((source, name, gigabytes, Path(folder)), seconds=seconds)


def _run_process(arguments: tuple[Any, ...], *, seconds: float) -> tuple[str, str, str, str]:
    """Call `_report` in a process, and return the cells of its model; the process ends after the time."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(*arguments, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return "", "", "", f"skipped: more than {seconds:g} s"
        side, shape, classifier, outcome = receiver.recv()
        return side, shape, classifier, outcome
    except EOFError:
        process.join()
        return "", "", "", f"failed: the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _report(source: str, name: str, gigabytes: float, folder: Path, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        side = ""
        try:
            architecture, inputs, parameters = {"torchvision": torchvision_model, "timm": timm_model}[source](name)
            side = str(inputs.size[0])
            if (weights := parameters * 4 / 1e9) > gigabytes:
                sender.send((side, "", "", f"skipped: {weights:.1f} GB of weights"))
                return
            architecture, inputs = small(architecture, inputs)
            side = str(inputs.size[0])
            result = check_model(architecture, inputs, folder)
            sender.send((side, str(result.shape), result.classifier, "ok"))
        except Exception as error:  # noqa: BLE001 - any model may raise anything; the table says what
            line = (str(error).splitlines() or [""])[0]
            sender.send((side, "", "", f"failed: {type(error).__name__}: {line}".replace("|", "/")))


def small(architecture: Mapping[str, Any], inputs: InputSpec) -> tuple[dict[str, Any], InputSpec]:
    """Return the model and its input for the smallest of `SIDES` that it runs on, or as they are."""
    for side in SIDES:
        for option in ({}, {"img_size": [side, side]}, {"image_size": side}):
            image = inputs.image.model_copy(update={"resize": (side, side), "crop": None})
            other = {**architecture, **option}
            try:
                network = _on_meta(other)
                for training in (False, True):
                    network.train(training)(torch.empty(IMAGES, 3, side, side, device="meta"))
            except Exception:  # noqa: BLE001 - whatever the model says, it does not take this size
                continue
            return other, inputs.model_copy(update={"image": image})
    return dict(architecture), inputs


def _on_meta(architecture: Mapping[str, Any]) -> nn.Module:
    """Build a model without memory; with some for a moment where its initialisation needs values."""
    try:
        with torch.device("meta"):
            return serialization.build(architecture)
    except (RuntimeError, NotImplementedError):
        return serialization.build(architecture).to("meta")


def _parameters(architecture: Mapping[str, Any]) -> int:
    return sum(one.numel() for one in _on_meta(architecture).parameters())


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"expected {what}")


if __name__ == "__main__":
    main()
