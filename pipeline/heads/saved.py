"""Load a saved head and apply it to features with the identity of its training features.

Loading runs no code: skops reads the file, and types that are not in `TRUSTED` are refused. `model.json` in the same
folder has the identity of the training features, which is compared with that of the given features.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import HeadError, bullets, unknown
from pipeline.files import AnyPath, as_path, check_readable
from pipeline.heads import knn_rows
from pipeline.heads.outputs import predictions_of, scores_of
from pipeline.heads.skops_import import skops_io
from pipeline.model_record import FeaturesRecord, NetworkRecord, read_record
from pipeline.predictions import Scores
from pipeline.store.features import Features, Keys
from pipeline.store.identity import differences
from pipeline.streaming.rows import Rows, blocks
from pipeline.task import Kind

TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance32",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._ball_tree.BallTree32",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._kd_tree.KDTree32",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "pipeline.streaming.centroid.StreamingCentroid",
    "pipeline.streaming.knn.StreamingKNeighborsClassifier",
    "pipeline.streaming.knn.StreamingKNeighborsRegressor",
    "pipeline.streaming.lda.StreamingLDA",
    "pipeline.streaming.logistic.StreamingLogisticRegression",
    "pipeline.streaming.pca.StreamingPCA",
    "pipeline.streaming.ridge.StreamingRidge",
    "pipeline.streaming.ridge.StreamingRidgeClassifier",
    "pipeline.streaming.scaler.StreamingNormalizer",
    "pipeline.streaming.scaler.StreamingScaler",
)
"""Types that a file may contain, besides those that skops trusts: most of scikit-learn's estimators."""


@dataclass(frozen=True)
class Model:
    """A fitted head, with the address and identity of the features that it was fitted on.

    >>> model = load("data/models/probe")
    >>> model.taps, model.predict(Features.open("features/penultimate")).shape
    (['penultimate'], (6,))
    """

    path: Path
    head: Any
    kind: Kind
    classes: Sequence[str]
    scores_are: Scores
    taps: Sequence[str]
    made_from: Mapping[str, FeaturesRecord]
    """The features that the head was fitted on, by tap."""

    def check(self, *taps: Features) -> None:
        """Raise HeadError, with the fields that differ, for features of another identity than the training features."""
        if len(taps) != len(self.taps):
            raise HeadError(f"{self.path}: expected the features of {', '.join(self.taps)}, got {len(taps)} taps.")
        problems = []
        for name, tap in zip(self.taps, taps, strict=True):
            if tap.index.address != self.made_from[name].address:
                different = differences(self.made_from[name].identity, tap.identity)
                problems.append(f"{name} ({tap.folder}): {'; '.join(different)}")
        if problems:
            title = f"{self.path}: the head was fitted on other features. Extract those, or fit a head on these."
            raise HeadError(bullets(title, problems))

    def predict(self, *taps: Features, keys: Keys | None = None) -> np.ndarray:
        """Return predictions for `keys`, or all keys of the first tap, in their order and the form of `Task.targets`.

        taps: in the order of the head's input. Raises HeadError as `check` does, and StoreError for unknown keys.
        """
        return self._map_blocks(lambda X: predictions_of(self.head, X, kind=self.kind), taps, keys)

    def scores(self, *taps: Features, keys: Keys | None = None) -> np.ndarray:
        """Return the head's scores (keys, classes), float32, in the order of `classes`; NaN if it has none."""

        def score(X: np.ndarray) -> np.ndarray:
            return scores_of(self.head, X, kind=self.kind, scores=self.scores_are, classes=self.classes)

        return self._map_blocks(score, taps, keys)

    def _map_blocks(
        self, function: Callable[[Any], np.ndarray], taps: Sequence[Features], keys: Keys | None
    ) -> np.ndarray:
        self.check(*taps)
        rows = Rows(taps, taps[0].key_array if keys is None else keys)
        return np.concatenate([function(block) for _, block in blocks(rows)])


def load(
    folder: AnyPath, file: str | None = None, *, trusted: Sequence[str] = (), features: AnyPath | None = None
) -> Model:
    """Load a head from a run's folder by its file name, which may be omitted if there is a single head.

    trusted: further types that the file may contain, such as those of a class by import path. features: folder of the
    backbone's taps, from which heads such as `streaming_knn` read their training rows. Raises HeadError for a missing
    head, untrusted types, and features or training rows that differ from those of the fit.
    """
    folder = as_path(folder, "load: folder")
    features = None if features is None else as_path(features, "load: features")
    record = read_record(folder)
    if isinstance(record, NetworkRecord):
        raise HeadError(f"{folder}: expected a run of fit, whose models are heads, got a run whose model is a network.")
    fits = {fit.file: fit for fit in record.fits}
    if file is None and len(fits) > 1:
        raise HeadError(
            f"{folder}: expected the file name of one of {len(fits)} heads, got none: {', '.join([*fits][:12])}."
        )
    file = next(iter(fits)) if file is None else file
    if file not in fits:
        raise HeadError(f"{folder}: {unknown('head', file, fits)}")
    fit = fits[file]
    model = Model(
        path=folder / file,
        head=read(folder / file, trusted=trusted),
        kind=record.task.kind,
        classes=list(record.task.classes),
        scores_are=record.scores[fit.head],
        taps=fit.taps,
        made_from=record.features,
    )
    if features is not None and knn_rows.needs_rows(model.head):
        taps = [Features.open(features / name) for name in model.taps]
        model.check(*taps)
        knn_rows.attach_rows(model.head, *taps, record=fit.rows, folder=folder)
    return model


def read(path: Path, *, trusted: Sequence[str] = ()) -> Any:
    """Read the estimator in a file, without running code; raises HeadError as `load` does."""
    skops = skops_io()
    check_readable(path)
    try:
        names = skops.get_untrusted_types(file=path)
        if own := sorted(name for name in {*names} - {*TRUSTED, *trusted} if name.startswith("pipeline.")):
            raise HeadError(
                f"{path}: expected estimators of this version of icecore, got {', '.join(own)} of another one. Fit the "
                "run again: `icecore repro -f fit@<its name>`."
            )
        if strange := sorted({*names} - {*TRUSTED, *trusted}):
            raise HeadError(
                f"{path}: expected types that icecore trusts, got {', '.join(strange)}. It was not loaded. "
                "If you trust the source of the file, list these types in `trusted`."
            )
        return skops.load(path, trusted=names)
    except (zipfile.BadZipFile, OSError, KeyError) as error:
        raise HeadError(f"{path}: expected a head that icecore saved, got {error}. Fit the run again.") from None
