"""Every engine against plain eager torch, and `auto` against the best of them: python benchmarks/engines.py

    --batch 16           samples per batch
    --rounds 4           each engine is timed so many times, in turn; the best time counts
    --models vit_b_16    some of the networks only
    --precisions float32 one of float32 and bfloat16 only
    --compiled           torch.compile too, which takes minutes

Weights are random, but for those of MobileNetV2 where ICECORE_ASSETS names a folder that has them. Images are smooth
random fields. Plain eager torch is the network as torchvision makes it, on float32 images, with a hook.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision import models

from pipeline.backbones import serialization
from pipeline.backbones.nodes import survey
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec, InputSpec, TapSpec
from pipeline.engines import autotune
from pipeline.engines.autotune import Job, choose
from pipeline.errors import EngineError
from pipeline.readers.image import ImageSpec
from pipeline.runtime import SILENT

TAPS = {
    "mobilenet_v2": TapSpec(node="penultimate"),
    "resnet50": TapSpec(node="penultimate"),
    "vgg16": TapSpec(node="features.21", pool="mean"),
    "vit_b_16": TapSpec(node="penultimate"),
}
PRECISIONS = ("float32", "bfloat16")
IMAGE = ImageSpec(mode="RGB", resize=256, crop=(224, 224), interpolation="bilinear")
INPUT = InputSpec(image=IMAGE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MOBILENET = "weights/mobilenet_v2-tf2_int8_dequant.pth"


def backbone_of(model: str) -> Backbone:
    """Freeze a torchvision network."""
    torch.manual_seed(0)
    network = serialization.freeze(models.get_model(model, weights=None))
    path = Path(os.environ.get("ICECORE_ASSETS", "")) / MOBILENET
    if model == "mobilenet_v2" and path.is_file():
        state = torch.load(path, weights_only=True)
        network.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    spec = BackboneSpec(
        architecture={"family": "torchvision", "name": model},
        origin={},
        weights_digest=serialization.weights_digest(network.state_dict()),
        input=INPUT,
        taps=survey(network, INPUT.shape),
    )
    return Backbone(spec=spec, module=network)


def pictures(count: int) -> np.ndarray:
    """Return smooth random pictures, uint8 (count, 224, 224, 3)."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (count, 3, 7, 7)).astype(np.float32))
    fine = nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


class Plain:
    """The code of a user without icecore: the whole network, eager, on float32 images, with a hook."""

    def __init__(self, backbone: Backbone, tap: TapSpec) -> None:
        self.backbone = backbone
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (INPUT.mean, INPUT.std))
        if tap.node == "penultimate":
            self.part, self.before = backbone.spec.taps["penultimate"].input_of, True
        else:
            self.part, self.before = tap.node, False

    @torch.inference_mode()
    def run(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Return the rows of a tap."""
        found = []
        part = self.backbone.module.get_submodule(self.part)
        if self.before:
            handle = part.register_forward_pre_hook(lambda _part, args: found.append(args[0].clone()))
        else:
            handle = part.register_forward_hook(lambda _part, _args, output: found.append(output.mean((2, 3))))
        images = torch.from_numpy(batch["pixels"]).permute(0, 3, 1, 2).float() / 255
        self.backbone.module(((images - self.mean) / self.std).contiguous())
        handle.remove()
        return found[0].numpy()


def measure(model: str, arguments: argparse.Namespace, cache: Path) -> None:
    """Print the rows of one network."""
    backbone, tap = backbone_of(model), TAPS[model]
    pixels = pictures(arguments.batch)
    # Before the engines turn the weights channels-last.
    plain = Plain(backbone_of(model), tap)
    for precision in arguments.precisions:
        job = Job(backbone, {"tap": tap}, arguments.batch, precision, cache=cache)
        engines = {"plain": plain}
        for name in autotune.candidates(precision):
            if name == "torch_compiled" and not arguments.compiled:
                continue
            try:
                engines[name] = job.engine(name)
            except EngineError as error:
                print(f"| {model} | {precision} | {name} | left out: {error} |", flush=True)
        try:
            taken = choose("auto", job, lambda: pixels, samples=10**9, reporter=SILENT).name
        except EngineError as error:
            taken = ""
            print(f"| {model} | {precision} | auto | {str(error).splitlines()[-1]} |", flush=True)
        best = dict.fromkeys(engines, np.inf)
        for turn in range(arguments.rounds + 1):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.run({"pixels": pixels})
                best[name] = min(best[name], time.perf_counter() - start) if turn else np.inf
        for name, seconds in sorted(best.items(), key=lambda item: item[1]):
            rate = arguments.batch / seconds
            print(f"| {model} | {precision} | {name} | {rate:.1f} | {best['plain'] / seconds:.2f} |", flush=True)
        if taken:
            share = min(best.values()) / best[taken]
            print(f"| {model} | {precision} | auto takes {taken} | {share:.2f} of the best | |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=TAPS, default=list(TAPS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    if not arguments.compiled:
        autotune.MIN_JOB_SECONDS["torch_compiled"] = np.inf
    print("| network | precision | engine | samples/s | of plain eager torch |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for model in arguments.models:
            measure(model, arguments, Path(cache))


if __name__ == "__main__":
    main()
