"""Load the task, backbone and inputs of a run, and build the job of each training set."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.backbones import serialization
from pipeline.backbones.replace_classifier import init_from_linear, last_layer, new_modules
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.user_code import digest_of_icecore
from pipeline.errors import TrainingError
from pipeline.files import sha256_bytes
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.inputs import FromFeatures, FromPixels, Inputs, check_frozen, open_features
from pipeline.finetune.start_from_run import fitted_head, has_network, network_of_run
from pipeline.loading import image_cache
from pipeline.loading.samples import locate_samples
from pipeline.settings.check import refuse
from pipeline.store import key_arrays
from pipeline.task import Task, Training, training_sets
from pipeline.training import freezing
from pipeline.training.build_network import build_network
from pipeline.training.config import ClassifierConfig, FromTap, LoopConfig
from pipeline.training.data import Samples
from pipeline.training.job import RunPaths, TrainingJob, packages
from pipeline.training.linear_probe import Probe, fit_probe
from pipeline.training.loop import TrainContext
from pipeline.training.losses import SupervisedLoss, class_weights, mixing
from pipeline.training.targets import targets_of

HEAD = "finetune"  # name of the head in predictions


@dataclass(frozen=True)
class Paths(RunPaths):
    """The paths of a run. start: folder of the run that it starts from, or None."""

    task: Path
    backbone: Path
    features: Path
    start: Path | None


@dataclass(frozen=True)
class RunContext:
    """The inputs that all training sets of a run share.

    start: folder of the fit run whose head initialises the classifier. has_classifier: whether `source` already has the
    task's classifier. probes: the fitted heads, by training set.
    """

    config: FinetuneConfig
    task: Task
    trainings: Sequence[Training]
    source: Backbone
    inputs: Inputs
    start: Path | None
    has_classifier: bool
    probes: dict[str, Probe] = field(default_factory=dict)

    @property
    def largest(self) -> Training:
        """Return the training set with the most rows."""
        return max(self.trainings, key=lambda training: len(training.rows))


def load_run(config: FinetuneConfig, paths: Paths, *, datasets: Sequence[str]) -> RunContext:
    """Read the task and the backbone, and open the inputs; raises the errors of `finetune`."""
    task = Task.read(paths.task)
    refuse(config.unsuited(task.kind, validation=len(task.rows("validation")) > 0), where=str(paths.task))
    has_classifier = paths.start is not None and has_network(paths.start)
    if has_classifier:
        assert paths.start is not None, "it has a network"
        source = network_of_run(paths.start, task, path=paths.task)
        _refuse_new_classifier(config)
    else:
        source = serialization.read(paths.backbone)
        if paths.start is not None and "init" in config.classifier.model_fields_set:
            raise TrainingError(
                f"classifier.init: expected none with `start: {config.start}`, whose head becomes the classifier, got "
                f"{config.classifier.init}. Leave it out."
            )
    keys = key_arrays.from_hex(list(task.keys))
    inputs: Inputs
    if config.input == "features":
        assert config.tap is not None, "the settings were checked"
        clean, views = open_features(paths.features, config.tap, source.spec, views=config.views)
        inputs = FromFeatures(config.tap, clean.identity["node"], clean, views, keys)
    else:
        samples = locate_samples(paths.manifests, datasets, keys)
        folder = paths.cache / "pixels"
        decoded = image_cache.load_pixels(source.spec.input, samples, folder=folder, transforms=config.augment)
        inputs = FromPixels(source.spec.input, decoded, keys, config.augment)
    trainings = list(training_sets(task, config.labels_per_class, draws=config.draws, where=str(paths.task)))
    return RunContext(config, task, trainings, source, inputs, None if has_classifier else paths.start, has_classifier)


def build_job(run: RunContext, training: Training, fabric: Any) -> TrainingJob:
    """Build the job of a training set: its network, samples, objective and settings."""
    config, task, spec = run.config, run.task, run.source.spec
    head, head_file = None, None
    if run.start is not None:
        head, head_file = fitted_head(
            run.start, labels=training.labels, draw=training.draw, spec=spec, classes=task.classes, kind=task.kind
        )
    targets, validation = targets_of(task, training.rows), task.rows("validation")
    if head is not None:
        targets.fold(head)
    size = 1 if task.kind == "regression" else len(task.classes)
    if run.has_classifier:
        network, architecture = copy.deepcopy(run.source.module), dict(spec.architecture)
        targets.fold(last_layer(network, architecture))
    else:
        network, architecture = build_network(
            run.source,
            start=config.start,
            classifier=config.classifier,
            seed=config.seed,
            classes=size,
            head=head,
        )
    node = run.inputs.node if isinstance(run.inputs, FromFeatures) else None
    what = config.train or ("full" if node is None else FromTap(from_tap=node))
    trainable = freezing.prepare(
        network,
        spec,
        what,
        batch_norm=config.batch_norm,
        unfreeze=config.unfreeze,
        new=new_modules(architecture),
    )
    if node is not None:
        check_frozen(network, spec, trainable, node, epochs=config.epochs)
    module = run.inputs.trained(network, spec)
    weights = class_weights(config.class_weights, targets.of(training.rows).numpy(), task.kind, task.classes)
    objective = SupervisedLoss(task.kind, size, label_smoothing=config.label_smoothing, weights=weights)
    mix = mixing(config, task.kind, size, spec.input.shape)
    context = TrainContext(
        config, objective, fabric, run.inputs.enter, mix, fitted=head is not None or run.has_classifier
    )

    def eval_samples(rows: np.ndarray) -> Samples:
        return run.inputs.samples(rows, targets.of(rows), training=False, seed=0)

    probe = None
    if config.classifier.is_fitted(config.start):
        if str(training) not in run.probes:
            last = last_layer(network, architecture)
            run.probes[str(training)] = fit_probe(task, training, last, module, eval_samples, context)
        probe = run.probes[str(training)]
        if probe.linear is not None:
            head = copy.deepcopy(probe.linear)
            targets.fold(head)
            init_from_linear(network, architecture, head)
            context = replace(context, fitted=True)
    return TrainingJob(
        HEAD,
        run.inputs.name,
        training,
        network,
        module,
        architecture,
        trainable,
        context,
        targets,
        run.inputs.samples(training.rows, targets.of(training.rows), training=True, seed=config.seed),
        eval_samples(validation) if len(validation) else None,
        {
            "settings": config.model_dump(mode="json", exclude=set(LoopConfig.model_fields)),
            "loop": config.model_dump(mode="json", include=set(LoopConfig.model_fields)),
            "architecture": architecture,
            "weights": spec.weights_digest,
            "start": head_file,
            "inputs": run.inputs.made_from,
            "classes": task.classes,
            "rows": {
                name: sha256_bytes("".join(task.keys[rows]).encode() + targets.of(rows).numpy().tobytes())
                for name, rows in (("train", training.rows), ("validation", validation))
            },
            "code": digest_of_icecore("pipeline.finetune.run"),
            "versions": packages(spec.architecture, from_pixels=config.input == "pixels", probe=probe is not None),
        },
        () if probe is None else (probe,),
    )


def _refuse_new_classifier(config: FinetuneConfig) -> None:
    """Raise TrainingError for settings of a new classifier if the network of a run keeps its own."""
    if config.classifier != ClassifierConfig():
        raise TrainingError(
            f"classifier: expected none with `start: {config.start}`, whose network has a classifier, got settings "
            "of a new classifier. Leave it out."
        )
