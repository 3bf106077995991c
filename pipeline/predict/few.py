"""Predict a few images in this process, by torch, in one batch or some; nothing is stored."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.errors import DataError
from pipeline.predict.exported import ExportedModel
from pipeline.predict.inputs import Input
from pipeline.predict.inventory import location
from pipeline.predict.output_table import Block, Columns
from pipeline.predict.row_source import RowSource
from pipeline.prepare.check_images import UNRECOGNISED, settle
from pipeline.readers.image import NotAnImageError
from pipeline.runtime import Progress


def predict_few(
    columns: Columns, inputs: Sequence[Input], networks: Sequence[RowSource | ExportedModel], *, progress: Progress
) -> tuple[Block, dict[str, int]]:
    """Return the predictions of some inputs, and how many are no rows, such as texts in a folder of images, by kind.

    networks: the model's own, and another one for `near` where there is one.
    """
    refused: dict[int, tuple[Any, Any]] = {
        number: one.sample.refused for number, one in enumerate(inputs) if one.sample.refused[0] is not None
    }
    usable: list[list[int]] = []
    rows: list[dict[str, np.ndarray]] = []
    for network in networks:
        waiting = [number for number in range(len(inputs)) if number not in refused]
        opened: list[int] = []
        unusable: dict[int, DataError] = {}

        data = _read(inputs, waiting, opened, refused, progress)
        numbers, found = network.run(data, len(waiting), unusable)
        for place, error in unusable.items():
            refused[opened[place]] = _kind_and_reason(inputs[opened[place]], error)
        usable.append([opened[place] for place in numbers])
        rows.append(found)
    # An image that one of the networks cannot take is out of both.
    kept = [number for number in usable[0] if all(number in own for own in usable)]
    rows = [_select(one, own, kept) for one, own in zip(rows, usable, strict=True)]
    others = Counter(kind for kind, _ in refused.values() if kind not in ("unreadable", None))
    shown = [number for number in range(len(inputs)) if refused.get(number, ("unreadable", ""))[0] == "unreadable"]
    block = Block(
        [inputs[number].sample.path for number in shown],
        [refused[number][1] if number in refused else None for number in shown],
        columns.model.answer_rows(rows[0]),
        columns.nearest(rows[-1]),
    )
    return block, {str(kind): count for kind, count in others.items()}


def _read(
    inputs: Sequence[Input],
    numbers: Sequence[int],
    opened: list[int],
    refused: dict[int, tuple[Any, Any]],
    progress: Progress,
) -> Iterator[bytes]:
    """Yield the bytes of inputs that can be read, whose numbers go to `opened`; those of the others to `refused`."""
    for container, group in groupby(numbers, key=lambda number: inputs[number].sample.container):
        here = list(group)
        places = [location(inputs[number].sample) for number in here]
        if container is None:
            found: Iterator[bytes | OSError] = (_read_file(place.path) for place in places)
        else:
            found = sources.read_many(container, places)
        for number, data in zip(here, found, strict=True):
            if isinstance(data, OSError):
                refused[number] = _kind_and_reason(inputs[number], data)
                continue
            opened.append(number)
            yield data
            progress(len(opened), len(numbers))


def _read_file(path: str) -> bytes | OSError:
    try:
        return sources.read(path)
    except OSError as error:
        return error


def _kind_and_reason(one: Input, error: DataError | OSError) -> tuple[str, str]:
    """Return what `prepare` calls the trouble with an input, and the reason."""
    if isinstance(error, OSError):
        return "unreadable", error.strerror or str(error)
    kind = UNRECOGNISED if isinstance(error, NotAnImageError) else "unreadable"
    *_, settled, _ = settle(location(one.sample), (None, None, kind, str(error)), all_are_samples=one.named)
    return str(settled), str(error)


def _select(rows: dict[str, np.ndarray], own: Sequence[int], kept: Sequence[int]) -> dict[str, np.ndarray]:
    if len(own) == len(kept):
        return rows
    wanted = {*kept}
    places = [place for place, number in enumerate(own) if number in wanted]
    return {tap: values[places] for tap, values in rows.items()}
