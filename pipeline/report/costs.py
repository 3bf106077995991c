"""What an input costs: how deep in the network it lies, the bytes of a stored row, the multiply-adds up to it."""

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.backbones.spec import BackboneSpec, TapSpec, row_shape
from pipeline.files import read_json
from pipeline.report.leaderboard import Run, settings_of

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}


@dataclass(frozen=True)
class Cost:
    """Of an input: its deepest tap's share of the nodes, the bytes of a row of all its taps, and multiply-adds."""

    depth: float
    bytes: int
    multiply_adds: int


def costs(run: Run, backbones: Path) -> dict[str, Cost]:
    """The cost of every input of a run; of none where the backbone is gone, or is another one than it was."""
    path = backbones / str(settings_of(run).get("backbone")) / "backbone.json"
    if not path.is_file():
        return {}
    spec = BackboneSpec.model_validate(read_json(path))
    order = {node: place for place, node in enumerate(spec.taps)}
    taps: dict[str, Cost] = {}
    for name, made in run["made_from"]["features"].items():
        identity = made["identity"]
        node = identity["node"]
        if identity["weights"] != spec.weights_digest or node not in spec.taps:
            continue
        width = identity.get("projection", {}).get("dimensions")
        shape = row_shape(spec.taps[node], TapSpec(node=node, pool=identity["pool"], project=width))
        size = BYTES[identity["dtype"]] * math.prod(shape)
        taps[name] = Cost(order[node] / max(1, len(order) - 1), size, spec.taps[node].multiply_adds)
    found = {}
    for name in dict.fromkeys(row["input"] for row in run["table"]):
        parts = [taps[tap] for tap in name.split("+") if tap in taps]
        if len(parts) == len(name.split("+")):
            found[name] = Cost(
                max(one.depth for one in parts),
                sum(one.bytes for one in parts),
                max(one.multiply_adds for one in parts),
            )
    return found
