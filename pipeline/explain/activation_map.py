"""Exact evidence at each position of a map, for scores that are linear in the row that the map is pooled to.

Class activation maps (Zhou et al. 2016, Learning Deep Features for Discriminative Localization, eq. 2): where the row
is the mean of the map A over positions, weights w @ A at a position are its part of the score. Each other pooling here
is linear in the map, or grows with it in proportion (max, gem, standard deviation). By Euler's theorem for such
functions the parts gradient x value of all positions and channels then sum up to the pooled value too.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.backbones import projection
from pipeline.backbones.spec import TapSpec
from pipeline.explain.tap_maps import TapMap, grid_of


@dataclass(frozen=True)
class TapEvidence:
    """The part that a tap has in a score: `map` (rows, columns) whose mean plus `rest` is the part; None without a map.

    `rest`: what comes from no position of the map, such as the class token.
    """

    map: np.ndarray | None
    rest: float

    @property
    def total(self) -> float:
        """The part of the score."""
        return self.rest + (0.0 if self.map is None else float(self.map.mean()))


def weights_of_pooled(weights: np.ndarray, spec: TapSpec, width: int) -> np.ndarray:
    """Return the weights of the pooled, flat values (width,) of a tap, from those of its row, maybe projected."""
    if spec.project is None:
        return weights
    return np.asarray(projection.matrix(width, spec.project).T @ weights)


def activation_map(tap_map: TapMap, spec: TapSpec, weights: np.ndarray, size: tuple[int, int]) -> TapEvidence:
    """Return the evidence of a tap for a score with weights (width of the row,); size: of the image (height, width)."""
    value = tap_map.value.double().requires_grad_()
    row = tap_map.row(value)
    pooled = torch.from_numpy(weights_of_pooled(np.asarray(weights, np.float64), spec, len(row)))
    part = row @ pooled
    [gradient] = torch.autograd.grad(part, value)
    # The gradient of a standard deviation that is 0 is no number; its part is 0.
    shares = (gradient.nan_to_num(0.0) * value).detach()[0]
    tap, total = tap_map.tap, float(part.detach())
    if tap.layout == "LC":
        per_token = shares.sum(-1)[tap.prefix :]
        grid = grid_of(len(per_token), size)
        if grid is None:
            return TapEvidence(None, total)
        positions = per_token.reshape(grid)
    else:
        positions = shares.sum(0 if tap.layout == "CHW" else -1)
    evidence = positions.numpy() * positions.numel()
    return TapEvidence(evidence, total - float(evidence.mean()))
