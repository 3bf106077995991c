"""Preprocessing steps and heads as torch modules on rows, float32 (n, width).

Each module computes the same as an estimator of scikit-learn or `pipeline.streaming`, using only operations that every
exporter supports.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}
"""The activations of scikit-learn's multi-layer perceptrons."""

CERTAIN = 40.0
"""A decision value whose probability rounds to 1 in float32."""


def to_tensor(values: Any, dtype: Any = np.float32) -> Tensor:
    """Copy an array into a tensor."""
    return torch.from_numpy(np.array(values, dtype=dtype, order="C"))


class Standardise(nn.Module):
    """Subtract a mean and divide by a scale; either may be None."""

    def __init__(self, mean: Any | None, scale: Any | None) -> None:
        super().__init__()
        self.mean: Tensor | None
        self.scale: Tensor | None
        self.register_buffer("mean", None if mean is None else to_tensor(mean))
        self.register_buffer("scale", None if scale is None else to_tensor(scale))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) to (n, width)."""
        rows = rows if self.mean is None else rows - self.mean
        return rows if self.scale is None else rows / self.scale


class Normalise(nn.Module):
    """Scale each part of a row to length 1, unless it is 0. `parts`: start and stop of each part."""

    def __init__(self, parts: Sequence[tuple[int | None, int | None]]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) to (n, width)."""
        return torch.cat([to_directions(rows[:, start:stop]) for start, stop in self.parts], dim=1)


def to_directions(rows: Tensor) -> Tensor:
    """Scale rows to length 1; rows of zeros stay zero."""
    lengths = rows.square().sum(dim=1, keepdim=True).sqrt()
    return rows / torch.where(lengths > 0, lengths, torch.ones_like(lengths))


class Components(nn.Module):
    """Project to principal components: (n, width) to (n, components). `deviation`: of each component, for whitening."""

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Any, components: Any, deviation: Any | None) -> None:
        super().__init__()
        scale = np.ones(len(components)) if deviation is None else deviation
        self.register_buffer("mean", to_tensor(mean))
        self.register_buffer("components", to_tensor((components / scale[:, None]).T))

    def forward(self, rows: Tensor) -> Tensor:
        """Project the centred rows."""
        return (rows - self.mean) @ self.components


class Linear(nn.Module):
    """A linear layer: decision values, or the values of a regression, (n, width) to (n, outputs)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, coef: Any, intercept: Any) -> None:
        super().__init__()
        coef = np.atleast_2d(coef)
        self.register_buffer("weight", to_tensor(coef.T))
        self.register_buffer("bias", to_tensor(np.broadcast_to(intercept, len(coef))))

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply and add."""
        return rows @ self.weight + self.bias


class Likelihoods(nn.Module):
    """Map decision values (n, classes) to probabilities; a single column belongs to the second of two classes."""

    def forward(self, values: Tensor) -> Tensor:
        """Take the softmax, or the logistic function."""
        if values.shape[1] == 1:
            values = values.sigmoid()
            return torch.cat([1 - values, values], dim=1)
        return values.softmax(dim=1)


class BothClasses(nn.Module):
    """Map the decision values of two classes from a single column (n, 1) to a column per class (n, 2)."""

    def forward(self, values: Tensor) -> Tensor:
        """Negate the column for the first class."""
        return torch.cat([-values, values], dim=1)


class Logarithms(nn.Module):
    """Map probabilities to decision values, as scikit-learn's calibration does."""

    def forward(self, values: Tensor) -> Tensor:
        """Map (n, classes) to (n, classes)."""
        return (values + 1e-12).log()


class Temperature(nn.Module):
    """Map decision values (n, classes) to probabilities at a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.factor = 1.0 / temperature

    def forward(self, values: Tensor) -> Tensor:
        """Divide and take the softmax."""
        return (values * self.factor).softmax(dim=1)


class LastColumn(nn.Module):
    """Select the last column (n, 1), which belongs to the second of two classes."""

    def forward(self, values: Tensor) -> Tensor:
        """Map (n, classes) to (n, 1)."""
        return values[:, -1:]


class Columns(nn.Module):
    """Apply several heads to the same rows, and concatenate their columns."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) to (n, heads)."""
        return torch.cat([head(rows) for head in self.heads], dim=1)


class Nearness(nn.Module):
    """Similarity of rows to the mean of each class (n, classes): the cosine, or minus half the squared distance."""

    means: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, means: Any, center: Any, scale: Any, *, cosine: bool) -> None:
        super().__init__()
        # Centred on the mean of the means, to keep squares small compared with the distances.
        center = center if cosine else means.mean(axis=0)
        standard = (means - center) / scale
        self.cosine = cosine
        for name, values in (("means", standard), ("center", center), ("scale", scale)):
            self.register_buffer(name, to_tensor(values))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) to (n, classes)."""
        rows = (rows - self.center) / self.scale
        if self.cosine:
            return to_directions(rows) @ to_directions(self.means).T
        return rows @ self.means.T - (self.means**2).sum(dim=1) / 2 - (rows**2).sum(dim=1, keepdim=True) / 2


class GaussianLikelihoods(nn.Module):
    """Log likelihoods of classes with independent Gaussian features, (n, classes), in float64 for large squares."""

    center: Tensor
    precision: Tensor
    linear: Tensor
    constant: Tensor

    def __init__(self, means: np.ndarray, variances: np.ndarray, priors: np.ndarray) -> None:
        super().__init__()
        center = means.mean(axis=0)
        means = means - center
        constant = np.log(priors) - 0.5 * (np.log(2 * np.pi * variances) + means**2 / variances).sum(axis=1)
        parts = {
            "center": center,
            "precision": -0.5 / variances.T,
            "linear": (means / variances).T,
            "constant": constant,
        }
        for name, values in parts.items():
            self.register_buffer(name, to_tensor(values, np.float64))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) float32 to (n, classes) float32."""
        rows = rows.double() - self.center
        result = rows**2 @ self.precision + rows @ self.linear + self.constant
        return (result - result.amax(dim=1, keepdim=True)).float()


class SumOfTrees(nn.Module):
    """Boosting: the baseline plus the sum of the values of all trees, for each output, (n, outputs)."""

    first: Tensor

    def __init__(self, values: nn.Module, first: np.ndarray) -> None:
        super().__init__()
        self.values = values
        self.register_buffer("first", to_tensor(first.reshape(1, -1)))

    def forward(self, rows: Tensor) -> Tensor:
        """Sum the trees, which are ordered by iteration, with one tree per output in each iteration."""
        result: Tensor = self.values(rows)[:, :, 0]
        return result.reshape(result.shape[0], -1, self.first.shape[1]).sum(dim=1) + self.first


class MeanOfTrees(nn.Module):
    """A forest: the mean of the values of all trees, (n, outputs)."""

    def __init__(self, values: nn.Module) -> None:
        super().__init__()
        self.values = values

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) to (n, outputs)."""
        result: Tensor = self.values(rows).mean(dim=1)
        return result


def build_perceptron(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], activation: str) -> nn.Sequential:
    """Return a multi-layer perceptron without the activation of its last layer."""
    result = nn.Sequential()
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if number:
            result.append(ACTIVATIONS[activation]())
        result.append(Linear(weight.T, bias))
    return result
