"""The table of a network's nodes: aliases, shapes, sizes and costs, as dictionaries and as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.backbones.spec import Tap, pooled_shape
from pipeline.errors import BackboneError
from pipeline.text import human, table

POOLINGS = ("none", "flatten", "mean", "max", "gem", "mean+std", "avg2x2", "cls", "mean_tokens")
BYTES = 2  # per value in float16

# Columns of the table; poolings with rows of the same size share a column.
COLUMNS = {"none": ("none",), "mean": ("mean",), "mean+std": ("mean+std",), "avg2x2": ("avg2x2",),
           "token": ("cls", "mean_tokens")}  # fmt: skip


class Network(Protocol):
    """A network with nodes and aliases: a BackboneSpec, or the Outline of a model."""

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The nodes in the order of the forward pass."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """The node of each alias."""
        ...


def rows(spec: Network, *, functions: bool = True, short: bool = False, match: str = "") -> list[dict[str, Any]]:
    """Return the nodes in the order of the forward pass, as JSON values.

    spec: the network.
    functions: list functions too; otherwise modules, and functions with an alias.
    short: list only blocks, and nodes with an alias.
    match: list only nodes with this text in their name, alias or kind.

    Raises BackboneError if no node is left.
    """
    whole = max(1, *(tap.multiply_adds for tap in spec.taps.values()))
    listed = blocks(spec) if short else spec.taps.keys()
    rows = []
    for node, tap in spec.taps.items():
        names = [alias for alias, target in spec.aliases.items() if target == node]
        if (tap.kind == "function" and not functions and not names) or (node not in listed and not names):
            continue
        if not any(match.lower() in text.lower() for text in (node, tap.kind, *names)):
            continue
        rows.append(
            {
                "node": node,
                "aliases": names,
                "kind": tap.kind,
                "operation": tap.operation,
                "activation": tap.activation,
                "shape": list(tap.shape),
                "layout": tap.layout,
                "bytes": sizes(tap),
                "multiply_adds": tap.multiply_adds,
                "share": tap.multiply_adds / whole,
                "mixed": tap.mixed,
                "meaning": meaning(tap) if node == "penultimate" else "",
            }
        )
    if not rows:
        hint = "" if functions else " `--all` shows functions too."
        raise BackboneError(f"expected nodes that match {match!r}, got none of {len(spec.taps)}.{hint}")
    return rows


def blocks(spec: Network) -> set[str]:
    """Return the top-level modules, looking inside `Sequential` and modules that contain most of the network."""
    modules = [node for node, tap in spec.taps.items() if tap.kind != "function"]
    holders = {
        node
        for node in modules
        if spec.taps[node].kind == "Sequential"
        or 2 * sum(other.startswith(f"{node}.") for other in modules) > len(modules)
    }
    return {
        node for node in modules if not any(node.startswith(f"{other}.") for other in modules if other not in holders)
    }


def meaning(tap: Tap) -> str:
    """Describe the node behind the alias `penultimate` of a network."""
    of = "the mean over positions of " if tap.averaged else ""
    if tap.input_of is not None:
        return f"{of}the input of {tap.input_of}, the last layer"
    if not tap.parts:
        return f"{of}the network's output: no last layer gives it"
    *first, last = tap.parts
    names = f"{', '.join(first)} and {last}" if first else last
    same = len({(part.start, part.stop) for part in tap.parts.values()}) == 1
    if not first:
        return f"{of}the input of {last}"
    return f"{of}the inputs of {names}, {'which are equal' if same else 'concatenated'}"


def sizes(tap: Tap) -> dict[str, int]:
    """Return the bytes of a row in float16, for each pooling that the tap can have."""
    by_pooling = {}
    for pool in POOLINGS:
        try:
            by_pooling[pool] = BYTES * math.prod(pooled_shape(tap, pool))
        except ValueError:
            continue
    return by_pooling


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table for the terminal."""
    lines = []
    for row in rows:
        operation = f"{row['activation']}: {row['operation']}" if row["activation"] else row["operation"] or "–"
        cells = [row["node"], " ".join(row["aliases"]), row["kind"], operation, "×".join(map(str, row["shape"]))]
        for pools in COLUMNS.values():
            size = next((row["bytes"][pool] for pool in pools if pool in row["bytes"]), None)
            cells.append("–" if size is None else human(size))
        lines.append([*cells, "mixed" if row["mixed"] else f"{row['share']:.1%}"])
    head = ["node", "alias", "kind", "activation", "shape", *COLUMNS, "cost"]
    note = "bytes per sample in float16 (flatten as none; max and gem as mean); cost: share of the multiply-adds so far"
    meanings = [f"{row['node']}: {row['meaning']}" for row in rows if row.get("meaning")]
    return "\n".join([table(head, lines), "", *meanings, note])
