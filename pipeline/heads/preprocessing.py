"""Preprocessing before a head: scaling or normalisation per tap, then principal components."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.settings.check import Settings

Scale = Literal["standard", "l2", "none"]


class Pca(Settings):
    """Principal components of the scaled features, as input of the head."""

    components: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)] = Field(
        description="number of components, or share of variance to explain (below 1)"
    )
    whiten: bool = Field(default=False, description="scale each component to variance 1")


def preprocessing_steps(scale: Scale, widths: Sequence[int], pca: Pca | None, *, streaming: bool = False) -> list[Any]:
    """Create transformers for concatenated taps of these widths; `streaming`: they accept and return row sources.

    Standardisation is per column, and so the same for concatenated taps. L2 normalisation is per tap, except for
    streaming transformers.
    """
    if streaming:
        return _streaming_steps(scale, pca)
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import Normalizer, StandardScaler

    transformers: list[Any] = []
    if scale == "standard":
        transformers.append(StandardScaler())
    elif scale == "l2" and len(widths) > 1:
        parts = pairwise(accumulate(widths, initial=0))
        transformers.append(
            ColumnTransformer([(f"tap{i}", Normalizer(), slice(*part)) for i, part in enumerate(parts)])
        )
    elif scale == "l2":
        transformers.append(Normalizer())
    if pca is not None:
        transformers.append(PCA(pca.components, whiten=pca.whiten, random_state=0))
    return transformers


def _streaming_steps(scale: Scale, pca: Pca | None) -> list[Any]:
    from pipeline.streaming.pca import StreamingPCA
    from pipeline.streaming.scaler import StreamingNormalizer, StreamingScaler

    transformers: list[Any] = {"standard": [StreamingScaler()], "l2": [StreamingNormalizer()], "none": []}[scale]
    return transformers if pca is None else [*transformers, StreamingPCA(pca.components, whiten=pca.whiten)]
