"""Time training steps with torch threads that wait by spinning or by sleeping, and with one thread.

    python benchmarks/waiting.py

Each way is a process of its own, since OpenMP reads its settings once; the ways take turns. Then once more beside a
process that keeps one core busy.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn import functional
from torchvision.models import mobilenet_v2

from pipeline.backbones.glyphs import GlyphNet

WAYS = {"spin, torch's default": {}, "sleep": {"OMP_WAIT_POLICY": "passive"}, "one thread": {"OMP_NUM_THREADS": "1"}}
BUSY = [sys.executable, "-c", "while True: pass"]
ROUNDS = 3


def steps() -> dict[str, float]:
    """Return the mean seconds of a step of the default network (batch of 16) and MobileNetV2 (8 images of 160 px)."""
    small, large = GlyphNet(classes=10, widths=(24, 48, 96)), mobilenet_v2(num_classes=10)
    return {
        "glyphs": _mean(small, torch.rand(16, 32, 32, 1), count=60),
        "mobilenet_v2": _mean(large, torch.rand(8, 160, 160, 3), count=10),
    }


def _mean(network: torch.nn.Module, pixels: torch.Tensor, *, count: int) -> float:
    network.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    images, labels = pixels.permute(0, 3, 1, 2), torch.arange(len(pixels)) % 10
    times = []
    for _ in range(count + 3):
        start = time.perf_counter()
        functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
    return float(np.mean(times[3:]))


def measured(beside: str) -> None:
    """Print the table, the median of the rounds."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, settings in WAYS.items():
            command = [sys.executable, __file__, "steps"]
            done = subprocess.run(command, env=bare | settings, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout))
    print(f"{beside:<28} {'glyphs':>10} {'mobilenet_v2':>13}")
    for way, rounds in found.items():
        small, large = (np.median([one[name] for one in rounds]) * 1e3 for name in ("glyphs", "mobilenet_v2"))
        print(f"{way:<28} {small:7.1f} ms {large:10.1f} ms", flush=True)


def main() -> None:
    """Print both tables."""
    if sys.argv[1:] == ["steps"]:
        print(json.dumps(steps()))
        return
    measured("nothing beside")
    busy = subprocess.Popen(BUSY)
    try:
        measured("one core busy")
    finally:
        busy.kill()
        busy.wait()


if __name__ == "__main__":
    main()
