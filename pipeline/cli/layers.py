"""What `icecore layers` prints: the nodes of a backbone with their aliases, shapes, sizes and costs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.backbones.spec import Tap, pooled_shape
from pipeline.errors import BackboneError
from pipeline.text import human, table

POOLINGS = ("none", "flatten", "mean", "max", "gem", "mean+std", "avg2x2", "cls", "mean_tokens")
BYTES = 2  # of a value in float16

# Poolings that give rows of one size share a column.
COLUMNS = {"none": ("none",), "mean": ("mean",), "mean+std": ("mean+std",), "avg2x2": ("avg2x2",),
           "token": ("cls", "mean_tokens")}  # fmt: skip


class Network(Protocol):
    """The nodes of a network and their other names: a BackboneSpec, or the Outline of a model."""

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The nodes, in the order in which the network makes them."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names, each with its node."""
        ...


def read_nodes(name: str) -> Network:
    """Return the nodes of a backbone: of the project, in a folder, or of a model of torchvision or timm by its name.

    A model's name is looked up last; its weights are not downloaded. Raises BackboneError where nothing has the name.
    """
    from pipeline.backbones.serialization import read_spec
    from stages import project

    of_project = project.BACKBONES / name
    if of_project.is_dir() and not Path(name).is_absolute():
        return read_spec(of_project)
    if Path(name).exists() or len(Path(name).parts) > 1:
        return read_spec(name)
    from pipeline.freeze.library_model import model_settings
    from pipeline.freeze.outline import survey_model

    return survey_model(model_settings(name))


def rows(spec: Network, *, functions: bool = True, short: bool = False, match: str = "") -> list[dict[str, Any]]:
    """The nodes in the order in which the network makes them, as JSON values.

    Without `functions`, modules alone, and those functions that have an alias. `short`: blocks, and nodes that have an
    alias. `match` is looked for in nodes, aliases and kinds. Raises BackboneError if nothing is left.
    """
    whole = max(1, *(tap.multiply_adds for tap in spec.taps.values()))
    listed = blocks(spec) if short else spec.taps.keys()
    found = []
    for node, tap in spec.taps.items():
        names = [alias for alias, target in spec.aliases.items() if target == node]
        if (tap.kind == "function" and not functions and not names) or (node not in listed and not names):
            continue
        if not any(match.lower() in text.lower() for text in (node, tap.kind, *names)):
            continue
        found.append(
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
    if not found:
        hint = "" if functions else " `--all` shows functions too."
        raise BackboneError(f"expected nodes that match {match!r}, got none of {len(spec.taps)}.{hint}")
    return found


def blocks(spec: Network) -> set[str]:
    """Return the modules that no other module holds, but a sequence or one that holds most of the network."""
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
    """Say what `penultimate` of a network is."""
    of = "the mean over positions of " if tap.averaged else ""
    if tap.input_of is not None:
        return f"{of}what {tap.input_of} gets, the last layer"
    if not tap.parts:
        return f"{of}the network's output: no last layer gives it"
    *first, last = tap.parts
    names = f"{', '.join(first)} and {last}" if first else last
    same = len({(part.start, part.stop) for part in tap.parts.values()}) == 1
    return f"what {names} get{'s' if not first else ', all the same' if same else ', one after the other'}"


def sizes(tap: Tap) -> dict[str, int]:
    """The bytes of a row in float16, for each pooling that fits."""
    found = {}
    for pool in POOLINGS:
        try:
            found[pool] = BYTES * math.prod(pooled_shape(tap, pool))
        except ValueError:
            continue
    return found


def text(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table for the terminal."""
    lines = []
    for row in found:
        made = f"{row['activation']}: {row['operation']}" if row["activation"] else row["operation"] or "–"
        cells = [row["node"], " ".join(row["aliases"]), row["kind"], made, "×".join(map(str, row["shape"]))]
        for pools in COLUMNS.values():
            size = next((row["bytes"][pool] for pool in pools if pool in row["bytes"]), None)
            cells.append("–" if size is None else human(size))
        lines.append([*cells, "mixed" if row["mixed"] else f"{row['share']:.1%}"])
    head = ["node", "alias", "kind", "activation", "shape", *COLUMNS, "cost"]
    note = (
        "bytes a sample in float16 (flatten as none; max and gem as mean); cost: share of the multiply-adds up to there"
    )
    meanings = [f"{row['node']}: {row['meaning']}" for row in found if row.get("meaning")]
    return "\n".join([table(head, lines), "", *meanings, note])
