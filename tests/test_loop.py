"""The training loop: what it learns, that a killed run ends as one that was not, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import preloaded, small_training
from torch import Tensor, nn

from pipeline.errors import ConfigError, TrainingError
from pipeline.runtime import Reporter
from pipeline.training.checkpoint import BEST, LAST
from pipeline.training.config import FromTap
from pipeline.training.data import Batch
from pipeline.training.early_stopping import History
from pipeline.training.loop import TrainContext, make_fabric, predict_logits, step, steps_per_epoch, train
from pipeline.training.losses import SupervisedLoss, mixing
from pipeline.training.lr_finder import range_test, suggest_rate
from pipeline.training.optim import optimizer_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training leaves the choice of torch's kernels as it was."""
    before = torch.get_deterministic_debug_mode()
    yield
    assert torch.get_deterministic_debug_mode() == before


def run(folder: Path, *, rows: int = 30, validation: int | None = 15, frozen: Any = None, **settings: Any) -> Any:
    """Train a fresh network; returns its weights and the history."""
    found = small_training.backbone(folder.parent / "backbone")
    parts = {name: settings.pop(name) for name in ("save_seconds", "curves", "reporter") if name in settings}
    history = train(
        found.module,
        small_training.samples(rows),
        None if validation is None else small_training.samples(validation, seed=1),
        small_training.setting(**settings),
        small_training.all_of(found, **(frozen or {})),
        folder=folder,
        **parts,
    )
    return {name: value.clone() for name, value in found.module.state_dict().items()}, history


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Learning ------------------------------------------------------------------------------------------------------------


def test_it_learns_tells_of_each_epoch_and_keeps_the_best_and_the_last_weights(tmp_path: Path) -> None:
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    weights, history = run(
        tmp_path / "run",
        epochs=6,
        learning_rate=0.01,
        reporter=Reporter(log=lines.append, progress=lambda done, total: steps.append((done, total))),
    )
    assert history.stopped == "all epochs"
    assert [row["epoch"] for row in history.rows] == list(range(6))
    assert history.rows[-1]["loss"] < 0.7 * history.rows[0]["loss"]
    assert max(row["validation_accuracy"] for row in history.rows) > 0.6
    assert lines[0].startswith("epoch 1 of 6: learning rate ")
    assert steps[0] == (1, 24)
    assert steps[-1] == (24, 24)
    losses = [row["validation_loss"] for row in history.rows]
    assert history.best == losses.index(min(losses))
    from safetensors.torch import load_file

    assert same(weights, load_file(tmp_path / "run" / BEST))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimiser": "sgd", "schedule": "step", "clip": 1.0},
        {"ema": 0.5, "schedule": "plateau", "monitor": "accuracy"},
        {"schedule": "one_cycle", "precision": "bfloat16", "weights": "last"},
    ],
)
def test_the_same_settings_give_the_same_weights(tmp_path: Path, settings: Any) -> None:
    one, first = run(tmp_path / "one", **settings)
    torch.manual_seed(7)  # what was drawn before does not matter
    two, second = run(tmp_path / "two", **settings)
    assert same(one, two)
    assert first == second


def test_the_moving_average_is_what_is_measured_and_kept(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", weights="last", epochs=1)
    average, _ = run(tmp_path / "average", weights="last", epochs=1, ema=0.0)
    slow, _ = run(tmp_path / "slow", weights="last", epochs=1, ema=0.99)
    name = "classifier.weight"
    assert torch.allclose(average[name], plain[name])  # without memory the average is the last value
    start = small_training.backbone(tmp_path / "start").module.state_dict()[name]
    assert (slow[name] - start).norm() < (plain[name] - start).norm()


def test_accumulated_batches_take_the_step_of_one_large_batch(tmp_path: Path) -> None:
    # Without BatchNorm, whose statistics are of a batch. 30 rows: the last group is short in both.
    settings = {"epochs": 2, "frozen": {"batch_norm": "frozen"}, "weights": "last", "clip": 0.5}
    large, _ = run(tmp_path / "large", batch_size=20, **settings)
    small, _ = run(tmp_path / "small", batch_size=5, accumulate=4, **settings)
    for name in large:
        assert torch.allclose(large[name].float(), small[name].float(), atol=2e-5), name


def test_patience_stops_when_validation_gets_no_better(tmp_path: Path) -> None:
    _, history = run(tmp_path / "run", epochs=50, patience=2, learning_rate=1e-12)
    losses = [row["validation_loss"] for row in history.rows]
    assert history.stopped == "no better validation for 2 epochs"
    assert len(losses) < 50
    assert history.best == len(losses) - 3 == losses.index(min(losses))


def test_without_validation_the_last_weights_are_the_best(tmp_path: Path) -> None:
    _, history = run(tmp_path / "run", validation=None)
    assert history.best == 2
    assert "validation_loss" not in history.rows[0]


def test_mixing_and_smoothing_are_of_training_alone(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")
    plain = small_training.setting(epochs=1, mixup=0.4, cutmix=1.0)
    mix = mixing(plain.config, "classification", small_training.CLASSES, (1, 32, 32))
    setting = TrainContext(
        plain.config,
        SupervisedLoss("classification", small_training.CLASSES, label_smoothing=0.1),
        plain.fabric,
        small_training.enter,
        mix,
    )
    valid = small_training.samples(12, seed=1)
    history = train(
        found.module, small_training.samples(24), valid, setting, small_training.all_of(found), folder=tmp_path / "run"
    )
    logits = torch.cat([one for one, _ in predict_logits(found.module, valid, plain)])
    expected = nn.functional.cross_entropy(logits, valid.targets)
    assert history.rows[0]["validation_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_statistics_are_computed_anew_at_the_end_where_that_is_asked_for(tmp_path: Path) -> None:
    trained, _ = run(tmp_path / "trained", weights="last")
    anew, _ = run(tmp_path / "anew", weights="last", frozen={"batch_norm": "recalibrate"})
    moved = [name for name in trained if not torch.equal(trained[name], anew[name])]
    assert moved
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)


def test_frozen_parts_do_not_move(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")
    frozen = small_training.all_of(found, what=FromTap(from_tap="block2"))
    before = frozen.digest()
    state = {name: value.clone() for name, value in found.module.state_dict().items()}
    train(found.module, small_training.samples(24), None, small_training.setting(), frozen, folder=tmp_path / "run")
    assert frozen.digest() == before
    after = found.module.state_dict()
    moved = {name.split(".")[0] for name in state if not torch.equal(state[name], after[name])}
    assert moved == {"block3", "classifier"}


def test_unfreezing_trains_more_from_its_epoch_on(tmp_path: Path) -> None:
    def moved(epochs: int) -> set[str]:
        found = small_training.backbone(tmp_path / "backbone")
        state = {name: value.clone() for name, value in found.module.state_dict().items()}
        frozen = small_training.all_of(found, what="head", unfreeze={1: "block2", 2: "input"})
        setting = small_training.setting(epochs=epochs, warmup=0.0, schedule="constant")
        train(found.module, small_training.samples(24), None, setting, frozen, folder=tmp_path / f"run{epochs}")
        after = found.module.state_dict()
        return {name.split(".")[0] for name in state if not torch.equal(state[name], after[name])}

    assert moved(1) == {"classifier"}
    assert moved(2) == {"block3", "classifier"}
    assert moved(3) == {"block1", "block2", "block3", "classifier"}


def test_curves_are_files_for_dvc_plots_also_in_a_repository_without_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    _, history = run(tmp_path / "run", epochs=3, curves=tmp_path / "curves")
    table = (tmp_path / "curves" / "plots" / "metrics" / "validation_loss.tsv").read_text().split("\n")
    assert table[0].split() == ["step", "validation_loss"]
    assert [float(line.split()[1]) for line in table[1:4]] == [row["validation_loss"] for row in history.rows]
    last = json.loads((tmp_path / "curves" / "metrics.json").read_text())
    assert (last["step"], last["validation_loss"]) == (2, history.rows[-1]["validation_loss"])
    assert not list(tmp_path.rglob("dvc.yaml"))
    assert not (tmp_path / ".dvc").exists()


# Going on ------------------------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
import torch
from pipeline.runtime import Reporter
from pipeline.training.loop import train
from support import small_training
torch.set_num_threads(1)
folder = Path(sys.argv[1])
found = small_training.backbone(folder.parent / "backbone")
valid = small_training.samples(15, seed=1)
setting = small_training.setting(epochs=4, ema=0.9, accumulate=2, batch_size=4, learning_rate=0.01)
train(found.module, small_training.samples(30), valid, setting, small_training.all_of(found), folder=folder,
      save_seconds=0.0, curves=folder / "curves",
      reporter=Reporter(progress=lambda done, total: print(done, flush=True)))
"""


def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    settings = {"epochs": 4, "ema": 0.9, "accumulate": 2, "batch_size": 4, "learning_rate": 0.01}
    expected, history = run(tmp_path / "whole" / "run", **settings)
    folder = tmp_path / "killed" / "run"
    folder.parent.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 6:  # within the second of four epochs
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    state = torch.load(folder / LAST, weights_only=True)["state"]
    assert (state["epoch"], state["batch"]) in ((1, 2), (1, 4))
    weights, again = run(folder, curves=folder / "curves", save_seconds=0.0, **settings)
    assert again.rows == history.rows
    assert again.best == history.best
    assert same(weights, expected)
    table = (folder / "curves" / "plots" / "metrics" / "loss.tsv").read_text().split("\n")
    assert [float(line.split()[1]) for line in table[1:5]] == [row["loss"] for row in history.rows]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    weights, history = run(tmp_path / "run")
    again, same_history = run(
        tmp_path / "run", reporter=Reporter(progress=lambda _done, _total: pytest.fail("trained again"))
    )
    assert same(weights, again)
    assert same_history == history


def test_a_checkpoint_is_safe_to_load(tmp_path: Path) -> None:
    run(tmp_path / "run", ema=0.9)
    saved = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert saved["state"]["epoch"] == 3
    assert json.loads(saved["settings"])["loop"]["ema"] == 0.9


def test_other_settings_do_not_go_on_with_a_run_and_all_of_them_are_named(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(TrainingError) as caught:
        run(tmp_path / "run", learning_rate=0.5, clip=1.0)
    assert str(caught.value).split("\n") == [
        f"{tmp_path / 'run' / LAST}: expected to resume with the settings of the checkpoint, got others",
        "  - loop.clip: expected None, got 1.0",
        "  - loop.learning_rate: expected 0.001, got 0.5",
        "  - Train into another folder, or remove this one.",
    ]


# What cannot be trained ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")
    spoiled = small_training.samples(24)
    clean = small_training.enter

    def enter(pixels: Tensor) -> Tensor:
        calls.append(1)
        return clean(pixels) * (float("nan") if len(calls) > 4 else 1.0)

    calls: list[int] = []
    plain = small_training.setting(epochs=5, warmup=0.0, schedule="constant", learning_rate=0.01)
    setting = TrainContext(plain.config, plain.objective, plain.fabric, enter)
    with pytest.raises(TrainingError) as caught:
        train(found.module, spoiled, None, setting, small_training.all_of(found), folder=tmp_path / "run")
    assert str(caught.value) == (
        "step 4, learning rate 0.01: expected a finite loss, got nan. The last good checkpoint is "
        f"{tmp_path / 'run' / LAST}. Lower `learning_rate`, set `clip`, or warm up longer."
    )
    saved = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert saved["state"]["epoch"] == 1
    assert all(bool(torch.isfinite(value.float()).all()) for value in saved["network"].values())


def test_a_loss_that_explodes_is_refused_by_its_weights_or_numbers(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"expected (a )?finite .* There is no checkpoint before it\."):
        run(tmp_path / "run", learning_rate=1e38, optimiser="sgd", warmup=0.0, schedule="constant", rows=8, epochs=2)
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [
        (5, 1, r"batch: expected at least two samples, .* got 1\. Set a larger `batch_size` or `batch_norm: frozen`"),
        (1, 8, r"training rows: expected at least two, .* got 1\. Train on more samples, or set `batch_norm: frozen`"),
        (1, 1, "training rows: expected at least two"),
    ],
)
def test_batches_of_one_are_refused_where_batch_norm_is_trained(
    tmp_path: Path, rows: int, size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", rows=rows, batch_size=size)
    found = small_training.backbone(tmp_path / "backbone")
    with pytest.raises(ConfigError, match=message):
        range_test(
            found.module,
            small_training.samples(rows),
            small_training.setting(batch_size=size),
            small_training.all_of(found),
        )
    run(tmp_path / "run", rows=rows, batch_size=size, frozen={"batch_norm": "frozen"}, epochs=1)


@pytest.mark.parametrize(("rows", "accumulate", "steps"), [(9, 1, 1), (25, 1, 3), (25, 2, 2), (33, 2, 2), (34, 2, 3)])
def test_a_last_batch_of_one_is_trained_with_the_batch_before(
    tmp_path: Path, rows: int, accumulate: int, steps: int
) -> None:
    done: list[tuple[int, int]] = []
    settings = {"rows": rows, "batch_size": 8, "epochs": 2, "accumulate": accumulate}
    run(tmp_path / "run", reporter=Reporter(progress=lambda *counts: done.append(counts)), **settings)
    assert done == [(number + 1, 2 * steps) for number in range(2 * steps)]
    assert steps_per_epoch(rows, small_training.setting(batch_size=8, accumulate=accumulate).config) == steps


def test_labels_without_an_output_are_refused(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")
    wrong = small_training.samples(24)
    wrong.targets = wrong.targets + 1
    with pytest.raises(TrainingError, match=r"step 0: expected labels from 0 to 2 \(3 classes\), got 3\."):
        train(
            found.module, wrong, None, small_training.setting(), small_training.all_of(found), folder=tmp_path / "run"
        )


def test_too_little_memory_is_said_with_what_helps(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")

    def refuse(_module: nn.Module, inputs: Any) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    found.module.register_forward_pre_hook(refuse)
    frozen = small_training.all_of(found)
    with pytest.raises(TrainingError) as caught:
        train(found.module, small_training.samples(24), None, small_training.setting(), frozen, folder=tmp_path / "run")
    assert str(caught.value) == (
        "step 0: expected memory for a batch of 8, got too little: CUDA out of memory. Tried to allocate 9 GiB. Set "
        "`batch_size: 4` with `accumulate: 2`, which takes the same steps, or `precision: bfloat16`."
    )
    setting = small_training.setting(batch_size=4, accumulate=2, epochs=1)
    assert train(found.module, small_training.samples(24), None, setting, frozen, folder=tmp_path / "run").rows


def test_any_other_failure_of_a_network_is_its_own(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")
    found.module.register_forward_pre_hook(lambda _module, _inputs: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        train(
            found.module,
            small_training.samples(24),
            None,
            small_training.setting(),
            small_training.all_of(found),
            folder=tmp_path / "run",
        )


def test_what_cannot_be_trained_is_refused_at_once_with_all_reasons(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(tmp_path / "run", rows=0, validation=None, patience=2)
    assert str(caught.value).split("\n") == [
        "the network cannot be trained",
        "  - expected training rows, got none.",
        "  - expected validation rows for `patience` or `schedule: plateau`, got none. Set `sizes`.",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"expected 1 CUDA devices, got 0\. Set fewer `devices`, or `device: cpu`"):
        make_fabric(small_training.setting().config.model_copy(update={"device": "cuda"}))


# One step ------------------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_torch_by_hand() -> None:
    torch.manual_seed(0)
    network, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(network.state_dict())
    rows, labels = torch.randn(10, 4), torch.arange(10) % 3
    plain = small_training.setting(optimiser="sgd", momentum=0.0)
    setting = TrainContext(plain.config, plain.objective, plain.fabric)
    groups = [{"params": list(network.parameters()), "lr": 0.1, "weight_decay": 0.0}]
    wrapped, chosen = setting.fabric.setup(network, optimizer_of(groups, plain.config))
    keys = np.zeros(10, "S16")
    group = [Batch(rows[:6], labels[:6], keys[:6]), Batch(rows[6:], labels[6:], keys[6:])]
    total = step(wrapped, chosen, group, 0, setting)
    loss = nn.functional.cross_entropy(twin(rows), labels)
    loss.backward()
    assert total.item() == pytest.approx(10 * loss.item(), rel=1e-6)
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            assert theirs.grad is not None
            assert torch.allclose(mine, theirs - 0.1 * theirs.grad, atol=1e-6)


STRIDED = """\
import sys
from pathlib import Path

from support import small_training
from torch import nn

from pipeline.training.loop import train

for channels in (1, 2, 3, 5, 6):
    found = small_training.backbone(Path(sys.argv[1]) / f"net{channels}", widths=(channels, 8))
    found.module.block1[3] = nn.Conv2d(channels, channels, 1, stride=2)
    trainable, folder = small_training.all_of(found), Path(sys.argv[1]) / f"run{channels}"
    train(found.module, small_training.samples(24), None, small_training.setting(epochs=3), trainable, folder=folder)
    print("trained", channels)
"""
"""Trains networks with a 1×1 convolution with a stride, of few channels."""


def test_a_convolution_whose_gradients_torch_writes_elsewhere_is_trained(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path} | preloaded.start()
    command = ["python", "-c", STRIDED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "".join(f"trained {channels}\n" for channels in (1, 2, 3, 5, 6))), (
        done.stderr
    )


# The range test ------------------------------------------------------------------------------------------------------


def test_the_range_test_raises_the_rate_until_the_loss_explodes(tmp_path: Path) -> None:
    found = small_training.backbone(tmp_path / "backbone")
    tested = range_test(
        found.module, small_training.samples(24), small_training.setting(), small_training.all_of(found)
    )
    assert list(tested.rates) == sorted(tested.rates)
    assert tested.rates[0] == 1e-6
    assert 1e-6 < tested.suggested <= 0.1
    assert str(tested).startswith("learning rate")
    assert str(tested).endswith(f"suggested: `learning_rate: {tested.suggested:.1e}`")


def test_the_suggested_rate_is_where_the_loss_falls_fastest_well_before_its_lowest() -> None:
    rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert suggest_rate(list(zip(rates, [3.0, 2.9, 1.5, 1.2, 5.0], strict=True))) == pytest.approx(1e-2)
    assert suggest_rate(list(zip(rates, [3.0, 2.9, 1.5, 1.6, 5.0], strict=True))) == pytest.approx(1e-3)
    assert suggest_rate([]) == pytest.approx(1e-7)
    # Noise at first, then the fall: as SqueezeNet's loss on 240 photos.
    many = np.geomspace(1e-6, 1e-1, 80)
    losses = 4 - 3 / (1 + (3e-4 / many)) + np.where(many < 1e-5, 0.2 * np.cos(np.arange(80) * 2.0), 0)
    losses[many > 1e-2] = 9
    assert 1e-4 < suggest_rate(list(zip(many, losses, strict=True))) < 1e-3


def test_the_start_stays_where_no_epoch_is_better_by_more_than_two_standard_errors() -> None:
    config = small_training.setting(epochs=9, patience=2).config
    history = History()
    # Of three rows; the last epoch has the least mean, but not by more than its error, so the one before stays.
    losses = [[0.5, 1.0, 1.5], [0.5, 1.2, 1.2], [0.2, 0.9, 1.5], [0.3, 0.9, 1.35], [0.5, 0.4, 1.5]]
    held = [{"validation_loss": np.array(one)} for one in losses]
    history.begin(held[0], config)
    assert (history.start, history.best) == ({"epoch": -1, "validation_loss": 1.0}, -1)
    for epoch, best in enumerate([-1, -1, 2, 2]):
        history.add({"epoch": epoch, "validation_loss": float(np.mean(losses[epoch + 1]))}, config, held[epoch + 1])
        assert history.best == best
        assert history.kept(config) == (history.start if best < 0 else history.rows[best])
    assert history.errors == pytest.approx([0.1453, 0.0882, 0.0289, 0.2], abs=1e-4)
    assert history.stopped == "no better validation for 2 epochs"  # after the second of them
    assert history.kept(config.model_copy(update={"weights": "last"})) == history.rows[3]


def test_equal_validations_keep_the_first_epoch() -> None:
    config = small_training.setting(epochs=9).config
    history = History()
    for epoch, loss in enumerate([2.0, 1.0, 1.0]):
        history.add({"epoch": epoch, "validation_loss": loss}, config)
    assert history.best == 1
    assert not history.stopped
