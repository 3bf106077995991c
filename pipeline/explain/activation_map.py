"""Exact evidence at each position of a map, for scores that are linear in the pooled map.

Class activation maps (Zhou et al. 2016, Learning Deep Features for Discriminative Localization, eq. 2): if the row is
the mean of the map A over positions, then w @ A at a position is its contribution to the score. The other poolings are
homogeneous of degree 1 (linear, max, gem, standard deviation). By Euler's theorem, the contributions gradient × value
of all positions and channels then sum to the pooled value as well.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.backbones import projection
from pipeline.backbones.spec import TapSpec
from pipeline.explain.tap_maps import TapMap, patch_grid


@dataclass(frozen=True)
class TapEvidence:
    """The contribution of a tap to a score: the mean of `map` plus `rest`.

    map: (rows, columns); None for a tap without a map. rest: the part without a position, such as the class token's.
    """

    map: np.ndarray | None
    rest: float

    @property
    def total(self) -> float:
        """The contribution to the score."""
        return self.rest + (0.0 if self.map is None else float(self.map.mean()))


def unproject_weights(weights: np.ndarray, spec: TapSpec, width: int) -> np.ndarray:
    """Return the weights of a tap's pooled values (width,), given the weights of its stored row, projected or not."""
    if spec.project is None:
        return weights
    return np.asarray(projection.matrix(width, spec.project).T @ weights)


def activation_map(tap_map: TapMap, spec: TapSpec, weights: np.ndarray, size: tuple[int, int]) -> TapEvidence:
    """Return the evidence of a tap for a score.

    weights: (width of the row,). size: height and width of the image.
    """
    value = tap_map.value.double().requires_grad_()
    row = tap_map.row(value)
    pooled = torch.from_numpy(unproject_weights(np.asarray(weights, np.float64), spec, len(row)))
    contribution = row @ pooled
    [gradient] = torch.autograd.grad(contribution, value)
    # The gradient of a standard deviation of 0 is NaN; its contribution is 0.
    contributions = (gradient.nan_to_num(0.0) * value).detach()[0]
    tap, total = tap_map.tap, float(contribution.detach())
    if tap.layout == "LC":
        per_token = contributions.sum(-1)[tap.prefix :]
        grid = patch_grid(len(per_token), size)
        if grid is None:
            return TapEvidence(None, total)
        positions = per_token.reshape(grid)
    else:
        positions = contributions.sum(0 if tap.layout == "CHW" else -1)
    evidence = positions.numpy() * positions.numel()
    return TapEvidence(evidence, total - float(evidence.mean()))
