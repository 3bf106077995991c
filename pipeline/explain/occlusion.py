"""Evidence for any head: how much a score drops when a part of the image is covered.

Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, section 4.2. Occlusion needs no gradient,
which trees and nearest neighbours do not have.
"""

from collections.abc import Callable, Sequence

import numpy as np

CELLS = 7
"""Rows and columns of the grid whose cells are covered one at a time."""


def occlusion_maps(
    pixels: np.ndarray,
    scores: Callable[[np.ndarray], np.ndarray],
    *,
    outputs: Sequence[int],
    fill: Sequence[float],
) -> list[np.ndarray]:
    """Return the drop of the score for each covered cell, (rows, columns) for each of `outputs`.

    pixels: uint8 (height, width, channels).
    scores: maps a batch of pixels to scores (n, outputs).
    fill: the colour of a covered cell, 0 to 255 per channel.
    """
    height, width, _ = pixels.shape
    rows, columns = min(CELLS, height), min(CELLS, width)
    covered = np.repeat(pixels[None], rows * columns, axis=0)
    for row in range(rows):
        for column in range(columns):
            down = slice(row * height // rows, (row + 1) * height // rows)
            right = slice(column * width // columns, (column + 1) * width // columns)
            covered[row * columns + column, down, right] = np.round(fill).astype(np.uint8)
    whole = scores(pixels[None])[0]
    drops = whole - scores(covered)
    return [np.asarray(drops[:, output], np.float64).reshape(rows, columns) for output in outputs]
