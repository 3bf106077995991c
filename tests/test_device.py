"""Heads on tensors: the same estimators through scikit-learn's array API, here with tensors of the processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.features import Place, make

from pipeline import heads
from pipeline.fit.config import FitConfig
from pipeline.heads import gpu

# scipy must be loaded with its array API, so this runs in a process of its own.
COMPARE = """
from pipeline.heads import create, gpu
assert gpu.enable_array_api()
import numpy as np, skops.io
from pipeline.heads.preprocessing import Pca
from pipeline.heads.sweep import Fold, LabelledRows, sweep
from pipeline.fit.single_fit import _fit_copy
random = np.random.default_rng(0)
told = np.arange(90) % 3
X = (np.eye(3, 8)[told] * 2 + random.normal(size=(90, 8))).astype(np.float32)
y = np.array(["a", "b", "c"], dtype=object)[told]
for name, scale, pca in [
    ("logistic", "standard", None), ("ridge", "l2", None), ("naive_bayes", "none", None),
    ("logistic", "standard", Pca(components=4)),
]:
    on, off = (create(name, {}, scale=scale, pca=pca) for _ in range(2))
    assert gpu.supports_tensors(on), name
    on = _fit_copy(gpu.prepare_for_tensors(on), LabelledRows(X, y), "cpu")
    off.fit(X, y)
    held = [type(value).__module__ for _, step in on.steps for value in vars(step).values()]
    assert not any(module.startswith("torch") for module in held), held
    assert (on.predict(X) == off.predict(X)).mean() > 0.98, name
    if name != "naive_bayes" and pca is None:
        np.testing.assert_allclose(on[-1].coef_, off[-1].coef_, rtol=1e-2, atol=1e-3)
    skops.io.dumps(on)
values = [1e-3, 0.1, 10.0]
told = dict(classes=list("abc"), given="probability")
folds = [Fold(LabelledRows(X, y), LabelledRows(X, y))]
found = [sweep(create("logistic", {}, scale="standard"), "C", values, folds, **told, on=on) for on in ("cpu", None)]
np.testing.assert_allclose(*(one.record["validation"] for one in found), atol=0.02)
np.testing.assert_array_equal(found[0].head.classes_, ["a", "b", "c"])
skops.io.dumps(found[0].head)
print("done")
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path)


def test_heads_on_tensors_are_those_on_arrays() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize(
    ("name", "params", "takes"),
    [
        ("logistic", {}, True),
        ("ridge", {}, True),
        ("naive_bayes", {}, True),
        ("logistic", {"solver": "saga"}, False),
        ("ridge", {"solver": "cholesky"}, False),
        ("lda", {}, False),
        ("knn", {}, False),
        ("svm", {}, False),
        ("forest", {}, False),
    ],
)
def test_heads_that_scikit_learn_fits_on_tensors_are_known(name: str, params: dict[str, str], takes: bool) -> None:
    assert gpu.supports_tensors(heads.create(name, params, scale="standard")) == takes


def test_without_a_gpu_heads_are_fitted_on_the_processor_and_a_note_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy",), device="cuda")
    assert place.run(config).notes == ["device: cuda: torch finds no GPU here; heads are fitted on the processor."]


def test_where_scipy_is_loaded_without_its_array_api_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy  # noqa: F401 - it is loaded
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    on, note = gpu.choose_device("cuda")
    assert on is None
    assert note is not None
    assert "scipy was loaded without SCIPY_ARRAY_API=1" in note


def test_a_head_that_takes_no_tensors_is_fitted_on_the_processor_and_a_note_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "choose_device", lambda _: ("cuda", None))
    config = FitConfig(task="pets", backbone="tiny", inputs=("easy",), head=("knn", "lda"), device="cuda")
    done = place.run(config)
    assert done.notes == [
        f"{name}: scikit-learn has no `device: cuda` for it; it is fitted on the processor." for name in ("knn", "lda")
    ]
