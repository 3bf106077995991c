"""Costs of an input: its depth in the network, the bytes of a stored row, the multiply-adds to compute it."""

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.backbones.spec import BackboneSpec, TapSpec, row_shape
from pipeline.files import read_json
from pipeline.model_record import record_of
from pipeline.report.leaderboard import Run

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}


@dataclass(frozen=True)
class Cost:
    """Costs of an input, which may consist of several taps.

    depth: position of the deepest tap among the nodes, 0 to 1.
    bytes: bytes of a stored row of all taps.
    multiply_adds: multiply-adds of the network up to the deepest tap.
    """

    depth: float
    bytes: int
    multiply_adds: int


def costs(run: Run, backbones: Path) -> dict[str, Cost]:
    """Return the costs of every input of a run; empty where the backbone is missing or has other weights."""
    record = record_of(run)
    path = backbones / record.backbone / "backbone.json"
    if not path.is_file():
        return {}
    spec = BackboneSpec.model_validate(read_json(path))
    order = {node: position for position, node in enumerate(spec.taps)}
    taps: dict[str, Cost] = {}
    for name, features in record.features.items():
        identity, node = features.identity, features.node
        if features.weights != spec.weights_digest or node not in spec.taps:
            continue
        width = identity.get("projection", {}).get("dimensions")
        shape = row_shape(spec.taps[node], TapSpec(node=node, pool=identity["pool"], project=width))
        size = BYTES[identity["dtype"]] * math.prod(shape)
        taps[name] = Cost(order[node] / max(1, len(order) - 1), size, spec.taps[node].multiply_adds)
    by_input = {}
    for name in dict.fromkeys(row["input"] for row in run["table"]):
        parts = [taps[tap] for tap in name.split("+") if tap in taps]
        if len(parts) == len(name.split("+")):
            by_input[name] = Cost(
                max(part.depth for part in parts),
                sum(part.bytes for part in parts),
                max(part.multiply_adds for part in parts),
            )
    return by_input
