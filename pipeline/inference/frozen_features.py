"""A scikit-learn transformer from images to rows of a frozen network."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from pipeline.backbones.hooks import PENULTIMATE
from pipeline.backbones.spec import SPEC_FILE, row_shape
from pipeline.embed import parse_tap
from pipeline.errors import ConfigError, DataError
from pipeline.inference.backbone import Backbone
from pipeline.inference.row_cache import rows_of


class FrozenFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Transform images into rows of a layer of a frozen network, in pipelines and searches of scikit-learn.

    model: a name of torchvision or timm, the folder of a backbone or of a run, or a `Backbone`.
    tap: a node or alias that `Backbone.layers` lists, or `node:pooling`.
    pool: the pooling, if `tap` names none.
    weights, file, source: for a model name, as in `Backbone`.
    candidates: further taps to compute in the same forward pass, such as all taps of a search. Each image then goes
    through the network only once.
    cache: store rows of files in the feature cache. Rows of images in memory are cached by the process, up to a limit.
    dtype: values are rounded to this dtype, as in stored features; the returned rows are float32.

    X is a list of images as in `Backbone.embed`, or a column of paths in a data frame. `fit` learns nothing; it checks
    the settings. A pickle has the name or the folder of the model, but no weights.

    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> head = make_pipeline(FrozenFeatures("data/backbones/tiny", tap="block1:mean"), LogisticRegression())
    >>> head.fit(["photos/0.png", "photos/1.png"], ["dark", "light"]).predict(["photos/1.png"])
    array(['light'], dtype='<U5')
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Backbone = "mobilenet_v2",
        *,
        tap: str = PENULTIMATE,
        pool: str | None = None,
        weights: Any = None,
        file: str | os.PathLike[str] | None = None,
        source: Literal["torchvision", "timm"] | None = None,
        candidates: Sequence[str] = (),
        cache: bool = True,
        dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    ) -> None:
        self.model, self.tap, self.pool = model, tap, pool
        self.weights, self.file, self.source = weights, file, source
        self.candidates, self.cache, self.dtype = candidates, cache, dtype

    def fit(self, X: Any = None, y: Any = None) -> "FrozenFeatures":  # noqa: ARG002
        """Check the settings, and freeze the model if it is new; X and y are ignored.

        Raises BackboneError for an unknown model, tap or pooling, ConfigError for settings that conflict.
        """
        self.n_features_out_ = self._width()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the rows of the tap, float32 (images, values), in the order of the images.

        Raises DataError for an unusable image, TypeError for a value that is no image.
        """
        backbone = self._backbone()
        if isinstance(self.candidates, str):
            raise TypeError(f"FrozenFeatures: candidates: expected a list of taps, got the text {self.candidates!r}.")
        more = [tap for tap in self.candidates if tap != self.tap]
        specs = backbone.specs([self.tap, *dict.fromkeys(more)], self.pool, self.dtype)
        rows = rows_of(backbone, specs, _images(X), stored=self.cache)[self.tap]
        return rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).astype(np.float32, copy=False)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """Return a name for each value: the tap with its pooling, and a number, such as `layer3-mean_0`."""
        pooled = self.tap if self.pool is None or ":" in self.tap else f"{self.tap}:{self.pool}"
        name, _ = parse_tap(pooled, self.dtype)
        return np.array([f"{name}_{number}" for number in range(self._width())], dtype=object)

    def _width(self) -> int:
        """Return the number of values per row, without running the network."""
        backbone = self._backbone()
        spec = next(iter(backbone.specs([self.tap], self.pool, self.dtype).values()))
        return int(np.prod(row_shape(backbone.spec.taps[backbone.spec.node(spec.node)], spec)))

    def _backbone(self) -> Backbone:
        if isinstance(self.model, Backbone):
            if (self.weights, self.file, self.source) != (None, None, None):
                raise ConfigError("FrozenFeatures: a Backbone has its weights. Leave out weights, file and source.")
            return self.model
        if not isinstance(self.model, str | os.PathLike):
            raise TypeError(
                f"FrozenFeatures: model: expected a name, a folder or a Backbone, got {type(self.model).__name__}. Of "
                "a torch.nn.Module make a Backbone with its transform."
            )
        weights = getattr(self.weights, "name", self.weights)
        file = None if self.file is None else os.fspath(self.file)
        return _shared_backbone(os.fspath(self.model), weights, file, self.source, _state_of(os.fspath(self.model)))

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


@functools.lru_cache(maxsize=4)
def _shared_backbone(model: str, weights: Any, file: str | None, source: Any, _state: Any) -> Backbone:
    """Return a backbone that all transformers with the same model share, so that clones and folds load it once."""
    return Backbone(model, weights=weights, file=file, source=source)


def _state_of(model: str) -> tuple[str, int] | None:
    """Return the path and the time of a model's folder, so that a changed model is loaded again; None for a name."""
    for folder in (Path(model), Path(model) / "backbone"):
        path = folder / SPEC_FILE
        if path.is_file():
            return str(path.resolve()), path.stat().st_mtime_ns
    return None


def _images(X: Any) -> Any:
    """Convert a column of a data frame, or an array of text, to a list; return other images as they are."""
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUT":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise DataError(f"expected one column of paths or images, got the shape {X.shape}. Name the column.")
        return X.tolist()
    return X
