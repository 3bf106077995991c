"""Decision trees as tensors: all rows descend one level of every tree of an ensemble at a time.

The operations are basic (gather, compare, select), so that ONNX Runtime, OpenVINO and torch all support them. This is
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
    """A decision tree as arrays (nodes,): a row goes `left` if its `feature` is at most `threshold`, else `right`.

    A leaf is its own child.
    value: the values of leaves, (nodes, values).
    depth: steps from the root to the lowest leaf.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    depth: int


class TreeValues(nn.Module):
    """Map rows, float32 (n, width), to the value of each row's leaf in each tree, float32 (n, trees, values)."""

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

        def concatenate(name: str, *, shift: bool = False) -> np.ndarray:
            parts = [getattr(tree, name) + (start if shift else 0) for tree, start in zip(trees, starts, strict=False)]
            return np.concatenate(parts)

        arrays = {
            "roots": starts[:-1],
            "feature": concatenate("feature").clip(min=0).astype(np.int64),
            "threshold": _floor(concatenate("threshold")),
            "left": concatenate("left", shift=True).astype(np.int64),
            "right": concatenate("right", shift=True).astype(np.int64),
            "value": concatenate("value").astype(np.float32),
        }
        for name, values in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (n, width) to (n, trees, values)."""
        node = self.roots.expand(rows.shape[0], -1)
        for _ in range(self.depth):
            goes_left = rows.gather(1, self.feature[node]) <= self.threshold[node]
            node = torch.where(goes_left, self.left[node], self.right[node])
        return self.value[node]


def _floor(thresholds: np.ndarray) -> np.ndarray:
    """Round each float64 down to a float32, so that comparisons with float32 rows do not change."""
    with np.errstate(over="ignore"):
        result = thresholds.astype(np.float32)
    return np.where(result > thresholds, np.nextafter(result, np.float32(-np.inf)), result)


def read_forest(estimators: Sequence[Any], *, labels: bool) -> list[Tree]:
    """Return the trees of a forest. The values of leaves are class shares; with `labels`, the share of each label."""
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
    """Return the trees of histogram gradient boosting: by iteration, with one tree per class in each.

    Raises ValueError for a tree that splits by categories.
    """
    result = []
    for predictor in (tree for iteration in predictors for tree in iteration):
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
