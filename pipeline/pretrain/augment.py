"""Random distortions of a batch of characters, as a pen, a scanner or a small sensor would cause them."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Distort each image by rotation, shear, scale, shift, stroke width, blur and noise.

    images: (n, 1, h, w), values in [0, 1]; the result has the same shape and range.
    """
    images = _stroke(images, generator)
    images = _affine(images, generator)
    images = _resolution(images, generator)
    noise = torch.randn(images.shape, generator=generator) * 0.08 * _uniform(len(images), 0, 1, generator)
    contrast = _uniform(len(images), 0.6, 1.2, generator)
    return (images * contrast + noise).clamp(0, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw values between low and high, (count, 1, 1, 1)."""
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def _stroke(images: Tensor, generator: torch.Generator) -> Tensor:
    """Make the strokes one pixel wider in a third of the images, and one pixel thinner in a sixth."""
    choice = torch.rand(len(images), 1, 1, 1, generator=generator)
    wider = functional.max_pool2d(images, 3, stride=1, padding=1)
    thinner = -functional.max_pool2d(-images, 2, stride=1, padding=1)[..., :-1, :-1]
    return torch.where(choice < 1 / 3, wider, torch.where(choice > 5 / 6, thinner, images))


def _affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 20 degrees, shear by up to 0.4, scale by 0.75 to 1.35, shift by up to a tenth of the side, and
    warp with a smooth random field.
    """
    n, _, height, width = images.shape
    limits = (math.radians(20), 0.4, 0.2, 0.2)
    angle, shear, x, y = (_uniform(n, -limit, limit, generator).flatten() for limit in limits)
    across, down = (_uniform(n, 0.75, 1.35, generator).flatten() for _ in range(2))
    row1 = torch.stack([across * angle.cos(), across * (shear - angle.sin()), x], dim=1)
    row2 = torch.stack([down * angle.sin(), down * angle.cos(), y], dim=1)
    grid = functional.affine_grid(torch.stack([row1, row2], dim=1), list(images.shape), align_corners=False)
    wave = torch.randn(n, 2, 4, 4, generator=generator) * 0.06
    grid = grid + functional.interpolate(wave, size=(height, width), mode="bicubic").permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, align_corners=False)


def _resolution(images: Tensor, generator: torch.Generator) -> Tensor:
    """Downsample the whole batch to 7 to 32 pixels per side, and upsample it again."""
    side = int(torch.randint(7, images.shape[-1] + 1, (1,), generator=generator))
    small = functional.interpolate(images, size=(side, side), mode="area")
    return functional.interpolate(small, size=images.shape[-2:], mode="bilinear")
