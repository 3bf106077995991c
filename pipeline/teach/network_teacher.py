"""A network as a teacher: its logits, and hints, by extraction, with all that extraction promises."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones import serialization
from pipeline.backbones.spec import BackboneSpec, TapSpec
from pipeline.errors import TrainingError
from pipeline.extract.config import ExtractConfig
from pipeline.model_record import read_record
from pipeline.readers.augment import Views
from pipeline.store.identity import identity
from pipeline.task import Kind
from pipeline.teach.config import LOGITS, TeachConfig, hint_folder

CLASSIFICATION: Kind = "classification"  # is what a backbone by itself was trained for
SCORES = TapSpec(node=LOGITS, dtype="float32")


@dataclass(frozen=True)
class Network:
    """A network with a classifier, in the backbone format, and what its outputs are."""

    folder: Path
    spec: BackboneSpec
    kind: Kind
    classes: tuple[str, ...]

    def identity(self, config: TeachConfig) -> dict[str, Any]:
        """Return what made the network's logits."""
        made_from = identity(self.spec, SCORES, precision=config.precision)
        named = {name: made_from[name] for name in ("weights", "reader", "normalise", "node", "precision")}
        return {"source": "network", **named, "scores": "the network's logits"}


def open_network(run: Path | None, backbone: Path, *, classes: tuple[str, ...] = ()) -> Network:
    """Open the network of a run, or the backbone where there is no run. `classes`: names of outputs, by others.

    Raises TrainingError for a network whose outputs are no named classes.
    """
    folder, kind = backbone, CLASSIFICATION
    if run is not None:
        folder, kind = run / "backbone", read_record(run).task.kind
    spec = serialization.read_spec(folder)
    if kind == "regression":
        raise TrainingError(f"{folder}: expected a network that knows classes as a teacher, got one of a regression.")
    logits = spec.taps.get(LOGITS)
    outputs = tuple(logits.shape) if logits is not None else ()
    names = classes or spec.classes
    if not names or outputs != (len(names),):
        raise TrainingError(
            f"{folder}: expected a network with an output for each of its named classes as a teacher, got outputs of "
            f"the shape {outputs} and {len(names):,} names. Give the teacher `classes`, the names of the outputs in "
            "their order; or fit a head on its features."
        )
    return Network(folder, spec, kind, names)


def extraction_config(config: TeachConfig, *, scores: bool, hints: bool) -> ExtractConfig:
    """Return the settings of the extraction of scores, hints or both."""
    taps = {LOGITS: SCORES} if scores else {}
    if hints:
        taps |= {hint_folder(node): TapSpec(node=node, dtype=config.hints_dtype) for node in config.hints}
    return ExtractConfig(
        datasets=config.datasets,
        taps=taps,
        views=config.views if isinstance(config.views, Views) else None,
        batch_size=config.batch_size,
        engine=config.engine,
        precision=config.precision,
        max_rejected=config.max_rejected,
    )
