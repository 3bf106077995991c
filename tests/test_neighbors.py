"""k nearest neighbours: scikit-learn's estimators give the same answers, from arrays, from sources and after saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.errors import HeadError
from pipeline.streaming.knn import StreamingKNeighborsClassifier, StreamingKNeighborsRegressor

WEIGHTS, METRICS = ("uniform", "distance"), ("cosine", "euclidean")


@parametrize_with_checks([StreamingKNeighborsClassifier(), StreamingKNeighborsRegressor()])
def test_scikit_learn_takes_them_for_its_own(estimator: Any, check: Any) -> None:
    check(estimator)


def mapped(path: Path, rows: np.ndarray) -> np.ndarray:
    """The same rows as a source: an array that is mapped from a file."""
    found = np.memmap(path, dtype=rows.dtype, mode="w+", shape=rows.shape)
    found[:] = rows
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(5, 80),
    width=st.integers(2, 9),
    k=st.integers(1, 5),
    weights=st.sampled_from(WEIGHTS),
    metric=st.sampled_from(METRICS),
)
def test_the_answers_are_those_of_scikit_learn(
    seed: int, rows: int, width: int, k: int, weights: str, metric: str
) -> None:
    """Of float64 rows of random numbers no two distances are equal; the distances themselves are float32: 1e-5."""
    random = np.random.default_rng(seed)
    X, queries = random.normal(size=(rows, width)), random.normal(size=(12, width))
    queries[0] = X[0]
    options: dict[str, Any] = {"n_neighbors": k, "weights": weights, "metric": metric}
    y = random.choice(np.array(["ape", "bee", "cat"], dtype=object), rows)
    ours = StreamingKNeighborsClassifier(**options).fit(X, y)
    theirs = KNeighborsClassifier(algorithm="brute", **options).fit(X, y)
    assert np.array_equal(ours.kneighbors(queries)[1], theirs.kneighbors(queries)[1])
    # Of a query that is a row, scikit-learn's cosine distance is rounding alone, and so are weights that it makes.
    free = slice(1, None) if metric == "cosine" else slice(None)
    expected = theirs.predict_proba(queries[free])
    assert np.allclose(ours.predict_proba(queries[free]), expected, atol=1e-5)
    clear = np.sort(expected, axis=1)
    clear = (clear[:, -1] - clear[:, -2] > 1e-4 if expected.shape[1] > 1 else np.full(len(expected), True)) | (
        weights == "uniform"
    )
    assert (ours.predict(queries[free])[clear] == theirs.predict(queries[free])[clear]).all()
    assert ours.predict(queries[:1]) == theirs.predict(queries[:1]) or k > 1
    target = random.normal(size=rows)
    regressor = StreamingKNeighborsRegressor(**options).fit(X, target)
    theirs = KNeighborsRegressor(algorithm="brute", **options).fit(X, target)
    assert np.allclose(regressor.predict(queries[free]), theirs.predict(queries[free]), atol=1e-5)


@pytest.mark.parametrize("kind", [StreamingKNeighborsClassifier, StreamingKNeighborsRegressor])
def test_a_source_gives_what_the_array_gives_and_comes_back_by_attach(kind: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(60, 4)).astype(np.float16), random.integers(0, 3, 60)
    source = mapped(tmp_path / "rows", X)
    ours, other = kind(weights="distance").fit(source, y), kind(weights="distance").fit(X, y)
    assert np.array_equal(ours.predict(source[:20]), other.predict(X[:20]))
    assert ours.rows_ is source
    for fitted in (ours, other):
        skops.io.dump(fitted, tmp_path / "head.skops")
        trusted = skops.io.get_untrusted_types(file=tmp_path / "head.skops")
        assert trusted == [f"{kind.__module__}.{kind.__name__}"]
        loaded = skops.io.load(tmp_path / "head.skops", trusted=trusted)
        if fitted is ours:
            with pytest.raises(HeadError, match=r"expected its 60 training rows, got none.*`attach`"):
                loaded.predict(X[:2])
            with pytest.raises(HeadError, match=r"expected the training rows \(60, 4\), got \(59, 4\)"):
                loaded.attach(X[1:])
            loaded.attach(source)
        assert np.array_equal(loaded.predict(X), fitted.predict(X))
    assert (tmp_path / "head.skops").stat().st_size > X.nbytes


def test_more_neighbours_than_rows_are_refused() -> None:
    fitted = StreamingKNeighborsClassifier(n_neighbors=4).fit(np.eye(3), [0, 1, 2])
    with pytest.raises(HeadError, match=r"neighbours: expected k from 1 to 3, got 4"):
        fitted.predict(np.eye(3))
