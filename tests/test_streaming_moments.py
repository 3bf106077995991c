"""Estimators that are solved from the sums of one pass are scikit-learn's, over rows that need not fit into memory."""

import pickle
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, RidgeCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from support.chunks import even_chunks
from test_rows import keys_of, stored

from pipeline.errors import HeadError
from pipeline.streaming import accumulate, predict
from pipeline.streaming import moments as sums
from pipeline.streaming.accumulate import CachedMoments, compute_moments
from pipeline.streaming.centroid import StreamingCentroid
from pipeline.streaming.chunks import ChunkedSource, Span, by_threads
from pipeline.streaming.lda import StreamingLDA
from pipeline.streaming.logistic import StreamingLogisticRegression
from pipeline.streaming.moments import Moments
from pipeline.streaming.pca import StreamingPCA
from pipeline.streaming.ridge import StreamingRidge, StreamingRidgeClassifier
from pipeline.streaming.rows import Rows
from pipeline.streaming.scaler import StreamingNormalizer, StreamingScaler

CLASSIFIERS = [
    StreamingRidgeClassifier(),
    StreamingRidgeClassifier(standardize=True, class_weight="balanced", keep_path=True),
    StreamingLDA(),
    StreamingLDA("auto"),
    StreamingLDA(0.3, standardize=True),
    StreamingCentroid(),
    StreamingCentroid("cosine", standardize=True),
]
REGRESSORS = [StreamingRidge(), StreamingRidge(standardize=True)]
TRANSFORMERS = [
    StreamingPCA(),
    StreamingPCA(2, whiten=True),
    StreamingPCA(0.9),
    StreamingScaler(),
    StreamingNormalizer(),
]
SMALL = settings(max_examples=30, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


@parametrize_with_checks([*CLASSIFIERS[:4], CLASSIFIERS[5], REGRESSORS[0], *TRANSFORMERS[1:]])
def test_scikit_learn_takes_it_for_an_estimator(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


class Disk:
    """A row source that is no array: it gives rows of a .npy file when they are asked for."""

    def __init__(self, path: Path, X: np.ndarray) -> None:
        np.save(path, X)
        self.path, self.shape, self.dtype = path, X.shape, X.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[rows])


def drawn(seed: int, *, rows: int = 60, width: int = 5, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Rows of full rank, correlated and away from zero, of classes that overlap; every class has four rows or more."""
    random = np.random.default_rng(seed)
    y = np.array(["ape", "bee", "cat", "dog"], dtype=object)[
        np.r_[np.repeat(np.arange(classes), 4), random.integers(0, classes, rows - 4 * classes)]
    ]
    mix = np.eye(width) + random.normal(size=(width, width)) / 4
    X = random.normal(size=(rows, width)) @ mix + random.normal(size=width) * 3
    return X + 0.7 * np.unique(y, return_inverse=True)[1][:, None] * random.normal(size=width), y


# Sums ----------------------------------------------------------------------------------------------------------------


@SMALL
@given(
    seed=SEEDS,
    rows=st.integers(3, 300),
    width=st.integers(1, 6),
    offset=st.sampled_from([0.0, 1.0, 1000.0]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_sums_are_those_of_exact_rows_within_the_stated_rounding(
    seed: int, rows: int, width: int, offset: float, dtype: str
) -> None:
    random = np.random.default_rng(seed)
    X = (random.normal(size=(rows, width)) + offset).astype(dtype)
    y = np.r_[0, 1, 2, random.integers(0, 3, rows - 3)]
    found = compute_moments(X, y, classes=[0, 1, 2])
    exact = X.astype(np.longdouble)
    about = exact - exact.mean(axis=0)
    # `rounding` x (v + (m - p)²) of each feature, summed over the rows.
    size = np.sqrt((about**2).sum(axis=0) + rows * (exact.mean(axis=0) - found.pivot) ** 2)
    bound = found.rounding * np.outer(size, size)
    assert (abs(found.scatter() - about.T @ about) <= bound).all()
    apart = exact - np.stack([exact[y == k].mean(axis=0) for k in range(3)])[y]
    assert (abs(found.within() - apart.T @ apart) <= bound).all()
    np.testing.assert_allclose(found.mean, exact.mean(axis=0).astype(float), rtol=4 * found.rounding, atol=1e-6)
    assert found.rows == rows
    assert found.weights.tolist() == np.bincount(y).tolist()


@SMALL
@given(seed=SEEDS, parts=st.integers(1, 7), size=st.integers(1, 50))
def test_the_order_of_rows_and_their_cut_change_sums_within_rounding_only(seed: int, parts: int, size: int) -> None:
    X, y = drawn(seed)
    targets = np.stack([X[:, 0] ** 2, X[:, 1] + 2000], axis=1)
    order = np.random.default_rng(seed).permutation(len(X))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "ROWS", size)
        for told in ({"y": y, "classes": np.unique(y)}, {"y": targets}, {"y": None}):
            once = compute_moments(X, **told)
            moved = {**told, "y": None if told["y"] is None else told["y"][order]}
            other = compute_moments(ChunkedSource(X[order], even_chunks(len(X), parts)), **moved)
            # Of sums of 60 products in float64: 60 x 2⁻⁵² of the largest, and a factor for the moved pivot.
            for name in ("mean", "class_means", "variance"):
                np.testing.assert_allclose(getattr(once, name), getattr(other, name), rtol=1e-10, atol=1e-11)
            scale = np.diag(once.scatter()).max()
            np.testing.assert_allclose(once.scatter(), other.scatter(), rtol=0, atol=1e-12 * scale)
            moved = other._moved(once.pivot, once.target_pivot)
            for name in ("cross", "target_sums", "target_squares"):
                np.testing.assert_allclose(getattr(once, name), getattr(moved, name), rtol=1e-9, atol=1e-7)


def test_the_mean_of_the_first_rows_saves_small_variances_far_from_zero() -> None:
    X = 1e7 + np.random.default_rng(0).normal(size=(5000, 3))
    assert np.allclose(compute_moments(X).variance, X.var(axis=0), rtol=1e-12)


def test_float32_products_are_added_in_float64() -> None:
    random = np.random.default_rng(0)
    X = np.abs(random.normal(size=(40_000, 8))).astype(np.float32) ** 3
    exact = X.astype(float)
    exact -= exact.mean(axis=0)
    error = np.abs(compute_moments(X).scatter() - exact.T @ exact).max() / np.abs(exact.T @ exact).max()
    assert error < 2**-21


def test_a_feature_that_is_constant_has_no_variance_and_scale_one() -> None:
    X = np.random.default_rng(0).normal(size=(500, 3))
    X[:, 1] = 0.1
    for dtype in (np.float64, np.float32, np.float16):
        found = compute_moments(X.astype(dtype))
        assert found.variance[1] == 0
        assert found.scale[1] == 1
        np.testing.assert_allclose(found.scale, StandardScaler().fit(X.astype(dtype)).scale_, rtol=1e-3)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Two taps of the digits, float16 and float32, as a row source."""
    X = load_digits().data[:600] / 16
    folder = tmp_path_factory.mktemp("digits")
    taps = [
        stored(folder / "a", X[:, :40].astype(np.float16), keys_of(600), "float16"),
        stored(folder / "b", X[:, 40:].astype(np.float32), keys_of(600)),
    ]
    return Rows(taps, taps[0].key_array)


def same_bytes(one: Moments, other: Moments) -> bool:
    """Whether all their values are equal bit by bit."""
    values = [{name: np.asarray(value).tobytes() for name, value in vars(found).items()} for found in (one, other)]
    return values[0] == values[1]


def test_threads_give_the_bytes_that_one_thread_gives_and_whole_rows_give_the_same_within_rounding(rows: Rows) -> None:
    from threadpoolctl import threadpool_limits

    y, told = load_digits().target[:600], {"classes": np.arange(10)}
    with threadpool_limits(1):
        alone = compute_moments(ChunkedSource(rows, even_chunks(600, 5)), y, **told)
    assert same_bytes(compute_moments(ChunkedSource(rows, even_chunks(600, 5), by_threads(64)), y, **told), alone)
    with ThreadPoolExecutor(3) as pool, threadpool_limits(1):
        assert same_bytes(compute_moments(ChunkedSource(rows, even_chunks(600, 5), pool.map), y, **told), alone)
    whole = compute_moments(rows[:], y, **told)
    near = 2 * whole.rounding * np.diag(whole.scatter()).max()
    np.testing.assert_allclose(whole.scatter(), alone.scatter(), atol=near)


class Endless:
    """Rows that take no memory until they are read."""

    dtype = np.dtype(np.float16)

    def __init__(self, rows: int) -> None:
        self.shape = (rows, 64)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return np.random.default_rng(start).normal(size=(stop - start, 64)).astype(self.dtype)


@pytest.mark.parametrize("estimator", [StreamingRidgeClassifier(), StreamingLDA("auto"), StreamingPCA()], ids=str)
def test_memory_is_flat_in_rows_but_for_their_classes(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "BYTES", 2**18)
    monkeypatch.setattr(predict, "BYTES", 2**18)
    peaks = []
    for rows in (20_000, 40_000):
        y = np.arange(rows) % 3
        tracemalloc.start()
        clone(estimator).fit(Endless(rows), y)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Numbers of classes and weights, and what checks them, take some bytes per row; the rows themselves 128.
    assert peaks[1] - peaks[0] < 50 * 20_000


def test_a_span_is_the_rows_that_it_says(tmp_path: Path) -> None:
    X = np.arange(20.0).reshape(10, 2)
    span = Span(Disk(tmp_path / "x.npy", X), 3, 8)
    assert span.shape == (5, 2)
    assert span.dtype == np.float64
    for part in (slice(None), slice(1, 3), slice(4, 99), slice(7, 9)):
        np.testing.assert_array_equal(span[part], X[3:8][part])


# Ridge ---------------------------------------------------------------------------------------------------------------

ALPHAS = (0.01, 0.1, 1.0, 10.0, 1000.0)


@SMALL
@given(seed=SEEDS, targets=st.integers(1, 3), width=st.integers(1, 80))
def test_ridge_has_the_coefficients_of_scikit_learn_at_every_penalty(seed: int, targets: int, width: int) -> None:
    random = np.random.default_rng(seed)
    X = random.normal(size=(60, width)) + 5
    y = X[:, :1] * 2 + random.normal(size=(60, targets)) + 100
    head = StreamingRidge(ALPHAS, keep_path=True).fit(X, y)
    for alpha in ALPHAS:
        expected = Ridge(alpha).fit(X, y)
        at = head.at(alpha)
        # The condition number is below 60 (1 + √2)² / 0.01 < 4e4, times 2⁻⁵² and the size of the sums.
        np.testing.assert_allclose(np.atleast_2d(at.coef_), np.atleast_2d(expected.coef_), atol=1e-8)
        np.testing.assert_allclose(at.predict(X).reshape(60, -1), expected.predict(X).reshape(60, -1), atol=1e-7)
    best = head.at(head.alpha_)
    np.testing.assert_array_equal(best.coef_, head.coef_)
    np.testing.assert_array_equal(best.coef_, StreamingRidge(ALPHAS).fit(X, y).coef_)


@SMALL
@given(
    seed=SEEDS,
    classes=st.integers(2, 4),
    weight=st.sampled_from([None, "balanced", "given"]),
    standardize=st.booleans(),
    alpha=st.sampled_from(ALPHAS),
)
def test_ridge_classification_is_that_of_scikit_learn(
    seed: int, classes: int, weight: Any, standardize: bool, alpha: float
) -> None:
    X, y = drawn(seed, classes=classes)
    if weight == "given":
        weight = {name: 1.0 + number for number, name in enumerate(np.unique(y))}
    if standardize and weight:
        weight = None  # scikit-learn's scaler does not know the weights
    head = StreamingRidgeClassifier((alpha,), standardize=standardize, class_weight=weight).fit(X, y)
    plain = RidgeClassifier(alpha, class_weight=weight)
    expected = (make_pipeline(StandardScaler(), plain) if standardize else plain).fit(X, y)
    np.testing.assert_allclose(head.decision_function(X), expected.decision_function(X), atol=1e-8)
    assert (head.predict(X) == expected.predict(X)).all()
    assert head.classes_.tolist() == expected.classes_.tolist()


@SMALL
@given(seed=SEEDS, labels=st.integers(2, 4), weight=st.sampled_from([None, "balanced"]))
def test_ridge_classification_of_several_labels_a_row_is_that_of_scikit_learn(
    seed: int, labels: int, weight: Any
) -> None:
    X, _ = drawn(seed)
    y = X[:, :labels] + np.random.default_rng(seed).normal(size=(len(X), labels)) > X[:, :labels].mean(axis=0)
    head = StreamingRidgeClassifier((1.0,), class_weight=weight).fit(X, y)
    expected = RidgeClassifier(1.0, class_weight=weight).fit(X, y.astype(int))
    np.testing.assert_allclose(head.decision_function(X), expected.decision_function(X), atol=1e-8)
    np.testing.assert_array_equal(head.predict(X), expected.predict(X))


@SMALL
@given(seed=SEEDS, rows=st.integers(8, 60), width=st.integers(1, 30))
def test_cross_validation_scores_are_those_of_the_hat_matrix(seed: int, rows: int, width: int) -> None:
    random = np.random.default_rng(seed)
    X = random.normal(size=(rows, width)) + 3
    y = X[:, :1] + random.normal(size=(rows, 2))
    head = StreamingRidge((0.1, 1.0, 100.0)).fit(X, y)
    about = X - X.mean(axis=0)
    for alpha, score in zip(head.alphas, head.gcv_values_, strict=True):
        hat = about @ np.linalg.solve(about.T @ about + alpha * np.eye(width), about.T) + 1 / rows
        left = ((y - hat @ y) ** 2).sum()
        assert score == pytest.approx(rows * left / (rows - np.trace(hat)) ** 2, rel=1e-6)
    assert head.alpha_ == head.alphas[int(head.gcv_values_.argmin())]


@SMALL
@given(seed=SEEDS, noise=st.sampled_from([0.3, 3.0, 30.0]))
def test_the_chosen_penalty_is_about_that_of_leaving_one_out(seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    X = random.normal(size=(200, 10))
    y = X @ random.normal(size=10) + noise * random.normal(size=200)
    alphas = tuple(10.0 ** np.arange(-2, 6))
    # Generalised cross-validation is leaving one out with all rows of one leverage; here they are nearly so.
    apart = np.log10(StreamingRidge(alphas).fit(X, y).alpha_ / RidgeCV(alphas).fit(X, y).alpha_)
    assert abs(apart) <= 2


def test_interpolation_of_fewer_rows_than_features_is_not_chosen_for_its_rounding() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(30, 200)).astype(np.float32)
    y = random.normal(size=30)
    head = StreamingRidge((1e-9, 1e-6, 1.0, 1e5)).fit(X, y)
    assert head.alpha_ >= 1
    assert np.isfinite(head.coef_).all()


def test_another_penalty_that_was_not_kept_is_refused() -> None:
    X, y = drawn(0)
    head = StreamingRidgeClassifier(ALPHAS, keep_path=True).fit(X, y)
    small = head.at(10.0)
    assert small.coef_path_.shape == (1, *head.coef_.shape)
    assert small.alpha_ == 10
    with pytest.raises(HeadError, match=r"ridge at α = 1: expected one of 10\. Add the penalty to `alphas`, and set"):
        small.at(1.0)


@pytest.mark.parametrize("alphas", [(), (0.0,), (1.0, -1.0), (float("nan"),)])
def test_penalties_that_are_none_are_refused(alphas: tuple[float, ...]) -> None:
    X, y = drawn(0)
    with pytest.raises(HeadError, match=r"ridge, `alphas`: expected at least one number above 0, got \("):
        StreamingRidgeClassifier(alphas).fit(X, y)


# Discriminants -------------------------------------------------------------------------------------------------------


@SMALL
@given(seed=SEEDS, classes=st.integers(2, 4), given_priors=st.booleans())
def test_lda_is_that_of_scikit_learn(seed: int, classes: int, given_priors: bool) -> None:
    X, y = drawn(seed, classes=classes)
    priors = np.arange(1, classes + 1) / (classes * (classes + 1) / 2) if given_priors else None
    head = StreamingLDA(priors=priors).fit(X, y)
    expected = LinearDiscriminantAnalysis(priors=priors).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), expected.predict_proba(X), atol=1e-8)
    assert (head.predict(X) == expected.predict(X)).all()
    # "svd" drops what differs between the means by less than `tol`, hence not 1e-8.
    np.testing.assert_allclose(head.decision_function(X), expected.decision_function(X), atol=1e-3)
    if not given_priors:
        lsqr = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
        np.testing.assert_allclose(head.predict_proba(X), lsqr.predict_proba(X), atol=1e-8)


@SMALL
@given(seed=SEEDS, classes=st.integers(2, 4), shrinkage=st.floats(0, 1), width=st.integers(2, 70))
def test_shrunk_lda_is_that_of_scikit_learn(seed: int, classes: int, shrinkage: float, width: int) -> None:
    if width > 40:
        shrinkage = max(shrinkage, 1e-3)  # more features than degrees of freedom: without shrinkage nothing to compare
    X, y = drawn(seed, classes=classes, width=width)
    for solver in ("lsqr", "eigen") if shrinkage else ("lsqr",):
        expected = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage).fit(X, y)
        found = StreamingLDA(shrinkage).fit(X, y)
        np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=1e-6)


@SMALL
@given(seed=SEEDS, width=st.integers(1, 80))
def test_automatic_shrinkage_is_that_of_ledoit_and_wolf_for_rows_about_their_class_means(seed: int, width: int) -> None:
    X, y = drawn(seed, width=width)
    about = X - np.stack([X[y == name].mean(axis=0) for name in np.unique(y)])[np.unique(y, return_inverse=True)[1]]
    scaler = StandardScaler().fit(about)
    expected, amount = ledoit_wolf(scaler.transform(about), assume_centered=True)
    head = StreamingLDA("auto").fit(X, y)
    assert head.shrinkage_ == pytest.approx(amount, abs=1e-9)
    covariance = scaler.scale_[:, None] * expected * scaler.scale_
    coef = np.linalg.solve(covariance, (head.means_ - head.priors_ @ head.means_).T).T
    np.testing.assert_allclose(head.coef_, coef, atol=1e-6 * abs(coef).max())


def test_lda_leaves_out_directions_in_which_no_row_varies() -> None:
    X, y = drawn(3, rows=200)
    twice = np.concatenate([X, X[:, :2], np.ones((200, 1))], axis=1)
    plain = StreamingLDA().fit(X, y)
    for dtype, near in ((np.float64, 1e-6), (np.float32, 1e-2)):
        found = StreamingLDA().fit(twice.astype(dtype), y).predict_proba(twice)
        np.testing.assert_allclose(found, plain.predict_proba(X), atol=near)


@pytest.mark.parametrize("shrinkage", ["Auto", -0.1, 1.5])
def test_a_shrinkage_that_is_none_is_refused(shrinkage: Any) -> None:
    with pytest.raises(HeadError, match=r"`shrinkage`: expected 'auto', None or a number from 0 to 1, got "):
        StreamingLDA(shrinkage).fit(*drawn(0))


@pytest.mark.parametrize("priors", [[0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.0, 0.0]])
def test_priors_that_are_none_are_refused(priors: list[float]) -> None:
    with pytest.raises(
        HeadError, match=r"`priors`: expected 3 numbers above 0, one per class, that add up to 1, got \["
    ):
        StreamingLDA(priors=priors).fit(*drawn(0))


def test_lda_of_one_row_a_class_is_refused() -> None:
    message = r"expected rows that vary about the mean of their class, got 3 rows of 3 classes that do not\. Label more"
    with pytest.raises(HeadError, match=message):
        StreamingLDA().fit(np.eye(3), ["a", "b", "c"])


def test_automatic_shrinkage_needs_the_rows_again() -> None:
    X, y = drawn(0)
    of_classes = compute_moments(X, y, classes=np.unique(y))
    with pytest.raises(HeadError, match=r"shrinkage 'auto': expected the rows for a second pass, got none\."):
        StreamingLDA("auto").fit_moments(of_classes)
    again = StreamingLDA("auto").fit_moments(of_classes, X, y)
    np.testing.assert_array_equal(again.coef_, StreamingLDA("auto").fit(X, y).coef_)


# Class means ---------------------------------------------------------------------------------------------------------


@SMALL
@given(seed=SEEDS, classes=st.integers(2, 4))
def test_the_nearest_class_mean_is_that_of_scikit_learn(seed: int, classes: int) -> None:
    X, y = drawn(seed, classes=classes)
    head, expected = StreamingCentroid().fit(X, y), NearestCentroid().fit(X, y)
    np.testing.assert_allclose(head.centroids_, expected.centroids_, atol=1e-12)
    assert (head.predict(X) == expected.predict(X)).all()
    apart = ((X[:, None] - expected.centroids_) ** 2).sum(axis=2) / -2
    wanted = apart[:, 1] - apart[:, 0] if classes == 2 else apart
    np.testing.assert_allclose(head.decision_function(X), wanted, atol=1e-10)


@SMALL
@given(seed=SEEDS, classes=st.integers(2, 4))
def test_the_nearest_direction_is_that_of_normalised_means(seed: int, classes: int) -> None:
    X, y = drawn(seed, classes=classes)
    head = StreamingCentroid("cosine").fit(X, y)
    means = Normalizer().transform(NearestCentroid().fit(X, y).centroids_)
    found = Normalizer().transform(X) @ means.T
    wanted = found[:, 1] - found[:, 0] if classes == 2 else found
    np.testing.assert_allclose(head.decision_function(X), wanted, atol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_one_row_a_class_is_enough_for_class_means(metric: Any) -> None:
    X = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 0]])
    head = StreamingCentroid(metric).fit(X, ["a", "b", "c"])
    assert np.isfinite(head.decision_function(np.vstack([X, np.zeros((1, 3))]))).all()
    assert head.predict(X)[:2].tolist() == ["a", "b"]


def test_an_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(HeadError, match=r"unknown metric 'cosin'\. Did you mean 'cosine'\?"):
        StreamingCentroid("cosin").fit(*drawn(0))  # type: ignore[arg-type]


# Components ----------------------------------------------------------------------------------------------------------


@SMALL
@given(
    seed=SEEDS,
    width=st.integers(1, 80),
    components=st.one_of(st.none(), st.integers(1, 60), st.floats(0.05, 0.95)),
    whiten=st.booleans(),
)
def test_components_are_those_of_scikit_learn(seed: int, width: int, components: Any, whiten: bool) -> None:
    X, _ = drawn(seed, width=width)
    if isinstance(components, int) or (components is None and width > 50):
        components = min(components or 50, width, 50)  # the last of 60 is of rounding
    expected = PCA(components, whiten=whiten, svd_solver="covariance_eigh").fit(X)
    found = StreamingPCA(components, whiten=whiten).fit(X)
    assert found.n_components_ == expected.n_components_
    for name in ("mean_", "explained_variance_", "explained_variance_ratio_", "singular_values_"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-9)
    # Components of near eigenvalues turn in their plane, and scikit-learn's own sums are not about a pivot.
    np.testing.assert_allclose(abs(found.transform(X)), abs(expected.transform(X)), atol=1e-4)


@pytest.mark.parametrize("components", [None, 5, 0.8])
def test_components_of_fewer_rows_than_features_are_those_of_scikit_learn(components: Any) -> None:
    X = np.random.default_rng(0).normal(3.0, 2.0, size=(12, 4608))
    found, expected = (one.fit(X) for one in (StreamingPCA(components), PCA(components, svd_solver="full")))
    assert found.n_components_ == expected.n_components_
    np.testing.assert_allclose(found.explained_variance_, expected.explained_variance_, atol=1e-9)
    np.testing.assert_allclose(abs(found.transform(X)), abs(expected.transform(X)), atol=1e-9)


# Fewer rows than features --------------------------------------------------------------------------------------------


def few_rows(width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 rows in float32, one feature constant and one constant in each class; classes, three to two; targets."""
    random, classes = np.random.default_rng(width), np.arange(60) % 7 % 3
    X = random.normal(size=(60, width)) * np.linspace(0.5, 2, width) + 1 + 0.1 * classes[:, None]
    X[:, 3], X[:, 5] = 2, classes
    return X.astype(np.float32), classes, random.normal(size=(60, 2))


@pytest.mark.parametrize("width", [70, 4608])  # of which a matrix of features takes half a minute to decompose
def test_ridge_of_few_rows_is_that_of_scikit_learn(width: int) -> None:
    X, classes, targets = few_rows(width)
    rows = X.astype(np.float64)
    found, wanted = StreamingRidge(alpha=3.0).fit(X, targets), Ridge(alpha=3.0).fit(rows, targets)
    assert np.allclose(found.coef_, wanted.coef_, atol=1e-12)
    assert np.allclose(found.predict(X), wanted.predict(rows))
    weighed = {"alpha": 3.0, "class_weight": "balanced"}
    head, other = StreamingRidgeClassifier(**weighed).fit(X, classes), RidgeClassifier(**weighed).fit(rows, classes)
    assert np.allclose(head.coef_, other.coef_, atol=1e-12)
    assert np.allclose(head.decision_function(X), other.decision_function(rows))
    scaled = StreamingRidge(alpha=3.0, standardize=True).fit(X, targets)
    pipeline = make_pipeline(StandardScaler(), Ridge(alpha=3.0)).fit(rows, targets)
    assert np.allclose(scaled.predict(X + 1), pipeline.predict(rows + 1))


def test_penalties_of_few_rows_have_the_scores_of_the_sums() -> None:
    X, _, targets = few_rows(70)
    head = StreamingRidge((1.0, 10.0, 1000.0), standardize=True, keep_path=True)
    found = clone(head).fit(X, targets)
    wanted = clone(head).fit_moments(compute_moments(X.astype(np.float64), targets))
    assert found.alpha_ == wanted.alpha_
    assert np.allclose(found.gcv_values_, wanted.gcv_values_)
    assert np.allclose(found.coef_path_, wanted.coef_path_, atol=1e-12)


@pytest.mark.parametrize("shrinkage", [None, 0.3, 1.0, "auto"])
@pytest.mark.parametrize("standardize", [False, True])
def test_discriminants_of_few_rows_are_those_of_the_sums(shrinkage: Any, standardize: bool) -> None:
    X, classes, _ = few_rows(70)
    rows = X.astype(np.float64)
    for y in (classes, np.arange(60) % 2):
        found = StreamingLDA(shrinkage, standardize=standardize).fit(X, y)
        wanted = StreamingLDA(shrinkage, standardize=standardize)
        wanted.fit_moments(compute_moments(rows, y, classes=np.unique(y)), rows, y)
        assert found.shrinkage_ == pytest.approx(wanted.shrinkage_)
        assert np.allclose(found.coef_, wanted.coef_, rtol=1e-6, atol=1e-8 * np.abs(wanted.coef_).max())
        assert np.allclose(found.intercept_, wanted.intercept_)


def test_discriminants_of_few_rows_of_many_features_solve_their_equations() -> None:
    X, classes, _ = few_rows(4608)
    head = StreamingLDA(0.3).fit(X, classes)
    rest = X - head.means_[classes]
    level = float((rest**2).mean())
    applied = 0.7 * head.coef_ @ rest.T @ rest / len(X) + 0.3 * level * head.coef_
    assert np.allclose(applied, head.means_ - head.priors_ @ head.means_, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "settings"), [(4608, {}), (70, {}), (70, {"class_weight": "balanced"}), (70, {"fit_intercept": False})]
)
def test_logistic_regression_of_few_rows_is_that_of_scikit_learn(width: int, settings: dict[str, Any]) -> None:
    X, classes, _ = few_rows(width)
    rows = X.astype(np.float64)
    for y in (classes, np.arange(60) % 2):
        found = StreamingLogisticRegression(C=0.1, tol=1e-7, **settings).fit(rows, y)
        wanted = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000, **settings).fit(rows, y)
        assert np.allclose(found.coef_, wanted.coef_, atol=1e-6)
        assert np.allclose(found.predict_proba(rows), wanted.predict_proba(rows), atol=1e-5)
        assert found.gap_ < 1e-6
        again = clone(found).set_params(warm_start=True)
        again.fit(rows[30:], y[30:])  # from what other rows lead to
        assert np.allclose(again.fit(rows, y).coef_, wanted.coef_, atol=1e-6)
    scaled = StreamingLogisticRegression(C=0.1, standardize=True).fit(X, classes)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000)).fit(rows, classes)
    if not settings:
        assert np.allclose(scaled.predict_proba(X), pipeline.predict_proba(rows), atol=1e-3)


@pytest.mark.parametrize("width", [70, 4608])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("standardize", [False, True])
def test_nearest_means_of_few_rows_are_those_of_scikit_learn(width: int, metric: Any, standardize: bool) -> None:
    X, classes, _ = few_rows(width)
    rows = X.astype(np.float64)
    found = StreamingCentroid(metric, standardize=standardize).fit(X, classes)
    scaled = StandardScaler().fit_transform(rows) if standardize else rows
    if metric == "euclidean":
        with pytest.warns(UserWarning, match="zero standard deviation"):  # of the features that are constant
            wanted = NearestCentroid().fit(scaled, classes).predict(scaled)
        np.testing.assert_array_equal(found.predict(X), wanted)
    if width == 70:
        sums = StreamingCentroid(metric, standardize=standardize)
        sums.fit_moments(compute_moments(rows, classes, classes=np.unique(classes)))
        assert np.allclose(found.decision_function(X), sums.decision_function(X))


@pytest.mark.parametrize("components", [0, 6, -1, 1.5, True, 1e9])
def test_more_components_than_there_are_are_refused(components: Any) -> None:
    with pytest.raises(HeadError, match=r"`n_components`: expected 1 to 5, the smaller of rows and features, or a sh"):
        StreamingPCA(components).fit(drawn(0)[0])


def test_components_of_one_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected two or more rows, got n_samples=1\. Variance needs them"):
        StreamingPCA().fit(np.ones((1, 3)))


# Row sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
@pytest.mark.parametrize("estimator", [*CLASSIFIERS, *REGRESSORS], ids=str)
def test_a_source_gives_what_its_array_gives(estimator: Any, dtype: str, tmp_path: Path) -> None:
    X, y = drawn(0)
    X = (X * 10).astype(dtype)
    y = X[:, 0] * 2.0 if isinstance(estimator, StreamingRidge) else y
    plain = clone(estimator).fit(X, y)
    np.save(tmp_path / "mapped.npy", X)
    for source in (Disk(tmp_path / "x.npy", X), np.load(tmp_path / "mapped.npy", mmap_mode="r")):
        head = clone(estimator).fit(source, y)
        assert head.n_features_in_ == 5
        np.testing.assert_array_equal(head.predict(source), plain.predict(X))
        for method in ("decision_function", "predict_proba"):
            if hasattr(head, method):
                np.testing.assert_array_equal(getattr(head, method)(source), getattr(plain, method)(X))


@pytest.mark.parametrize("before", [*TRANSFORMERS], ids=str)
def test_what_stands_before_a_head_gives_a_source_for_a_source(before: Any, tmp_path: Path) -> None:
    X, y = drawn(0)
    source = Disk(tmp_path / "x.npy", X.astype(np.float16))
    head = make_pipeline(clone(before), StreamingRidgeClassifier((1.0,))).fit(source, y)
    passed = head[0].transform(source)
    assert not isinstance(passed, np.ndarray)
    expected = clone(before).fit(X.astype(np.float16)).transform(X.astype(np.float16))
    assert passed.shape == expected.shape
    assert passed.dtype == np.float32
    np.testing.assert_allclose(passed[3:9], expected[3:9], rtol=1e-2, atol=1e-2)
    plain = RidgeClassifier(1.0).fit(expected, y)
    np.testing.assert_allclose(head.decision_function(source), plain.decision_function(expected), atol=2e-2)


def test_several_heads_share_the_sums_of_one_pass(rows: Rows) -> None:
    y = load_digits().target[:600]
    shared_sums = compute_moments(rows, y, classes=np.unique(y))
    before = pickle.dumps(shared_sums)
    for head in (StreamingRidgeClassifier(), StreamingLDA(0.1), StreamingCentroid()):
        shared = clone(head).fit_moments(shared_sums)
        alone = clone(head).fit(rows, y)
        np.testing.assert_array_equal(shared.decision_function(rows), alone.decision_function(rows))
        assert (shared.predict(rows) == y).mean() > 0.85
    assert StreamingPCA(0.9).fit_moments(shared_sums).transform(rows).shape[1] < 64
    assert pickle.dumps(shared_sums) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("head", "classes"),
    [
        (StreamingLDA(0.2, standardize=True), 3),
        (StreamingCentroid(standardize=True), 2),
        (StreamingCentroid("cosine", standardize=True), 3),
    ],
)
def test_standardize_is_a_scaler_before_the_head(head: Any, classes: int, dtype: Any) -> None:
    X, y = drawn(3, classes=classes)
    X = (X * np.logspace(-2, 2, X.shape[1]) + 1).astype(dtype)
    found = clone(head).fit(X, y)
    scaler = StandardScaler().fit(X.astype(np.float64))
    expected = clone(head).set_params(standardize=False).fit(scaler.transform(X.astype(np.float64)), y)
    np.testing.assert_allclose(
        found.decision_function(X), expected.decision_function(scaler.transform(X)), rtol=1e-3, atol=1e-3
    )


def test_sums_that_were_kept_are_given_for_the_same_rows_and_targets_alone() -> None:
    X, y = drawn(0)
    source = CachedMoments(X)
    kept = compute_moments(source, y, classes=np.unique(y))
    assert (len(source), source.shape, source.dtype) == (len(X), X.shape, X.dtype)
    np.testing.assert_array_equal(kept.gram, compute_moments(X, y, classes=np.unique(y)).gram)
    again = compute_moments(source, np.searchsorted(np.unique(y), y), classes=np.arange(len(np.unique(y))))
    assert again.gram is kept.gram
    assert again.classes.tolist() == list(range(len(kept.classes)))
    with pytest.raises(HeadError, match="got none for 1 of them: zebra"):
        compute_moments(source, y, classes=[*np.unique(y), "zebra"])
    assert compute_moments(source, y, classes=np.unique(y)).gram is kept.gram
    y[0] = "cat"  # who changes targets after a fit gets sums of the new ones
    assert compute_moments(source, y, classes=np.unique(y)).gram is not kept.gram
    numbers = np.arange(float(len(X)))
    before = compute_moments(source, numbers)
    numbers += 1
    assert compute_moments(source, numbers).target_pivot != before.target_pivot


def test_a_head_with_all_digits_in_float16_predicts_as_scikit_learn_in_float64(rows: Rows) -> None:
    y = load_digits().target[:600]
    head = StreamingRidgeClassifier((0.1, 1.0, 10.0), standardize=True).fit(rows, y)
    plain = make_pipeline(StandardScaler(), RidgeClassifier(head.alpha_)).fit(rows[:].astype(float), y)
    assert (head.predict(rows) == plain.predict(rows[:])).all()


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, *REGRESSORS, *TRANSFORMERS], ids=str)
def test_it_comes_back_from_its_file_the_same(estimator: Any, tmp_path: Path) -> None:
    X, y = drawn(0)
    fitted = clone(estimator).fit(X, X[:, 0] if isinstance(estimator, StreamingRidge) else y)
    skops.io.dump(fitted, tmp_path / "head.skops")
    untrusted = skops.io.get_untrusted_types(file=tmp_path / "head.skops")
    assert untrusted == [f"{type(fitted).__module__}.{type(fitted).__name__}"]
    back = skops.io.load(tmp_path / "head.skops", trusted=untrusted)
    method = "predict" if hasattr(fitted, "predict") else "transform"
    np.testing.assert_array_equal(getattr(back, method)(X), getattr(fitted, method)(X))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_value_that_is_not_finite_is_refused_with_its_row(tmp_path: Path) -> None:
    X, y = drawn(0, rows=2400)
    X[1741, 2] = np.nan
    source = Disk(tmp_path / "x.npy", X)
    with pytest.raises(HeadError, match=r"features, row 1,741: expected finite numbers, got nan in column 2"):
        StreamingCentroid().fit(source, y)
    with pytest.raises(HeadError, match="features, row 541: expected finite") as error:
        compute_moments(ChunkedSource(source, even_chunks(2400, 2)))
    assert error.value.__notes__ == ["Its rows are counted from row 1,200."]


def test_sums_beyond_floating_point_are_refused() -> None:
    X, _ = drawn(0)
    X[:, 1] *= 1e25
    with pytest.raises(HeadError, match=r"column 1: expected values whose squares can be added, got a sum beyond"):
        compute_moments(X.astype(np.float32))


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    X, y = drawn(0)
    for head in (StreamingRidgeClassifier(), StreamingLDA(), StreamingCentroid()):
        head.fit(X, y)
        for narrow in (X[:, :3], Disk(tmp_path / "x.npy", X[:, :3])):
            with pytest.raises(ValueError, match=r"X has 3 features, but \w+ is expecting 5 features as input"):
                head.predict(narrow)


def test_a_class_without_rows_is_refused() -> None:
    X, y = drawn(0)
    with pytest.raises(HeadError, match=r"expected rows of every class, got none for 2 of them: dog, eel\. Leave the"):
        compute_moments(X, y, classes=["dog", "ape", "bee", "cat", "eel"])


def test_a_class_that_was_not_named_is_refused() -> None:
    X, y = drawn(0)
    with pytest.raises(HeadError, match=r"expected the classes of the task, got cat as well\. List every class\."):
        compute_moments(X, y, classes=["ape", "bee"])


def test_one_class_is_refused() -> None:
    X, _ = drawn(0)
    with pytest.raises(ValueError, match=r"expected two or more classes, got one class, ape, with n_samples=60\."):
        StreamingCentroid().fit(X, ["ape"] * 60)


def test_no_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"This StreamingLDA estimator requires y to be passed, but the target y is"):
        StreamingLDA().fit(np.eye(3), None)


def test_targets_of_another_number_than_rows_are_refused() -> None:
    X, y = drawn(0)
    with pytest.raises(
        HeadError, match=r"expected 60 targets, one per row, got 59\. Give them in the order of the rows\."
    ):
        compute_moments(X, y[1:], classes=np.unique(y))


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"training rows: expected at least one row, got none\. Check the splits"):
        compute_moments(Disk(tmp_path / "x.npy", np.empty((0, 3))))


def test_moments_of_another_kind_are_refused() -> None:
    X, y = drawn(0)
    of_rows, of_classes = compute_moments(X), compute_moments(X, y, classes=np.unique(y))
    with pytest.raises(HeadError, match=r"discriminant analysis: expected moments of classes, got none"):
        StreamingLDA().fit_moments(of_rows)
    with pytest.raises(HeadError, match=r"nearest class mean: expected moments of classes, got none"):
        StreamingCentroid().fit_moments(of_rows)
    with pytest.raises(HeadError, match=r"ridge regression: expected moments of targets, got none"):
        StreamingRidge().fit_moments(of_classes)
    with pytest.raises(HeadError, match=r"ridge classification: expected moments of classes or labels, got none"):
        StreamingRidgeClassifier().fit_moments(of_rows)


def test_moments_of_other_classes_or_targets_are_not_merged() -> None:
    X, y = drawn(0)
    of_classes = compute_moments(X, y, classes=np.unique(y))
    message = (
        r"expected moments of the same features, classes and targets, got 5 features, 3 classes and 0 targets and "
        r"5 features, none classes and 1 targets\. Name the same"
    )
    with pytest.raises(HeadError, match=message):
        of_classes.merge(compute_moments(X, X[:, 0]))
    other = compute_moments(X, np.where(y == "cat", "dog", y), classes=["ape", "bee", "dog"])
    with pytest.raises(HeadError, match="Name the same classes for each part of the rows"):
        of_classes.merge(other)
