"""The losses of distillation against values worked out by hand, their settings, and the objective made of them."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.backbones.spec import Tap
from pipeline.distill import kd_losses
from pipeline.distill.feature_pairs import FeaturePair
from pipeline.distill.loss import DistillationLoss, OutputSlice
from pipeline.distill.losses_config import LossesConfig, at
from pipeline.distill.online_teacher import TeacherOutput
from pipeline.distill.student import Output
from pipeline.distill.targets import DistillTargets
from pipeline.errors import TrainingError
from pipeline.settings.check import Section, check
from pipeline.settings.messages import in_yaml
from pipeline.training.losses import SupervisedLoss

pytestmark = pytest.mark.usefixtures("one_thread")

STUDENT = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])
TEACHER = np.array([[2.0, 1.0, -1.0], [0.5, 0.5, 3.0]])
ALL = torch.ones(2, dtype=torch.bool)


def rows(values: Any) -> Tensor:
    """Values that a gradient is wanted of."""
    return torch.tensor(np.asarray(values), dtype=torch.float32, requires_grad=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits)
    return found / found.sum(axis=-1, keepdims=True)


def divergence(wanted: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of Kullback and Leibler, of probabilities."""
    return (wanted * np.log(wanted / own)).sum(axis=-1)


def losses(**settings: Any) -> LossesConfig:
    return LossesConfig.model_validate(settings)


# Each loss by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_by_hand(temperature: float) -> None:
    found = kd_losses.soft(rows(STUDENT), rows(TEACHER), temperature=temperature)
    wanted = temperature**2 * divergence(softmax(TEACHER / temperature), softmax(STUDENT / temperature))
    assert found.detach().numpy() == pytest.approx(wanted, rel=1e-4)
    # Two classes, T = 1: the teacher says 3/4, 1/4 and the student a half each.
    teacher = torch.tensor([[np.log(3.0), 0.0]])
    by_hand = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert kd_losses.soft(torch.zeros(1, 2), teacher, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-5)


def test_soft_targets_have_the_gradient_of_the_paper() -> None:
    # Equation 2: dC/dz = (q - p) / T; times T squared.
    student = rows(STUDENT)
    kd_losses.soft(student, torch.tensor(TEACHER).float(), temperature=3.0).sum().backward()
    expected = 3.0 * (softmax(STUDENT / 3) - softmax(TEACHER / 3))
    assert student.grad is not None
    assert student.grad.numpy() == pytest.approx(expected, rel=1e-4)


@given(
    st.lists(st.floats(-3, 3), min_size=8, max_size=8).filter(lambda values: float(np.std(values[:4])) > 0.1),
    st.floats(20, 200),
    st.booleans(),
)
def test_the_gradient_keeps_its_size_at_any_temperature(values: list[float], temperature: float, binary: bool) -> None:
    teacher, loss = torch.tensor(values).view(2, 4), kd_losses.soft_binary if binary else kd_losses.soft

    def gradient(temperature: float) -> Tensor:
        student = torch.zeros(2, 4, requires_grad=True)
        (found,) = torch.autograd.grad(loss(student, teacher, temperature=temperature).sum(), student)
        return found

    # The limit of the paper's equation 4 is the difference of the logits, over the number of classes.
    one, other = gradient(temperature), gradient(10 * temperature)
    assert float(one.norm()) == pytest.approx(float(other.norm()), rel=0.1)
    assert torch.allclose(one, other, atol=0.1 * float(other.norm()))


def test_soft_targets_of_a_multilabel_task_are_a_choice_of_two_in_each_class() -> None:
    found = kd_losses.soft_binary(rows(STUDENT), rows(TEACHER), temperature=2.0)
    own, wanted = (1 / (1 + np.exp(-logits / 2)) for logits in (STUDENT, TEACHER))
    by_hand = divergence(np.stack([wanted, 1 - wanted], axis=2), np.stack([own, 1 - own], axis=2))
    assert found.detach().numpy() == pytest.approx(4 * by_hand.mean(axis=1), rel=1e-4)


def test_decoupled_distillation_by_hand() -> None:
    own, wanted, classes = softmax(STUDENT / 2), softmax(TEACHER / 2), np.array([0, 2])
    expected = []
    for row, target in enumerate(classes):
        others = [number for number in range(3) if number != target]
        both, wanted_both = (np.array([values[row, target], 1 - values[row, target]]) for values in (own, wanted))
        among, wanted_among = (values[row, others] / values[row, others].sum() for values in (own, wanted))
        parts = 1.5 * divergence(wanted_both, both) + 6.0 * divergence(wanted_among, among)
        expected.append(4 * parts)
    found = kd_losses.decoupled(
        rows(STUDENT), rows(TEACHER), torch.from_numpy(classes), temperature=2.0, alpha=1.5, beta=6.0
    )
    assert found.detach().numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_decoupled_losses_add_up_to_soft_targets() -> None:
    # Zhao et al., equation 6: KD = TCKD + (1 - p of the target) NCKD.
    classes, teacher = torch.tensor([0, 2]), torch.tensor(TEACHER).float()
    options = {"temperature": 1.0, "alpha": 1.0, "beta": 0.0}
    target = kd_losses.decoupled(rows(STUDENT), teacher, classes, **options)
    among = kd_losses.decoupled(rows(STUDENT), teacher, classes, **{**options, "alpha": 0.0, "beta": 1.0})
    left = 1 - teacher.softmax(dim=1)[torch.arange(2), classes]
    assert torch.allclose(target + left * among, kd_losses.soft(rows(STUDENT), teacher, temperature=1.0), rtol=1e-4)


def test_hints_by_hand() -> None:
    # Differences 1, 2 and 0, 4: half of (1 + 4) / 2, and of 16 / 2.
    student, teacher = rows([[[1.0, 2.0]], [[3.0, 4.0]]]), rows([[[2.0, 0.0]], [[3.0, 0.0]]])
    assert kd_losses.hint(student, teacher).tolist() == [1.25, 4.0]


def test_attention_by_hand() -> None:
    # Two channels of two pixels: squares add up to (9, 16) and (16, 9), over their norm 18.358.
    student = rows([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    teacher = rows([[[[4.0, 3.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    apart = np.array([9.0, 16.0]) - np.array([16.0, 9.0])
    expected = 0.5 * np.linalg.norm(apart) / np.hypot(9, 16)
    assert kd_losses.attention(student, teacher).tolist() == pytest.approx([expected])
    assert kd_losses.attention(student, student * -3).item() == pytest.approx(0, abs=1e-6)


def test_distances_by_hand() -> None:
    # On a line: the student's distances are 1, 2, 3 with the mean 2, the teacher's 3, 3, 6 with the mean 4.
    student, teacher = rows([[0.0], [1.0], [3.0]]), rows([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0]])

    def huber(one: float, two: float) -> float:
        return 0.5 * (one - two) ** 2 if abs(one - two) < 1 else abs(one - two) - 0.5

    pairs = {(0, 1): huber(1 / 2, 3 / 4), (1, 2): huber(2 / 2, 3 / 4), (0, 2): huber(3 / 2, 6 / 4)}
    expected = [np.mean([value for pair, value in pairs.items() if row in pair]) for row in range(3)]
    known = torch.ones(3, dtype=torch.bool)
    assert kd_losses.distance(student, teacher, known).tolist() == pytest.approx(expected)
    # Far apart Huber's loss is linear: of two rows each distance is the mean.
    far = kd_losses.distance(rows([[0.0], [0.1], [8.0]]), rows([[0.0], [8.0], [8.1]]), known)
    mean = (0.1 + 7.9 + 8.0) / 3
    by_hand = [(huber(0.1 / mean, 8 / mean) + huber(8 / mean, 8.1 / mean)) / 2]
    assert 7.9 / mean > 1
    assert far[0].item() == pytest.approx(by_hand[0], rel=0.02)


def test_angles_by_hand() -> None:
    # A right angle at the first row and 45 degrees at the others; the teacher's rows lie on a line.
    student, teacher = rows([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), rows([[0.0], [1.0], [-1.0]])
    half = np.sqrt(0.5)
    # Cosines of the teacher: -1 between the two sides of the first row, 1 at both ends.
    expected = [0.5 * 1.0**2, 0.5 * (1 - half) ** 2, 0.5 * (1 - half) ** 2]
    found = kd_losses.angle(student, teacher, torch.ones(3, dtype=torch.bool))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [kd_losses.distance, kd_losses.angle])
def test_relations_are_those_of_the_rows_that_the_teacher_knows(loss: Any) -> None:
    random = np.random.default_rng(0)
    student, teacher = rows(random.normal(size=(6, 4))), rows(random.normal(size=(6, 3)))
    known = torch.tensor([True, False, True, True, False, True])
    found = loss(student, teacher, known)
    alone = loss(student[known], teacher[known], torch.ones(4, dtype=torch.bool))
    assert torch.allclose(found[known], alone)
    assert found[~known].tolist() == [0.0, 0.0]
    assert torch.allclose(loss(student, student * 7, known), torch.zeros(6), atol=1e-5)
    for lonely in (torch.zeros(6, dtype=torch.bool), torch.arange(6) == 2):
        assert loss(student, teacher, lonely).tolist() == [0.0] * 6


LOSSES: dict[str, Any] = {
    "soft": lambda own, wanted: kd_losses.soft(own, wanted, temperature=0.5),
    "soft_binary": lambda own, wanted: kd_losses.soft_binary(own, wanted, temperature=0.5),
    "decoupled": lambda own, wanted: kd_losses.decoupled(
        own, wanted, wanted.argmax(dim=1), temperature=0.5, alpha=1.0, beta=8.0
    ),
    "hint": kd_losses.hint,
    "attention": lambda own, wanted: kd_losses.attention(own[:, :, None, None], wanted[:, :, None, None]),
    "distance": lambda own, wanted: kd_losses.distance(own, wanted, torch.ones(len(own), dtype=torch.bool)),
    "angle": lambda own, wanted: kd_losses.angle(own, wanted, torch.ones(len(own), dtype=torch.bool)),
}


@pytest.mark.parametrize("name", LOSSES)
@given(values=st.lists(st.sampled_from([0.0, 0.0, 1e-6, 1.0, -2.0, 60.0, -90.0]), min_size=12, max_size=12))
def test_losses_and_gradients_are_finite_and_no_loss_is_negative(name: str, values: list[float]) -> None:
    own, wanted = (torch.tensor(values[start:] + values[:start]).view(4, 3) for start in (0, 5))
    student = own.clone().requires_grad_()
    found = LOSSES[name](student, wanted)
    assert found.shape == (4,)
    assert bool((found >= -1e-4).all())
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert bool(torch.isfinite(found).all() and torch.isfinite(gradient).all())
    same = own.clone().requires_grad_()  # where both agree
    found = LOSSES[name](same, own)
    (gradient,) = torch.autograd.grad(found.sum(), same)
    assert found.abs().max().item() < 1e-3
    assert bool(torch.isfinite(gradient).all())


# Settings ------------------------------------------------------------------------------------------------------------


def refused(raw: Any) -> list[str]:
    """What the check of a settings file says of losses."""
    return check({"losses": raw}, {"losses": Section(LossesConfig)})[1]


@pytest.mark.parametrize(("temperature", "got"), [(0, ""), (-1.5, ", got -1.5")])
@pytest.mark.parametrize("name", ["soft", "decoupled"])
def test_a_temperature_of_zero_or_below_is_refused(name: str, temperature: float, got: str) -> None:
    assert refused({name: {"temperature": temperature}}) == [
        f"losses.{name}.temperature: expected greater than 0{got}."
    ]


@pytest.mark.parametrize(
    "raw",
    [{}, {"labels": 0}, {"labels": 0.0, "soft": {"weight": 0}}, {"relational": {"distance": [0, 0], "angle": 0}}],
)
def test_losses_of_no_weight_are_refused(raw: Any) -> None:
    assert refused(raw) == [
        "losses: expected a loss with a weight above zero, such as `soft: {weight: 0.9, temperature: 4}`."
    ]


def test_weights_that_are_none_are_refused() -> None:
    for weight in (-1, [1, -1], [], [1, 2, 3], True):
        assert refused({"soft": {"weight": weight}}) == [
            "losses.soft.weight: expected a number of at least 0, or two such numbers, [from, to], got "
            f"{in_yaml(weight)}."
        ]
    for weight in ("much", float("nan"), float("inf")):
        with pytest.raises(
            ValidationError, match=r"expected a number of at least 0, or two such numbers, \[from, to\]"
        ):
            losses(labels=weight)
    assert refused({"sofd": {}}) == [
        "losses: unknown key 'sofd'. Did you mean 'soft'? Expected one of: attention, decoupled, hints, labels, "
        "relational, soft."
    ]


def test_losses_tell_what_they_need() -> None:
    found = losses(
        labels=0.1,
        hints=[{"student": "block1", "teacher": "a"}, {"student": "block2", "teacher": "b", "weight": 0}],
        attention=[{"student": "block1", "teacher": "a"}],
        relational={"angle": 0},
    )
    assert found.of_teacher == ("hints.0", "attention.0", "relational.distance")
    assert found.hint_names == ("a", "b", "penultimate")
    assert losses(labels=1).of_teacher == ()


def test_weights_change_in_a_line_over_the_training() -> None:
    assert [at((1.0, 0.0), share) for share in (0, 0.25, 1)] == [1.0, 0.75, 0.0]
    assert at(0.3, 0.7) == 0.3


# The objective -------------------------------------------------------------------------------------------------------


def signals(**changes: Any) -> DistillTargets:
    """Four rows of one branch of three classes: two with labels, all but the last known to the teacher."""
    values = {
        "labels": torch.tensor([[0], [-1], [2], [-1]]),
        "logits": torch.tensor(np.concatenate([TEACHER, TEACHER[::-1]])).float(),
        "known": torch.tensor([[True], [True], [True], [False]]),
    }
    return DistillTargets(**{**values, **changes})


def output(**rows: Tensor) -> Output:
    logits = torch.tensor(np.concatenate([STUDENT, STUDENT[::-1] * 2])).float().requires_grad_()
    return Output(logits, rows, None)


ONE = (OutputSlice("digits", "classification", 0, 3),)


def test_rows_without_a_label_or_a_teacher_have_no_loss_of_it() -> None:
    found = DistillationLoss(ONE, losses(labels=0.5, soft={"weight": 2.0, "temperature": 3.0}), {})(output(), signals())
    logits, teacher = output().logits, signals().logits
    of_labels = SupervisedLoss("classification", 3)(logits, torch.tensor([0, 0, 2, 0])) * torch.tensor([1, 0, 1, 0])
    of_teacher = kd_losses.soft(logits, teacher, temperature=3.0) * torch.tensor([1, 1, 1, 0])
    assert torch.allclose(found, 0.5 * of_labels + 2.0 * of_teacher)
    assert found[3].item() == 0.0


def test_the_target_class_of_a_row_without_a_label_is_the_teachers_first_choice() -> None:
    found = DistillationLoss(ONE, losses(decoupled={"temperature": 2.0}), {})(output(), signals())
    classes = torch.tensor([0, 2, 2, 0])  # of the second row the teacher's
    expected = kd_losses.decoupled(
        output().logits, signals().logits, classes, temperature=2.0, alpha=1.0, beta=8.0
    ) * torch.tensor([1, 1, 1, 0])
    assert torch.allclose(found, expected)


def test_weights_follow_the_training() -> None:
    objective = DistillationLoss(ONE, losses(labels=[1.0, 0.0], soft={"weight": [0.0, 2.0]}), {})
    of_labels = DistillationLoss(ONE, losses(labels=1.0), {})(output(), signals())
    of_teacher = DistillationLoss(ONE, losses(soft={}), {})(output(), signals())
    for share in (0.0, 0.25, 1.0):
        objective.advance(share)
        expected = (1 - share) * of_labels + 2 * share * of_teacher
        assert torch.allclose(objective(output(), signals()), expected)


def test_branches_have_their_own_columns_labels_and_teachers() -> None:
    branches = (OutputSlice("colour", "classification", 0, 2), OutputSlice("marks", "multilabel", 2, 5))
    logits, teacher = torch.randn(4, 5), torch.randn(4, 5)
    truth = torch.tensor([[0, 0, 1, 0, 1.0]] * 4)
    given = DistillTargets(
        labels=torch.tensor([[1, -1], [-1, 0], [0, 0], [-1, -1]]),
        logits=teacher,
        known=torch.tensor([[True, False], [False, True], [True, True], [False, False]]),
        truth=truth,
    )
    config = losses(labels=1.0, soft={"temperature": 2.0})
    weights = {"colour": torch.tensor([1.0, 3.0]), "marks": None}
    objective = DistillationLoss(branches, config, {}, label_smoothing=0.1, weights=weights)
    found = objective(Output(logits, {}, None), given)
    colour = SupervisedLoss("classification", 2, label_smoothing=0.1, weights=weights["colour"])
    first = colour(logits[:, :2], torch.tensor([1, 0, 0, 0]))
    first = first + kd_losses.soft(logits[:, :2], teacher[:, :2], temperature=2.0)
    second = SupervisedLoss("multilabel", 3, label_smoothing=0.1)(logits[:, 2:], truth[:, 2:])
    second = second + kd_losses.soft_binary(logits[:, 2:], teacher[:, 2:], temperature=2.0)
    expected = torch.stack([first[0], second[1], first[2] + second[2], torch.tensor(0.0)])
    assert torch.allclose(found, expected, rtol=1e-5)
    assert objective.kind == "classification"
    assert objective.outputs == 5
    assert (
        objective.right(logits, given)[[0, 2]].tolist()
        == (logits[[0, 2], :2].argmax(dim=1) == torch.tensor([1, 0])).tolist()
    )


def test_validation_measures_the_labels_of_the_first_branch() -> None:
    objective = DistillationLoss(ONE, losses(soft={}), {}, label_smoothing=0.2)
    labelled = signals()[torch.tensor([0, 2])]
    logits = output().logits.detach()[[0, 2]]
    assert torch.allclose(
        objective.plain(logits, labelled), SupervisedLoss("classification", 3)(logits, torch.tensor([0, 2]))
    )
    with pytest.raises(TrainingError) as caught:
        objective.plain(output().logits, signals())
    assert str(caught.value) == (
        "validation: expected a label of each row in 'digits', got 2 rows without. Validate on labelled rows."
    )


def test_a_live_teacher_speaks_of_every_row() -> None:
    objective = DistillationLoss(ONE, losses(soft={}), {})
    silent = signals(logits=torch.zeros(4, 0), known=torch.zeros(4, 1, dtype=torch.bool))
    live = Output(output().logits, {}, TeacherOutput(signals().logits, {}))
    expected = kd_losses.soft(output().logits, signals().logits, temperature=4.0)
    assert torch.allclose(objective(live, silent), expected)


def test_nodes_are_compared_by_their_pairs() -> None:
    vectors = FeaturePair("a", "t", Tap(shape=(2,)), Tap(shape=(2,)), "vector", projected=True)
    maps = FeaturePair("b", "m", Tap(shape=(1, 2, 2), layout="CHW"), Tap(shape=(2, 4, 4), layout="CHW"), "map", (2, 2))
    flat = FeaturePair("a", "t", Tap(shape=(2,)), Tap(shape=(2,)), "flat")
    pairs = {"hints.0": vectors, "attention.0": maps, "relational": flat}
    config = losses(
        hints=[{"student": "a", "teacher": "t", "weight": 2}],
        attention=[{"student": "b", "teacher": "m", "weight": 3}],
        relational={"distance": 5, "angle": 7, "teacher": "t"},
    )
    random = torch.Generator().manual_seed(0)
    own, one = torch.randn(4, 2, generator=random), torch.rand(4, 1, 2, 2, generator=random)
    hints = {"t": torch.randn(4, 2, generator=random), "m": torch.rand(4, 2, 4, 4, generator=random)}
    given = signals(hints={name: value.half() for name, value in hints.items()})
    found = DistillationLoss(ONE, config, pairs)(
        output(**{"hints.0": own, "attention.0": one, "relational": own}), given
    )
    known, teacher = given.known[:, 0], {name: value.half().float() for name, value in hints.items()}
    small = torch.nn.functional.avg_pool2d(teacher["m"], 2)
    expected = known * (2 * kd_losses.hint(own, teacher["t"]) + 3 * kd_losses.attention(one, small))
    expected = expected + 5 * kd_losses.distance(own, teacher["t"], known)
    expected = expected + 7 * kd_losses.angle(own, teacher["t"], known)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_a_loss_without_the_signal_that_it_needs_is_refused() -> None:
    objective = DistillationLoss(ONE, losses(labels=1.0, soft={}, decoupled={}), {})
    for width, got in ((0, "none"), (2, "2")):
        with pytest.raises(TrainingError) as caught:
            objective(output(), signals(logits=torch.zeros(4, width)))
        assert str(caught.value) == (
            f"soft and decoupled: expected a teacher's logits of 3 classes, got {got}. Give the run a `teacher` of its "
            "classes, or leave the loss out."
        )
    pair = FeaturePair("a", "block2", Tap(shape=(2,)), Tap(shape=(2,)), "vector", projected=True)
    config = losses(hints=[{"student": "a", "teacher": "block2"}])
    with pytest.raises(TrainingError) as caught:
        DistillationLoss(ONE, config, {"hints.0": pair})(output(), signals(hints={"block1": torch.zeros(4, 2)}))
    assert str(caught.value) == (
        "hints.0: expected the teacher's rows of 'block2', got block1. Add it to the `hints` of the teacher, or leave "
        "the loss out."
    )


def test_kinds_that_cannot_be_distilled_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"^price: expected classes to distil, got a regression\."):
        DistillationLoss((OutputSlice("price", "regression", 0, 1),), losses(soft={}), {})
    marks = (OutputSlice("marks", "multilabel", 0, 3),)
    with pytest.raises(TrainingError, match=r"^marks: expected one target class per row for `decoupled`, got a multil"):
        DistillationLoss(marks, losses(decoupled={}), {})
    with pytest.raises(TrainingError) as caught:
        DistillationLoss(marks, losses(labels=1.0), {})(output(), signals())
    assert str(caught.value) == (
        "marks: expected the classes of each row, float32 (n, 3), of a multilabel task, got none. Give `truth` with "
        "the signals."
    )


def test_labels_without_an_output_are_refused() -> None:
    objective = DistillationLoss((*ONE, OutputSlice("parity", "classification", 3, 5)), losses(labels=1.0), {})
    labels = torch.tensor([[0, 1], [-1, -1], [2, 2], [1, -1]])
    given = signals(labels=labels, known=torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(TrainingError, match=r"^step 3, parity: expected labels from 0 to 1 \(2 classes\), got 2\."):
        objective.check(given, where="step 3")
    objective.check(given[torch.tensor([0, 1, 3])], where="step 3")


# Signals -------------------------------------------------------------------------------------------------------------


def test_signals_are_cut_and_moved_as_one() -> None:
    given = signals(hints={"block2": torch.arange(8.0).view(4, 2)}, truth=torch.eye(4)[:, :3])
    part = given[torch.tensor([2, 0])].to("cpu")
    assert len(part) == 2
    assert part.labels.tolist() == [[2], [0]]
    assert part.hints["block2"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert part.truth is not None
    assert torch.equal(part.truth, torch.eye(4)[[2, 0], :3])
    assert torch.equal(part.logits, given.logits[[2, 0]])
    assert part.known.tolist() == [[True], [True]]


def test_signals_of_different_length_are_refused() -> None:
    message = (
        "targets: expected the same number of rows in each part, got labels 4, logits 4, known 4, hint block2 3. Read "
        "them for the same keys."
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        signals(hints={"block2": torch.zeros(3, 2)})
