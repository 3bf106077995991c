"""Students: what is taken out of a network, pairs of nodes, a live teacher, and the loop with all of them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import networks, small_distillation, small_training
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbones.hooks import collect
from pipeline.backbones.serialization import Backbone
from pipeline.backbones.spec import InputSpec, Tap, TapSpec
from pipeline.distill.feature_pairs import FeaturePair, as_maps, average_pool, pairs_of
from pipeline.distill.losses_config import LossesConfig
from pipeline.distill.online_teacher import OnlineTeacher
from pipeline.distill.student import Output, Student
from pipeline.errors import BackboneError, TrainingError
from pipeline.readers.image import ImageSpec
from pipeline.training import loop
from pipeline.training.checkpoint import BEST, LAST
from pipeline.training.loop import train
from pipeline.training.lr_finder import range_test
from pipeline.training.optim import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training leaves the choice of torch's kernels as it was."""
    before = torch.get_deterministic_debug_mode()
    yield
    assert torch.get_deterministic_debug_mode() == before


def hinted(found: Backbone, *nodes: str, teacher: Tap | None = None) -> dict[str, FeaturePair]:
    """A hint at each of some nodes, of a teacher whose rows have the same shape."""
    hints = {node: teacher or found.spec.taps[found.spec.node(node)] for node in nodes}
    losses = LossesConfig.model_validate({"hints": [{"student": node, "teacher": node} for node in nodes]})
    return pairs_of(losses, found.spec, hints)


def run(folder: Path, **settings: Any) -> tuple[small_distillation.StudentTraining, dict[str, Tensor], Any]:
    """Train a fresh student; returns its weights and the history."""
    parts = {name: settings.pop(name) for name in ("save_seconds", "reporter") if name in settings}
    one = small_distillation.student_training(folder.parent, **settings)
    history = train(one.student, one.samples, one.validation, one.context, one.trainable, folder=folder, **parts)
    return one, {name: value.clone() for name, value in one.student.state_dict().items()}, history


# What is taken out ---------------------------------------------------------------------------------------------------

# Before a ReLU in place, before and after an addition in place, a function, the last layer's input, the network's own.
NODES = {
    "resnet": ("input", "layer1.0.bn1", "layer1.0.bn2", "layer1.0.add", "layer1.0.relu", "penultimate", "logits"),
    "mobilenet": ("features.0.1", "features.2.conv.0.1", "penultimate"),
    "vgg": ("features.0", "classifier.1"),
    "vit": ("conv_proj", "encoder.layers.encoder_layer_1.add", "penultimate"),
}


@pytest.mark.parametrize("name", NODES)
def test_a_student_gives_what_its_nodes_have_before_anything_overwrites_them(name: str) -> None:
    found = networks.backbone(name)
    pairs = hinted(found, *NODES[name])
    student = Student(found.module, found.spec, pairs)
    for layer in student.projections.values():  # as they are
        nn.init.dirac_(layer.weight) if isinstance(layer, nn.Conv2d) else nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    images = networks.images(found.spec, 3)
    specs = {f"hints.{number}": TapSpec(node=found.spec.node(node)) for number, node in enumerate(NODES[name])}
    found.module.eval()
    with torch.no_grad():
        expected, logits = collect(found.module, images, specs, found.spec.taps), found.module(images)
    student.train()
    found.module.eval()
    output = student(images)
    assert isinstance(output, Output)
    assert torch.allclose(output.logits, logits, atol=1e-5)
    for one, pair in pairs.items():
        wanted = pair.of_teacher(expected[one])
        assert torch.allclose(output.rows[one], wanted, atol=1e-4 * float(wanted.abs().max())), pair.node
    student.eval()
    assert torch.equal(student(images), logits)


def test_gradients_of_hints_are_those_of_a_network_that_overwrites_nothing() -> None:
    def gradients(*, inplace: bool) -> dict[str, Tensor]:
        found = networks.backbone("resnet")
        found.module.requires_grad_()
        for part in found.module.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = inplace
        student = Student(found.module, found.spec, hinted(found, "layer1.0.bn1", "layer2.0.bn2", "layer1.0.add"))
        student.train()
        output = student(networks.images(found.spec, 4))
        sum(rows.square().mean() for rows in output.rows.values()).backward()
        return {name: one.grad.clone() for name, one in student.named_parameters() if one.grad is not None}

    one, two = gradients(inplace=True), gradients(inplace=False)
    assert one.keys() == two.keys()
    assert "network.conv1.weight" in one
    assert "projections.hints_0.weight" in one
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_projections_follow_from_the_seed_and_are_no_part_of_the_network() -> None:
    found = networks.backbone("resnet")
    names = set(found.module.state_dict())
    pairs = hinted(found, "layer1.0.add", "penultimate")
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (Student(found.module, found.spec, pairs, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), drawn)  # what is drawn elsewhere stays
    same = [torch.equal(*both) for both in zip(one.projections.parameters(), two.projections.parameters(), strict=True)]
    assert len(same) == 4
    assert all(same)
    assert not torch.equal(one.projections["hints_0"].weight, other.projections["hints_0"].weight)
    assert set(one.network.state_dict()) == names
    assert len(one.state_dict()) == len(names) + 4


class Moody(nn.Module):
    """A network with a branch that runs in evaluation alone, and a map that is larger in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.last = nn.Linear(4, networks.CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images if self.training else images[:, :, 1:, 1:])
        if not self.training:
            maps = maps + self.second(images[:, :, 1:, 1:])
        return self.last(maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(("node", "got"), [("first", r"\(4, 30, 30\)"), ("second", "nothing")])
def test_a_node_that_is_another_in_training_is_refused(node: str, got: str) -> None:
    found = networks.backbone(Moody())
    student = Student(found.module, found.spec, hinted(found, node))
    student.train()
    expected = (
        rf"^hints\.0: expected '{node}' of the shape \(4, 29, 29\) in training as in evaluation, got {got}\. Choose"
    )
    with pytest.raises(TrainingError, match=expected):
        student(networks.images(found.spec, 2))


# Pairs ---------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_maps_are_averaged_as_adaptive_pooling_has_it(height: int, width: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    maps = torch.randn(2, 3, height, width)
    assert torch.allclose(average_pool(maps, size), functional.adaptive_avg_pool2d(maps, size), atol=1e-5)


def test_maps_channels_last_and_tokens_are_maps_too() -> None:
    maps = torch.randn(2, 5, 3, 3)
    assert torch.equal(as_maps(maps.permute(0, 2, 3, 1), Tap(shape=(3, 3, 5), layout="HWC")), maps)
    tokens = torch.cat([torch.zeros(2, 1, 5), maps.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(as_maps(tokens, Tap(shape=(10, 5), layout="LC", prefix=1, class_token=True)), maps)


@pytest.mark.parametrize(
    ("teacher", "shape"),
    [
        (Tap(shape=(7, 16, 16), layout="CHW"), (7, 8, 8)),  # the student's side is the smaller
        (Tap(shape=(7, 2, 4), layout="CHW"), (7, 2, 4)),
        (Tap(shape=(5, 5, 9), layout="HWC"), (9, 5, 5)),
        (Tap(shape=(17, 12), layout="LC", prefix=1), (12, 4, 4)),
    ],
)
def test_hints_between_maps_are_projected_at_the_smaller_of_both_sides(teacher: Tap, shape: tuple[int, ...]) -> None:
    found = networks.backbone("resnet")  # (64, 8, 8) after layer1
    student = Student(found.module, found.spec, hinted(found, "layer1", teacher=teacher)).train()
    output = student(networks.images(found.spec, 2))
    assert output.rows["hints.0"].shape == (2, *shape)
    assert student.pairs["hints.0"].of_teacher(torch.randn(2, *teacher.shape).half()).shape == (2, *shape)
    (layer,) = student.projections.values()
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (64, shape[0], (1, 1))


def test_nodes_that_cannot_be_compared_are_refused_all_at_once() -> None:
    found = networks.backbone("resnet")
    hints = {
        "map": Tap(shape=(7, 4, 4), layout="CHW"),
        "row": Tap(shape=(7,)),
        "tokens": Tap(shape=(8, 3), layout="LC"),
    }
    losses = {
        "hints": [
            {"student": "layer1", "teacher": "row"},
            {"student": "penultimate", "teacher": "map"},
            {"student": "layer1", "teacher": "tokens"},
            {"student": "layr1.0", "teacher": "map"},
        ],
        "attention": [
            {"student": "layer1", "teacher": "map"},
            {"student": "penultimate", "teacher": "row", "weight": 0},
        ],
        "relational": {"teacher": "rows"},
    }
    with pytest.raises(TrainingError) as caught:
        pairs_of(LossesConfig.model_validate(losses), found.spec, hints)
    lines = str(caught.value).split("\n")
    most = "expected two maps or two vectors, tokens of a square of patches among them, got"
    end = "which no projection brings to one shape. Name other nodes."
    layer, row = (
        "maps of the shape (64, 8, 8) of the student's 'layer1'",
        "vectors of the shape (7,) of the teacher's 'row'",
    )
    last = "vectors of the shape (512,) of the student's 'penultimate'"
    maps, tokens = (
        "maps of the shape (7, 4, 4) of the teacher's 'map'",
        "tokens of the shape (8, 3) of the teacher's 'tokens'",
    )
    assert lines[:4] == [
        "losses: nodes that cannot be compared",
        f"  - hints.0: {most} {layer} and {row}, {end}",
        f"  - hints.1: {most} {last} and {maps}, {end}",
        f"  - hints.2: {most} {layer} and {tokens}, {end}",
    ]
    assert lines[4].startswith("  - hints.3.student: unknown node 'layr1.0'. Did you mean 'layer1.0'")
    assert lines[5].startswith(
        "  - attention.1: expected two maps, tokens of a square of patches among them, got vectors"
    )
    assert lines[5].endswith("which have no attention map. Name other nodes.")
    assert lines[6:] == [
        "  - relational.teacher: unknown hint 'rows'. Did you mean 'row'? Expected one of: map, row, tokens. Add it to "
        "the `hints` of the teacher."
    ]


def test_a_node_that_depends_on_the_rest_of_its_batch_is_refused() -> None:
    found = networks.backbone("resnet")
    taps = {**found.spec.taps, "layer1": found.spec.taps["layer1"].model_copy(update={"mixed": True})}
    spec = found.spec.model_copy(update={"taps": taps})
    with pytest.raises(
        TrainingError, match=r"hints\.0\.student: expected values that depend on a single sample, but those of 'layer1'"
    ):
        hinted(Backbone(spec, found.module), "layer1")


def test_a_loss_that_never_counts_has_no_pair() -> None:
    found = networks.backbone("resnet")
    one = {"student": "layer1", "teacher": "t"}
    losses = {"hints": [{**one, "weight": 0}, one], "relational": {"distance": 0, "angle": 1, "teacher": "t"}}
    pairs = pairs_of(LossesConfig.model_validate(losses), found.spec, {"t": found.spec.taps["layer2"]})
    assert list(pairs) == ["hints.1", "relational"]


# A live teacher ------------------------------------------------------------------------------------------------------


def test_a_live_teacher_sees_the_images_normalised_as_its_own() -> None:
    found = networks.glyph_net()
    found.module.train()
    theirs = InputSpec(image=found.spec.input.image, mean=(0.2,), std=(0.25,))
    columns = [2, 0, 1]
    live = OnlineTeacher(found, theirs, columns=columns, hints={"a": "block2", "b": "penultimate"})
    pixels = torch.rand(3, 1, 32, 32)
    images, own = (pixels - 0.2) / 0.25, (pixels - 0.5) / 0.5
    told = live(images.requires_grad_())
    specs = {"block2": TapSpec(node="block2"), "penultimate": TapSpec(node="penultimate")}
    with torch.no_grad():
        expected = collect(found.module, own, specs, found.spec.taps)
        assert torch.allclose(told.logits, found.module(own)[:, columns], atol=1e-5)
    assert torch.allclose(told.hints["a"], expected["block2"], atol=1e-5)
    assert torch.allclose(told.hints["b"], expected["penultimate"], atol=1e-5)
    assert not told.logits.requires_grad
    assert not any(part.training for part in found.module.modules())


def test_a_live_teacher_moves_with_its_student_and_is_in_none_of_its_states() -> None:
    found, teacher = networks.backbone("resnet"), networks.backbone("vgg")
    plain = Student(found.module, found.spec, {})
    student = Student(found.module, found.spec, {}, online=OnlineTeacher(teacher, found.spec.input, columns=[0, 1]))
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert len(list(student.parameters())) == len(list(plain.parameters()))
    assert copy.deepcopy(student).online is student.online
    images = networks.images(found.spec, 2)
    student.train()
    before = student(images).teacher
    student.double()
    assert next(teacher.module.parameters()).dtype == torch.float64
    after = student(images.double()).teacher
    assert before is not None
    assert after is not None
    assert after.logits.dtype == torch.float32
    assert torch.allclose(before.logits, after.logits, atol=1e-4)
    assert not any(part.training for part in teacher.module.modules())


def test_a_live_teacher_that_reads_other_images_or_has_no_such_node_is_refused() -> None:
    found = networks.glyph_net()
    other = InputSpec(image=ImageSpec(mode="L", resize=(64, 64)), mean=(0.5,), std=(0.5,))
    with pytest.raises(TrainingError) as caught:
        OnlineTeacher(found, other)
    lines = str(caught.value).split("\n")
    assert lines[0] == (
        "`teacher_outputs: online`: expected a student with its teacher's preprocessing, got another. "
        "Use stored scores, or give both the same `input`"
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["  - resize"]
    with pytest.raises(
        BackboneError,
        match=r"teacher_outputs: online: taps that do not exist\n.* unknown node 'blok2'\. Did you mean 'bl",
    ):
        OnlineTeacher(found, found.spec.input, hints={"a": "blok2"})


# The loop ------------------------------------------------------------------------------------------------------------


NO_RELATIONS = {name: value for name, value in small_distillation.EVERYTHING.items() if name != "relational"}


@pytest.mark.parametrize(
    "more",
    [
        {"losses": NO_RELATIONS},
        # Relations and the statistics of a batch of eight together make of a rounding a tenth of the loss in a hundred
        # steps, whoever the teacher is.
        {"batch_norm": "frozen"},
    ],
)
def test_stored_scores_and_a_live_teacher_give_the_same_loss_curve(tmp_path: Path, more: Any) -> None:
    settings = {"rows": 200, "epochs": 4, "learning_rate": 0.003, **more}
    stored, _, history = run(tmp_path / "stored" / "run", **settings)
    live, _, again = run(tmp_path / "live" / "run", live=True, **settings)
    assert len(stored.objective.curve) == len(live.objective.curve) == 100
    assert stored.objective.curve == pytest.approx(live.objective.curve, rel=1e-4)
    assert stored.objective.curve[-1] < 0.7 * stored.objective.curve[0]
    for one, two in zip(history.rows, again.rows, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_a_run_that_was_ended_goes_on_to_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"rows": 30, "epochs": 4, "ema": 0.9, "accumulate": 2, "batch_size": 4}
    _, expected, history = run(tmp_path / "whole" / "run", **settings)
    folder = tmp_path / "ended" / "run"
    folder.parent.mkdir()
    step = loop.step

    def ended(network: Any, chosen: Any, group: Any, number: int, setting: Any) -> Any:
        if number == 6:  # within the second of four epochs
            raise KeyboardInterrupt
        return step(network, chosen, group, number, setting)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", ended)
        with pytest.raises(KeyboardInterrupt):
            run(folder, save_seconds=0.0, **settings)
    saved = torch.load(folder / LAST, weights_only=True)
    assert (saved["state"]["epoch"], saved["state"]["batch"]) in ((1, 2), (1, 4))
    assert "projections.hints_0.weight" in saved["network"]
    _, weights, again = run(folder, **settings)
    assert again.rows == history.rows
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert load_file(folder / BEST).keys() == expected.keys()


def test_projections_learn_beside_the_network_which_alone_is_the_result(tmp_path: Path) -> None:
    one, weights, history = run(tmp_path / "run", epochs=2, precision="bfloat16", weights="last")
    start = small_distillation.student_training(tmp_path / "start").student.state_dict()
    moved = {name for name in weights if not torch.equal(weights[name], start[name])}
    assert {name for name in moved if name.startswith("projections.")} == {
        f"projections.hints_{number}.{part}" for number in (0, 1) for part in ("weight", "bias")
    }
    assert (
        one.backbone.module.state_dict().keys()
        == small_training.backbone(tmp_path / "plain").module.state_dict().keys()
    )
    assert "validation_accuracy" in history.rows[0]
    assert not one.student.training


def test_projections_learn_at_the_full_rate_and_their_biases_do_not_decay(tmp_path: Path) -> None:
    one = small_distillation.student_training(tmp_path, learning_rate=0.1, layer_decay=0.5, weight_decay=0.2)
    groups = build_optimizer(one.student, one.trainable, one.context.config).param_groups
    weights, biases = groups[-2:]
    assert [(group["lr"], group["weight_decay"]) for group in (weights, biases)] == [(0.1, 0.2), (0.1, 0.0)]
    own = {id(parameter) for parameter in one.student.projections.parameters()}
    assert {id(parameter) for group in (weights, biases) for parameter in group["params"]} == own
    plain = build_optimizer(one.student.network, one.trainable, one.context.config).param_groups
    assert len(plain) == len(groups) - 2
    assert {id(parameter) for group in plain for parameter in group["params"]}.isdisjoint(own)


def test_accumulated_batches_take_the_step_of_one_large_batch(tmp_path: Path) -> None:
    # Without relations, which are of a batch, and without BatchNorm. 30 rows: the last group is short in both.
    settings = {"rows": 30, "epochs": 2, "batch_norm": "frozen", "weights": "last", "losses": NO_RELATIONS}
    _, large, _ = run(tmp_path / "large" / "run", batch_size=20, **settings)
    _, small, _ = run(tmp_path / "small" / "run", batch_size=5, accumulate=4, **settings)
    assert all(torch.allclose(large[name].float(), small[name].float(), atol=5e-5) for name in large)


def test_the_range_test_takes_a_student(tmp_path: Path) -> None:
    one = small_distillation.student_training(
        tmp_path, losses={"soft": {}, "hints": small_distillation.EVERYTHING["hints"]}
    )
    tested = range_test(one.student, one.samples, one.context, one.trainable)
    assert 1e-6 < tested.suggested <= 0.1
