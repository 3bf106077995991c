"""Teach with a network: extract its logits and hints, with the guarantees of the stage `extract`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones.spec import BackboneSpec, TapSpec, read_spec, resolve
from pipeline.errors import TrainingError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.loading.samples import Samples
from pipeline.model_record import read_record
from pipeline.readers.augment import Views
from pipeline.runtime import Reporter
from pipeline.store.identity import identity
from pipeline.task import Kind
from pipeline.teach import top_k_extract
from pipeline.teach.config import LOGITS, TeachConfig, hint_folder
from pipeline.teach.outputs import Paths, StoredTeacher, packing_of

CLASSIFICATION: Kind = "classification"  # the kind of task of a backbone's own classifier
SCORES = TapSpec(node=LOGITS, dtype="float32")


@dataclass(frozen=True)
class Network:
    """A network with a classifier, in the backbone format, and the classes of its outputs."""

    folder: Path
    spec: BackboneSpec
    kind: Kind
    classes: tuple[str, ...]

    def identity(self, config: TeachConfig) -> dict[str, Any]:
        """Return the identity of the network's logits: everything that determines their values."""
        made_from = identity(self.spec, SCORES, precision=config.precision)
        named = {name: made_from[name] for name in ("weights", "reader", "normalise", "node", "precision")}
        return {"source": "network", **named, "scores": "the network's logits"}


def open_network(run: Path | None, backbone: Path, *, classes: tuple[str, ...] = ()) -> Network:
    """Open the network of a run, or the backbone if `run` is None.

    classes: names of the outputs, which replace those in the backbone's spec. Raises TrainingError for a network whose
    outputs are not named classes.
    """
    folder, kind = backbone, CLASSIFICATION
    if run is not None:
        folder, kind = run / "backbone", read_record(run).task.kind
    spec = read_spec(folder)
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
    """Return the settings of an extraction of logits, hints or both."""
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


def teach_network(config: TeachConfig, paths: Paths, samples: Samples, reporter: Reporter) -> StoredTeacher:
    """Extract and store the logits and hints of a network; rows in the cache are not computed again."""
    if isinstance(config.views, int):
        raise TrainingError(
            f"{config.run}: expected `views` with `count` and `augment` for a network, which sees them itself, got a "
            "number."
        )
    own = open_network(paths.run, paths.backbone, classes=config.classes)
    packing = packing_of(config, len(own.classes))
    wanted = extraction_config(config, scores=True, hints=True)
    nodes = resolve(wanted.taps, own.spec, where=str(own.folder))
    pack_paths = top_k_extract.PackPaths(own.folder, paths.manifests, paths.out, paths.cache)
    refused: dict[str, str] = {}
    computed = 0
    if packing is not None:
        scores_config = extraction_config(config, scores=True, hints=False)
        refused, network_ran = top_k_extract.pack_logits(
            scores_config,
            packing,
            spec=own.spec,
            samples=samples,
            place=pack_paths,
            reporter=reporter,
        )
        computed += network_ran * (1 + (0 if config.views is None else config.views.count))
    if packing is None or config.hints:
        extracted = extract(
            extraction_config(config, scores=packing is None, hints=True),
            backbone=own.folder,
            manifests=paths.manifests,
            out=paths.out,
            cache_root=paths.cache,
            samples=samples,
            reporter=reporter,
        )
        computed += sum(extracted.plan.missing.values())
    source = {"run": config.run, "weights": own.spec.weights_digest, "nodes": {n: t.node for n, t in nodes.items()}}
    return StoredTeacher(
        own.kind,
        own.classes,
        {**own.identity(config), "top_k": None if packing is None else asdict(packing)},
        config.views,
        config.hints,
        refused,
        computed,
        source,
    )
