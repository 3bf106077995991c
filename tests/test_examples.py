"""Every example of params.yaml, README.md and docs/ is right, by the whole check; `test_examples_run.py` runs them."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML
from support.projects import SHIPPED, default

from pipeline.settings.check import check
from pipeline.settings.params import unusual_values
from stages import project as stages
from stages.cross_references import disagreements

ROOT = Path(__file__).parent.parent
TEXT = SHIPPED.read_text()

FIT, TUNED, DISTILL = "fit.more", "finetune.digits_tuned", "distill.student_tuned"
# Where an example belongs, with what else it needs there, and the examples as they stand in the comments.
COMMENTED: list[tuple[str, Mapping[str, Any], list[str]]] = [
    (
        "prepare.digits",
        {},
        ["image: image", "folders: [amazon, webcam]", "path: path", "columns: [label]", "check: decode"],
    ),
    ("prepare.digits", {}, ["max_rejected: 0.05", "max_pixels: 89478485"]),
    ("prepare.digits", {}, ["types: {code: text, score: number}", "encoding: cp1252"]),
    ("freeze", {}, ["mobilenet: {source: torchvision, model: mobilenet_v2, weights: IMAGENET1K_V1}"]),
    ("freeze", {}, ["resnet:    {source: timm, model: resnet50, weights: a1_in1k}"]),
    ("freeze", {}, ["tuned:     {source: folder, folder: /path/backbone, digest: 1a2b3c4d}"]),
    (
        "freeze.resnet",
        {"file": "/path/weights.pth", "sha256": "12345678"},
        ["entry: model_ema", "strip_prefix: model."],
    ),
    ("extract.glyphs.taps.pixels", {}, ["project: 256", "dtype: float16"]),
    ("extract.glyphs", {}, ["batch_size: auto", "engine: auto", "precision: float32"]),
    ("extract.glyphs", {}, ["shard_mb: 128", "disk: refuse"]),
    ("extract.glyphs.run", {}, ["workers: auto", "decode: auto", "scheduler: tcp://10.0.0.5:8786"]),
    ("split.digits", {}, ["stratify: true", "group: patient", "by: column", "rename: {'1': odd, '2': even}"]),
    ("split.digits", {}, ["use: {val: test}", "by: hash", "rare: keep"]),
    ("split.more", {"datasets": ["digits"], "kind": "multilabel", "target": "tags"}, ["empty: none"]),
    ("split.digits", {}, ["levels: [family, genus]", "limit_per_class: 1000"]),
    (
        "split.more",
        {"datasets": ["digits"]},
        ["sizes: {train: 0.6, validation: 0.1, test: 0.3}", "{train: 60, validation: 10"],
    ),
    ("split.digits", {"domains": {"train": ["amazon"], "test": ["webcam"]}}, ["by: domain"]),
    ("split.digits", {"by": "domain"}, ["domains: {train: [amazon], test: [webcam]}"]),
    ("split.more", {"datasets": ["digits"], "target": "age"}, ["kind: regression"]),
    ("split.more", {"datasets": ["digits"], "target": "tags"}, ["kind: multilabel"]),
    ("audit", {}, ["disagreement: 0.8", "tap: penultimate", "max_rows: 100000"]),
    (FIT, {}, ["pca: 64", "{components: 64, whiten: true}", "search: auto", "refit: true", "calibrate: temperature"]),
    (FIT, {}, ["validation: auto"]),
    (FIT, {"head": "mlp"}, ["seeds: 5"]),
    (
        FIT,
        {"head": "logistic"},
        ["device: cuda", "memory_gb: 16", "{parameter: C, values: [0.1, 1, 10], metric: accuracy}"],
    ),
    (FIT, {"head": "streaming_ridge"}, ["run: {workers: 4}"]),
    (FIT, {}, ["head: {streaming_knn: {metric: cosine, n_neighbors: 1}}", "{logistic: {C: 1.0}, ridge: {}}"]),
    (TUNED, {}, ["train: full", "augment: [{name: rotation, degrees: 10}, {name: random_erasing}]"]),
    (TUNED, {"train": "head"}, ["unfreeze: {2: block2, 4: input}"]),
    (TUNED, {}, ["{last_k: 2}, {from_tap: block2}, {patterns: ['block3.*']}"]),
    (TUNED, {}, ["classifier: {dropout: 0.2, hidden: 256}", "optimiser: adamw", "schedule: cosine", "warmup: 0.1"]),
    (TUNED, {}, ["label_smoothing: 0.1", "class_weights: balanced", "mixup: 0.2", "cutmix: 1.0", "monitor: loss"]),
    (TUNED, {}, ["patience: 5", "weights: best", "precision: float32", "device: auto", "devices: 1", "seed: 0"]),
    (TUNED, {}, ["learning_rate: auto"]),
    ("teach", {}, ["own: {run: backbone, backbone: resnet, datasets: [photos]}"]),
    (
        "teach.tuned",
        {},
        ["views: {count: 4, seed: 0, augment: [{name: horizontal_flip}]}", "hints: [block2]", "top_k: 64"],
    ),
    ("teach.tuned", {"hints": ["block2"]}, ["hints_dtype: float16"]),
    ("teach.tuned", {"top_k": 64}, ["top_k_temperature: 1.0"]),
    (f"{DISTILL}.losses", {}, ["decoupled: {weight: 1, temperature: 4, alpha: 1, beta: 8}"]),
    (f"{DISTILL}.losses", {}, ["hints: [{student: block2, teacher: block2, weight: 1}]"]),
    (f"{DISTILL}.losses", {}, ["attention: [{student: block2, teacher: block2, weight: 10}]"]),
    (f"{DISTILL}.losses", {}, ["relational: {student: penultimate, teacher: penultimate, distance: 25, angle: 50}"]),
    (
        DISTILL,
        {},
        [
            "views: 4",
            "teacher_outputs: online",
            "preprocessing: own",
            "datasets: [more]",
            "extra_tasks: {parity: head_parity}",
        ],
    ),
    ("evaluate", {}, ["metric: {classification: accuracy, multilabel: map, regression: r2}"]),
]
# Examples whose text in the file is only a part of what it says, or several values of one key.
MEANT: Mapping[str, list[Mapping[str, Any]]] = {
    "{train: 60, validation: 10": [{"sizes": {"train": 60, "validation": 10, "test": 20}}],
    "search: auto": [{"search": how} for how in ("auto", "sweep", "none")],
    "validation: auto": [{"validation": how} for how in ("auto", "split", "folds", 10)],
    "{components: 64, whiten: true}": [{"pca": {"components": 64, "whiten": True}}, {"pca": 0.95}],
    "{parameter: C, values: [0.1, 1, 10], metric: accuracy}": [
        {"search": {"parameter": "C", "values": [0.1, 1, 10], "metric": "accuracy"}}
    ],
    "{logistic: {C: 1.0}, ridge: {}}": [
        {"head": {"logistic": {"C": 1.0}, "ridge": {}}},
        {"head": ["logistic", "ridge"]},
        {"head": "sklearn.svm.SVC"},
    ],
    "{last_k: 2}, {from_tap: block2}, {patterns: ['block3.*']}": [
        {"train": one} for one in ("head", {"last_k": 2}, {"from_tap": "block2"}, {"patterns": ["block3.*"]})
    ],
    "optimiser: adamw": [
        {"optimiser": "adamw", "weight_decay": 0.1, "layer_decay": 0.9, "clip": 1.0, "ema": 0.9, "accumulate": 2},
        {"optimiser": "sgd", "momentum": 0.8},
    ],
    "schedule: cosine": [{"schedule": one} for one in ("cosine", "one_cycle", "step", "plateau", "constant")],
    "monitor: loss": [{"monitor": "loss"}, {"monitor": "accuracy"}],
    "weights: best": [{"weights": "best"}, {"weights": "last"}],
    "precision: float32": [{"precision": "float32"}, {"precision": "bfloat16"}],
}
# Comments with a colon that are no example of one key: prose, entries that are there, and the rest of an example above.
PROSE = re.compile(
    r"^(In sections|Data sets:|Weights in a local|`input:`|the network's input|node or alias;|another task|cosine of"
    r"|standard, l2|Fine-tuning:|a run of |classes: \[names\]|engine, precision|or backbone|for comparison:"
    r"|losses: a weight|batch_norm, classifier|`labels`, then"
    r"|source: module|factory: |arguments: |input: \{resize|count: 4|augment: \[\{name: random_resized)"
)

CASES = [
    (place, needed, text, meant)
    for place, needed, texts in COMMENTED
    for text in texts
    for meant in MEANT.get(text) or [yaml.safe_load(text)]
]


def problems(params: Mapping[str, Any]) -> list[str]:
    """What the whole check says of settings."""
    values, found = check(params, stages.sections())
    return [*found, *unusual_values(params), *disagreements(values, params)]


def generous() -> dict[str, Any]:
    """The default settings with what examples name: data sets, backbones, teachers with views and hints."""
    params = default()
    params["prepare"] |= {name: {"root": name} for name in ("photos", "more", "office")}
    network = {"source": "torchvision", "model": "squeezenet1_1"}
    params["freeze"] |= {"resnet": network, "squeezenet": network}
    views = {"count": 4, "augment": [{"name": "horizontal_flip"}]}
    params["teach"]["tuned"] |= {"views": views, "hints": ["block2", "penultimate"], "datasets": ["digits", "more"]}
    params["fit"]["parity_head"] = dict(params["fit"]["parity_logistic"])
    params["fit"]["more"] = {"task": "digits", "backbone": "glyphs", "inputs": ["block3"]}
    head = {"run": "parity_head", "backbone": "glyphs", "input": "block3", "datasets": ["digits"]}
    params["teach"]["head_parity"] = head
    return params


def at(params: dict[str, Any], place: str) -> dict[str, Any]:
    """The settings at a path, made where there are none."""
    for part in place.split("."):
        params = params.setdefault(part, {})
    return params


@pytest.mark.parametrize(("place", "needed", "text", "meant"), CASES, ids=[f"{one[0]}-{one[2]}" for one in CASES])
def test_a_commented_setting_can_be_taken_in(
    place: str, needed: Mapping[str, Any], text: str, meant: Mapping[str, Any]
) -> None:
    assert text in TEXT
    params = copy.deepcopy(generous())
    at(params, place).update({**needed, **meant})
    assert problems(params) == []


def test_an_own_network_and_views_can_be_taken_in_as_they_stand() -> None:
    for first, last in (("  # own:  ", "  # Weights in a local"), ("    # views:  ", "    # batch_size: auto")):
        begin = TEXT.index(first)
        block = TEXT[begin : TEXT.index(last, begin)]
        params = generous()
        found = YAML(typ="safe").load(re.sub(r"^( *)# ?", r"\1", block, flags=re.MULTILINE))
        at(params, "freeze" if "own" in found else "extract.glyphs").update(found)
        assert problems(params) == []


def test_every_comment_with_a_setting_is_an_example_that_is_tried() -> None:
    texts = [text for _, _, found in COMMENTED for text in found]
    comments = [line.partition("# ")[2].strip(" #") for line in TEXT.splitlines() if "#" in line]
    settings = [one for one in comments if re.search(r"\b[a-z_]+: ?\S", one)]
    assert [one for one in settings if not PROSE.match(one) and not any(text in one for text in texts)] == []


BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_the_documents_can_be_taken_in(block: str) -> None:
    params = generous()
    # What the other blocks of the page have.
    params["distill"] = {}
    taps = {"penultimate": {"node": "penultimate"}, "block12": {"node": "block.12", "pool": "avg2x2"}}
    params["freeze"] |= {"mobilenet": params["freeze"]["resnet"]}
    params["extract"]["mobilenet"] = {"datasets": ["photos"], "taps": taps | {"deep": {"node": "features.13"}}}
    params["split"]["photos"] = {"datasets": ["photos"], "few_shot": {"labels_per_class": 10}}
    probe = {"task": "photos", "backbone": "mobilenet", "inputs": ["penultimate"]}
    params["fit"]["photos_logistic"] = probe
    tuned = {"task": "photos", "backbone": "mobilenet", "start": "backbone", "input": "pixels"}
    params["finetune"]["photos_tuned"] = tuned
    for section, entries in YAML(typ="safe").load(block.replace("    ...\n", "")).items():
        for name, entry in entries.items():
            there = params[section].get(name, {}) if "..." in block else {}
            params[section][name] = {**there, **entry} if isinstance(entry, dict) else entry
    assert problems(params) == []
