"""Losses by the kind of task, class weights, mixing, and the schedules and groups of optimisers."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from pipeline.errors import ConfigError, TrainingError
from pipeline.training.config import LoopConfig
from pipeline.training.losses import SupervisedLoss, class_weights, mixing
from pipeline.training.optim import lr_factor, optimizer_of, set_lr

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [-1.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
LABELS = torch.tensor([0, 1, 1, 0])


def config(**settings: Any) -> LoopConfig:
    return LoopConfig.model_validate({"learning_rate": 0.001, **settings})


# Losses --------------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand_with_smoothing_and_weights() -> None:
    logs = LOGITS.log_softmax(dim=1)
    assert torch.allclose(SupervisedLoss("classification", 3)(LOGITS, LABELS), -logs[torch.arange(4), LABELS])
    smooth = SupervisedLoss("classification", 3, label_smoothing=0.3)
    shares = functional.one_hot(LABELS, 3) * 0.7 + 0.1
    assert torch.allclose(smooth(LOGITS, LABELS), -(shares * logs).sum(dim=1))
    assert torch.allclose(smooth.plain(LOGITS, LABELS), -logs[torch.arange(4), LABELS])
    heavy = SupervisedLoss("classification", 3, weights=torch.tensor([1.0, 5.0, 1.0]))
    plain = SupervisedLoss("classification", 3)(LOGITS, LABELS)
    assert torch.allclose(heavy(LOGITS, LABELS), plain * torch.tensor([1.0, 5.0, 5.0, 1.0]))


def test_shares_of_classes_are_targets_too() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    expected = -(shares * LOGITS.log_softmax(dim=1)).sum(dim=1)
    assert torch.allclose(SupervisedLoss("classification", 3)(LOGITS, shares), expected)


def test_binary_cross_entropy_by_hand() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    chance = LOGITS.sigmoid()
    by_hand = -(targets * chance.log() + (1 - targets) * (1 - chance).log())
    assert torch.allclose(SupervisedLoss("multilabel", 3)(LOGITS, targets), by_hand.mean(dim=1), atol=1e-6)
    heavy = SupervisedLoss("multilabel", 3, weights=torch.tensor([2.0, 1.0, 1.0]))
    by_hand[:, 0] *= torch.where(targets[:, 0] > 0, 2.0, 1.0)
    assert torch.allclose(heavy(LOGITS, targets), by_hand.mean(dim=1), atol=1e-6)


def test_squared_error_by_hand() -> None:
    found = SupervisedLoss("regression", 1)(torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 1.0]))
    assert found.tolist() == [1.0, 9.0]


def test_right_rows_by_kind() -> None:
    assert SupervisedLoss("classification", 3).right(LOGITS, LABELS).tolist() == [True, False, True, False]
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert SupervisedLoss("multilabel", 3).right(LOGITS, targets).tolist() == [True, True, False, True]
    assert not SupervisedLoss("regression", 1).right(LOGITS[:, :1], torch.zeros(4)).any()


@pytest.mark.parametrize(("label", "got"), [(3, "3"), (-1, "-1")])
def test_labels_outside_the_classes_are_refused(label: int, got: str) -> None:
    with pytest.raises(TrainingError) as caught:
        SupervisedLoss("classification", 3).check(torch.tensor([0, label, 2]), where="step 7")
    assert str(caught.value) == (
        f"step 7: expected labels from 0 to 2 (3 classes), got {got}. Are these the classes of the task?"
    )


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.array([0, 0, 0, 1, 1, 2])
    found = class_weights("balanced", targets, "classification", ["a", "b", "c"])
    assert found is not None
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert np.allclose(found.numpy(), expected)
    assert found[torch.from_numpy(targets)].mean().item() == pytest.approx(1.0)


def test_balanced_weights_of_a_multilabel_task_are_rows_without_over_rows_with() -> None:
    targets = np.array([[True, False], [True, True], [True, False], [False, False]])
    found = class_weights("balanced", targets, "multilabel", ["a", "b"])
    assert found is not None
    assert found.tolist() == pytest.approx([1 / 3, 3.0])


def test_weights_by_name_are_one_for_classes_left_out() -> None:
    found = class_weights({"b": 3.0}, np.array([0, 1]), "classification", ["a", "b"])
    assert found is not None
    assert found.tolist() == [1.0, 3.0]
    assert class_weights("none", np.array([0]), "classification", ["a"]) is None


def test_weights_for_unknown_classes_and_for_a_regression_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        class_weights({"cart": 3.0}, np.array([0]), "classification", ["cat", "dog"])
    assert str(caught.value) == ("class_weights: unknown class 'cart'. Did you mean 'cat'? Expected one of: cat, dog.")
    with pytest.raises(ConfigError, match="expected none for a regression, which has no classes"):
        class_weights("balanced", np.array([0.5]), "regression", [])


def test_mixing_keeps_shapes_and_gives_shares_that_add_up() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    for settings in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        mix = mixing(config(**settings), "classification", 3, (3, 8, 8))
        assert mix is not None
        torch.manual_seed(0)
        mixed, shares = mix(images, labels)
        assert mixed.shape == images.shape
        assert torch.allclose(shares.sum(dim=1), torch.ones(6))
        torch.manual_seed(0)
        assert torch.equal(mix(images, labels)[0], mixed)
    assert mixing(config(), "classification", 3, (3, 8, 8)) is None


@pytest.mark.parametrize(("kind", "shape"), [("regression", (3, 8, 8)), ("classification", (196, 768))])
def test_mixing_anything_but_a_classification_of_images_is_refused(kind: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="mixup, cutmix: expected a classification of images or maps, got a "):
        mixing(config(mixup=0.2), kind, 3, shape)


# Settings ------------------------------------------------------------------------------------------------------------


def test_settings_that_do_nothing_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="`momentum` belongs to `optimiser: sgd`"):
        config(momentum=0.5)
    with pytest.raises(ValidationError, match="`monitor` has no effect when the last weights are saved"):
        config(monitor="accuracy", weights="last", schedule="constant")


# Schedules -----------------------------------------------------------------------------------------------------------


def rates(steps: int = 100, **settings: Any) -> list[float]:
    return [lr_factor(config(**settings), step, steps, []) for step in range(steps)]


def torch_rates(make: Any, steps: int = 100) -> list[float]:
    """The learning rates of one of torch's own schedules, from a rate of one."""
    chosen = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(chosen), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is trained between the steps
        for _ in range(steps):
            found.append(chosen.param_groups[0]["lr"])
            schedule.step()
    return found


def test_cosine_is_that_of_torch_and_reaches_one_with_the_last_step_of_the_warm_up() -> None:
    expected = torch_rates(lambda chosen: torch.optim.lr_scheduler.CosineAnnealingLR(chosen, T_max=100))
    assert rates(schedule="cosine", warmup=0.0) == pytest.approx(expected)
    warm = rates(schedule="cosine", warmup=0.1)
    assert warm[:10] == pytest.approx([0.1 * number for number in range(1, 11)])
    assert warm[9:] == sorted(warm[9:], reverse=True)


def test_one_cycle_is_that_of_torch() -> None:
    expected = torch_rates(
        lambda chosen: torch.optim.lr_scheduler.OneCycleLR(chosen, 1.0, total_steps=101, cycle_momentum=False)
    )
    found = [lr_factor(config(schedule="one_cycle"), step, 101, []) for step in range(100)]
    assert found == pytest.approx(expected, abs=1e-9)
    assert all(0 < rate <= 1 for steps in (1, 2, 3, 4) for rate in rates(steps, schedule="one_cycle"))


def test_steps_are_those_of_torch() -> None:
    expected = torch_rates(lambda chosen: torch.optim.lr_scheduler.MultiStepLR(chosen, [50, 75], gamma=0.1))
    assert rates(schedule="step", warmup=0.0) == pytest.approx(expected)
    assert rates(schedule="constant", warmup=0.0) == [1.0] * 100


def test_a_plateau_lowers_the_rate_after_so_many_epochs_without_a_better_validation() -> None:
    settings = config(schedule="plateau", warmup=0.0)

    def after(*validation: float) -> float:
        return lr_factor(settings, 5, 100, validation)

    assert after(3, 2, 1) == 1.0
    assert after(3, 2, 2.5, 2.5) == 1.0
    assert after(3, 2, 2.5, 2.5, 2.5) == 0.1
    assert after(3, 2, 2.5, 2.5, 2.5, 2.5) == 0.1
    assert after(3, 2, *[2.5] * 6) == pytest.approx(0.01)


def test_groups_keep_their_own_rates_and_decays_under_a_schedule() -> None:
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [one], "lr": 0.1, "weight_decay": 0.0}, {"params": [two], "lr": 0.01, "weight_decay": 0.5}]
    for name in ("adamw", "sgd"):
        chosen = optimizer_of(groups, config(optimiser=name))
        set_lr(chosen, 0.5)
        assert [group["lr"] for group in chosen.param_groups] == [0.05, 0.005]
        assert [group["weight_decay"] for group in chosen.param_groups] == [0.0, 0.5]
