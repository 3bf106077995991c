"""What heads say of rows: predictions from scores are those that the head itself predicts, in one pass."""

from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC

from pipeline import heads
from pipeline.heads import calibration
from pipeline.heads.outputs import kind_of_scores, predict_with_scores, predictions_of, scores_of
from pipeline.task import Kind

OURS = sorted({name for name in heads.HEADS if heads.is_streaming(name)} | {"prototypes", "knn"})
NAMES = np.array(["9", "10", "bee"], dtype=object)  # text sorts otherwise


def drawn(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole numbers of classes that overlap: many rows have equal neighbours, and some lie on borders."""
    random = np.random.default_rng(0)
    codes = np.arange(120) % classes
    return (np.eye(classes, 4)[codes] * 2 + random.integers(-2, 3, size=(120, 4))).astype(np.float32), NAMES[codes]


def same(head: Any, X: np.ndarray, kind: Kind, classes: list[str]) -> None:
    scores = kind_of_scores(head, kind)
    predicted, scored = predict_with_scores(head, X, kind=kind, scores=scores, classes=classes)
    expected = predictions_of(head, X, kind=kind)
    assert predicted.dtype == expected.dtype
    np.testing.assert_array_equal(predicted, expected)
    np.testing.assert_array_equal(scored, scores_of(head, X, kind=kind, scores=scores, classes=classes))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("calibrated", [False, True])
def test_predictions_from_scores_are_those_of_the_head(name: str, classes: int, calibrated: bool) -> None:
    X, y = drawn(classes)
    told = NAMES[:classes].tolist()
    head = heads.create(name, {}, scale="standard").fit(X[:60], y[:60])
    if calibrated:
        head = calibration.with_head(calibration.fit_temperature([(head, X[60:], y[60:])]), head)
    same(head, X, "classification", told)


@pytest.mark.parametrize("name", [name for name in OURS if name != "streaming_lda"])
def test_several_labels_from_scores_are_those_of_the_head(name: str) -> None:
    X, _ = drawn(3)
    labels = (X[:, :3] + X[:, [3]] > 1).astype(np.int8)
    head = heads.create(name, {}, scale="standard", kind="multilabel").fit(X[:60], labels[:60])
    same(head, X, "multilabel", NAMES.tolist())


@pytest.mark.parametrize("name", ["streaming_knn", "knn", "streaming_logistic", "prototypes"])
def test_both_take_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = drawn(3)
    head = heads.create(name, {}, scale="none").fit(X, y)
    monkeypatch.setattr(type(head[-1]), "predict", lambda *_: pytest.fail("a second pass"))
    scores = kind_of_scores(head, "classification")
    predict_with_scores(head, X, kind="classification", scores=scores, classes=NAMES.tolist())


def test_a_head_whose_probabilities_do_not_decide_is_asked_itself() -> None:
    """Such as a vector machine, whose probabilities are of folds; and votes by distance, which are summed otherwise."""
    X, y = drawn(3)
    with pytest.warns(FutureWarning, match="probability"):
        machine = SVC(probability=True, random_state=0).fit(X, y)
    assert (machine.classes_[machine.predict_proba(X).argmax(axis=1)] != machine.predict(X)).any()
    same(machine, X, "classification", NAMES.tolist())
    same(heads.create("knn", {"weights": "distance"}, scale="none").fit(X, y), X, "classification", NAMES.tolist())
