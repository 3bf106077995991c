"""Poolings: from the value of a tap to the stored row. They run on the device, before the copy to the host.

none          unchanged                                       any
flatten       flattened                                       any
mean max      over height and width                           maps
gem           generalised mean over height and width, p = 3   maps, not negative (Radenović et al. 2018, eq. 3)
mean+std      mean, then standard deviation                   maps
avg<h>x<w>    mean in the cells of a grid, channels first     maps
cls           the class token                                 tokens
mean_tokens   mean over the tokens after the prefix           tokens
"""

import torch
from torch import Tensor, nn

from pipeline.backbones.spec import GRID, Tap

GEM_P, GEM_MIN = 3.0, 1e-6  # the published defaults


def pool(value: Tensor, pooling: str, tap: Tap) -> Tensor:
    """Pool the value of a tap (n, ...); the result never shares memory with `value`."""
    if pooling == "none" or (pooling == "mean" and tap.averaged):
        return value.clone(memory_format=torch.contiguous_format)
    if pooling == "flatten":
        return value.flatten(1).clone()
    if pooling == "cls":
        return value[:, 0].clone()
    if pooling == "mean_tokens":
        return value[:, tap.prefix :].mean(dim=1)
    maps = value.permute(0, 3, 1, 2) if tap.layout == "HWC" else value
    if pooling == "mean":
        return maps.mean(dim=(2, 3))
    if pooling == "max":
        return maps.amax(dim=(2, 3))
    if pooling == "gem":
        return maps.clamp(min=GEM_MIN).pow(GEM_P).mean(dim=(2, 3)).pow(1 / GEM_P)
    if pooling == "mean+std":
        return torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), correction=0)], dim=1)
    grid = GRID.fullmatch(pooling)
    assert grid is not None, "TapSpec checked the pooling"
    return nn.functional.adaptive_avg_pool2d(maps, (int(grid[1]), int(grid[2]))).flatten(1)
