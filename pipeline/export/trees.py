"""Decision trees as tensors: every tree of an ensemble goes down one level at a time, all rows at once.

The operations are plain ones (gather, compare, select), so that ONNX Runtime, OpenVINO and torch all run them. This is
the "tree traversal" of Nakandala et al. 2020, "A Tensor Compiler for Unified Machine Learning Prediction Serving".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tree:
    """One tree. Arrays (nodes,): a row goes to `left` where its `feature` is at most `threshold`, else to `right`.

    A leaf is its own child. `value`: (nodes, values) of the leaves. `depth`: steps from the root to the lowest leaf.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    depth: int


class TreeValues(nn.Module):
    """Rows float32 (n, width) to the value of the leaf that each tree puts the row in, float32 (n, trees, values)."""

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    def __init__(self, trees: Sequence[Tree]) -> None:
        super().__init__()
        starts = np.cumsum([0, *(len(tree.feature) for tree in trees)])
        self.depth = max(tree.depth for tree in trees)

        def joined(name: str, *, shift: bool = False) -> np.ndarray:
            parts = [getattr(tree, name) + (start if shift else 0) for tree, start in zip(trees, starts, strict=False)]
            return np.concatenate(parts)

        arrays = {
            "roots": starts[:-1],
            "feature": joined("feature").clip(min=0).astype(np.int64),
            "threshold": _floor(joined("threshold")),
            "left": joined("left", shift=True).astype(np.int64),
            "right": joined("right", shift=True).astype(np.int64),
            "value": joined("value").astype(np.float32),
        }
        for name, values in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))

    def forward(self, rows: Tensor) -> Tensor:
        """Walk down from the roots."""
        node = self.roots.expand(rows.shape[0], -1)
        for _ in range(self.depth):
            goes_left = rows.gather(1, self.feature[node]) <= self.threshold[node]
            node = torch.where(goes_left, self.left[node], self.right[node])
        return self.value[node]


def _floor(thresholds: np.ndarray) -> np.ndarray:
    """Return the largest float32 that is at most each float64: comparisons with float32 rows then stay the same."""
    with np.errstate(over="ignore"):
        result = thresholds.astype(np.float32)
    return np.where(result > thresholds, np.nextafter(result, np.float32(-np.inf)), result)


def read_forest(estimators: Sequence[Any], *, labels: bool) -> list[Tree]:
    """Return the trees of a forest; values are the shares of classes, or with `labels` the share of each label."""
    result = []
    for estimator in estimators:
        tree = estimator.tree_
        value = tree.value[:, :, 1] if labels else tree.value[:, 0, :]
        leaf = tree.children_left < 0
        own = np.arange(tree.node_count)
        left, right = np.where(leaf, own, tree.children_left), np.where(leaf, own, tree.children_right)
        result.append(Tree(tree.feature, tree.threshold, left, right, value, int(tree.max_depth)))
    return result


def read_boosting(predictors: Sequence[Sequence[Any]]) -> list[Tree]:
    """Return the trees of histogram gradient boosting: iteration after iteration, and in each a tree per class.

    Raises ValueError for a tree that asks for categories.
    """
    result = []
    for predictor in (one for iteration in predictors for one in iteration):
        nodes = predictor.nodes
        if nodes["is_categorical"].any():
            raise ValueError("its trees split by categories")
        leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
        left, right = (np.where(leaf, own, nodes[side].astype(np.int64)) for side in ("left", "right"))
        threshold = np.where(leaf, 0.0, nodes["num_threshold"])
        depth = int(nodes["depth"].max())
        result.append(
            Tree(nodes["feature_idx"].astype(np.int64), threshold, left, right, nodes["value"][:, None], depth)
        )
    return result
