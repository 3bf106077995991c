"""What a network begins with: the weights of a backbone or none, a new classifier or a head that `fit` found.

Linear probing, then fine-tuning (Kumar et al. 2022): the head is the convex solution on stored features, folded with
its scaler into one layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.backbones import serialization
from pipeline.backbones.classifier import linear_of, replace_classifier, start_from
from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import HeadError
from pipeline.files import read_json, sha256_file
from pipeline.heads import saved
from pipeline.task import Kind
from pipeline.training.config import SCRATCH, DistillConfig, FinetuneConfig


def begun(
    config: FinetuneConfig | DistillConfig, source: Backbone, *, classes: int, head: nn.Linear | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of its own with a new classifier for so many classes, and how to build it again.

    All that is new is drawn from the seed of the settings. `head`: what the classifier starts from; a probe takes its
    place later, since it is fitted to what the network computes.
    """
    torch.manual_seed(config.seed)
    network = serialization.build(source.spec.architecture)
    if config.start != SCRATCH:
        serialization.load_state(network, source.module.state_dict(), where="start")
    network, architecture = replace_classifier(
        source.spec, network, classes=classes, **config.classifier.model_dump(exclude={"init"}, exclude_none=True)
    )
    if head is not None:
        start_from(network, architecture, head)
    return network, architecture


def fitted_head(
    run: Path, *, labels: int | None, draw: int | None, spec: BackboneSpec, classes: Sequence[str], kind: Kind
) -> tuple[nn.Linear, str]:
    """The head that a run fitted to the same training set, as one layer, and the digest of its file.

    Of a run that was refitted the head from before.

    Raises HeadError where the run has no such head on the backbone's last features, or one that saw validation rows.
    """
    if not (run / "model.json").is_file():
        raise HeadError(f"{run}: expected a run's folder with model.json, got none. Run `dvc repro fit@{run.name}`.")
    made = read_json(run / "model.json")
    learnt = made["task"]
    if learnt["kind"] != kind or learnt["classes"] != list(classes):
        different = ", ".join(sorted(set(learnt["classes"]) ^ set(classes))[:12])
        raise HeadError(
            f"{run}: expected a head of a {kind} with the classes of this task, got a {learnt['kind']}"
            f"{f'; the classes differ in: {different}' if different else ''}. Fit the head on this task."
        )
    wanted = f"a linear head on `{PENULTIMATE}` of this backbone, with `labels_per_class: {labels or 'all'}`"
    last = [name for name, feature in made["features"].items() if _is_last(feature["identity"], spec)]
    fits = [one for one in made["fits"] if one["input"] in last and (one["labels"], one["draw"]) == (labels, draw)]
    if not fits:
        there = sorted({f"{one['head']} on {one['input']}, {one['labels'] or 'all'} labels" for one in made["fits"]})
        raise HeadError(f"{run}: expected {wanted}, got: {'; '.join(there[:8])}.")
    if len(fits) > 1:
        names = ", ".join(sorted(one["file"] for one in fits))
        raise HeadError(
            f"{run}: expected one head to start from, got {len(fits)}: {names}. Fit it in a run of its own."
        )
    file = fits[0].get("before_refit", fits[0]["file"])
    if fits[0].get("refit", made["settings"].get("refit")) and "before_refit" not in fits[0]:
        raise HeadError(
            f"{run}: expected a head that saw no validation rows, since these choose the epoch, got one that was "
            "refitted to them. Fit it with `refit: false`."
        )
    path = run / file
    return linear_of(saved.read(path), classes=classes, kind=kind), sha256_file(path)


def _is_last(identity: dict[str, Any], spec: BackboneSpec) -> bool:
    """Whether features are what the last layer of a backbone gets, whole."""
    last = spec.taps.get(PENULTIMATE)
    if last is None or identity["weights"] != spec.weights_digest or identity["node"] != PENULTIMATE:
        return False
    pools = ("none", "flatten", "mean") if last.averaged else ("none", "flatten")
    same = identity["pool"] == "mean" or identity.get("definition", {}) == last.definition
    return same and identity["pool"] in pools and "projection" not in identity
