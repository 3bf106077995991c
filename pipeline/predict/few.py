"""Predict a few images in this process, with torch, without storing features."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.errors import DataError
from pipeline.predict.exported import ExportedModel
from pipeline.predict.inputs import Input
from pipeline.predict.output_table import Block, Columns
from pipeline.predict.row_source import RowSource
from pipeline.prepare.check_images import UNRECOGNISED, resolve_kind
from pipeline.readers.image import NotAnImageError, check
from pipeline.runtime import Progress


def predict_few(
    columns: Columns,
    inputs: Sequence[Input],
    networks: Sequence[RowSource | ExportedModel],
    *,
    max_pixels: int,
    progress: Progress,
) -> tuple[Block, dict[str, int]]:
    """Return the predictions of some inputs, and the number of skipped files by kind, such as texts among images.

    networks: the model's own network, and a second network for `near` if that needs one.
    max_pixels: larger images are refused.
    """
    refused: dict[int, tuple[Any, Any]] = {
        number: item.sample.refused for number, item in enumerate(inputs) if item.sample.refused[0] is not None
    }
    usable: list[list[int]] = []
    rows: list[dict[str, np.ndarray]] = []
    for network in networks:
        pending = [number for number in range(len(inputs)) if number not in refused]
        opened: list[int] = []
        unusable: dict[int, DataError] = {}

        data = _read(inputs, pending, opened, refused, max_pixels, progress)
        positions, values = network.run(data, len(pending), unusable)
        for position, error in unusable.items():
            refused[opened[position]] = _kind_and_reason(inputs[opened[position]], error)
        usable.append([opened[position] for position in positions])
        rows.append(values)
    # An image must be usable by all networks.
    common = [number for number in usable[0] if all(number in own for own in usable)]
    rows = [_select(values, own, common) for values, own in zip(rows, usable, strict=True)]
    others = Counter(kind for kind, _ in refused.values() if kind not in ("unreadable", None))
    listed = [number for number in range(len(inputs)) if refused.get(number, ("unreadable", ""))[0] == "unreadable"]
    block = Block(
        [inputs[number].sample.path for number in listed],
        [refused[number][1] if number in refused else None for number in listed],
        columns.model.answer_rows(rows[0]),
        columns.nearest(rows[-1]),
    )
    return block, {str(kind): count for kind, count in others.items()}


def _read(
    inputs: Sequence[Input],
    numbers: Sequence[int],
    opened: list[int],
    refused: dict[int, tuple[Any, Any]],
    max_pixels: int,
    progress: Progress,
) -> Iterator[bytes]:
    """Yield the bytes of the readable inputs; append their numbers to `opened`, those of the others to `refused`."""
    contents = sources.read_in_order([inputs[number].sample.location for number in numbers])
    for number, data in zip(numbers, contents, strict=True):
        try:
            if isinstance(data, OSError):
                raise data
            check(data, decode_pixels=False, max_pixels=max_pixels)
        except (OSError, DataError) as error:
            refused[number] = _kind_and_reason(inputs[number], error)
            continue
        opened.append(number)
        yield data
        progress(len(opened), len(numbers))


def _kind_and_reason(item: Input, error: DataError | OSError) -> tuple[str, str]:
    """Return the kind of the problem with an input, as `prepare` names it, and the reason."""
    if isinstance(error, OSError):
        return "unreadable", error.strerror or str(error)
    kind = UNRECOGNISED if isinstance(error, NotAnImageError) else "unreadable"
    *_, resolved, _ = resolve_kind(item.sample.location, (None, None, kind, str(error)), all_are_samples=item.named)
    return str(resolved), str(error)


def _select(rows: dict[str, np.ndarray], own: Sequence[int], common: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the rows of the inputs in `common`. own: the input number of each row."""
    if len(own) == len(common):
        return rows
    wanted = {*common}
    positions = [position for position, number in enumerate(own) if number in wanted]
    return {tap: values[positions] for tap, values in rows.items()}
