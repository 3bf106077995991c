"""Check in params.yaml that extractions and starts provide what runs need."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.settings.check import all_entries

LAST = ("penultimate", "cls")
"""Nodes whose output is the input of the last layer."""

LINEAR = ("logistic", "ridge", "svm", "lda", "streaming_logistic", "streaming_ridge", "streaming_lda")
"""Built-in heads that are a single linear layer, for every kind of task."""

Values = Mapping[str, Any]


def uncovered(values: Values) -> list[str]:
    """Return a problem for each thing that a run needs of its extraction or its start, and that is missing there."""
    return [*_rows_not_extracted(values), *_starts_without_head(values)]


def _rows_not_extracted(values: Values) -> Iterator[str]:
    """Yield runs with data sets that the extraction of their backbone lacks."""
    readers = [("fit", name, item, item.task) for name, item in all_entries(values, "fit")]
    readers += [
        ("finetune", name, item, item.task)
        for name, item in all_entries(values, "finetune")
        if item.input == "features"
    ]
    for section, name, item, task in readers:
        split = values.get("split", {}).get(task)
        if split is not None:
            yield from _missing_datasets(
                values, f"{section}.{name}.task", item.backbone, split.datasets, f"{task} uses"
            )


def _missing_datasets(values: Values, where: str, backbone: str, datasets: Sequence[str], what: str) -> Iterator[str]:
    extracted = values.get("extract", {}).get(backbone)
    known = [dataset for dataset in datasets if dataset in values.get("prepare", {})]
    lacking = [dataset for dataset in known if extracted is not None and dataset not in extracted.datasets]
    if lacking:
        yield (
            f"{where}: {what} {', '.join(lacking)}, which {backbone} is not extracted for. Add to "
            f"`extract.{backbone}.datasets`, or leave it out here."
        )


def _starts_without_head(values: Values) -> Iterator[str]:
    """Yield runs of finetune that start at a run of fit without a head that can replace the network's last layer."""
    for name, item in all_entries(values, "finetune"):
        run = values.get("fit", {}).get(item.start)
        extracted = values.get("extract", {}).get(item.backbone)
        if run is None or extracted is None:
            continue
        where = f"finetune.{name}.start: expected a run of fit with"
        if run.backbone != item.backbone:
            yield f"{where} heads on features of {item.backbone}, got {item.start} on {run.backbone}."
            continue
        last = [tap for tap in run.inputs if isinstance(tap, str) and tap in extracted.taps]
        last = [tap for tap in last if extracted.taps[tap].node in LAST and extracted.taps[tap].project is None]
        if not last:
            yield (
                f"{where} a head on the input of the last layer, got {item.start} on {_named(run.inputs)}. Add a tap "
                "with `node: penultimate` to its `inputs`."
            )
        not_linear = [name for name, (head, _) in run.heads.items() if ":" not in head and head not in LINEAR]
        if len(run.heads) > 1 or not_linear:
            got = ", ".join(run.heads)
            yield f"{where} one linear head, got {item.start} with {got}. Fit `head: logistic` in a run of its own."
        lacking = set(item.labels_per_class) - set(run.labels_per_class)
        if lacking or (run.labels_per_class and not item.labels_per_class):
            yield (
                f"{where} `labels_per_class: {_listed(item.labels_per_class)}`, got {item.start} with "
                f"{_listed(run.labels_per_class)}."
            )


def _named(inputs: Sequence[Any]) -> str:
    return ", ".join(taps if isinstance(taps, str) else "+".join(taps) for taps in inputs)


def _listed(labels: Sequence[int]) -> str:
    return f"[{', '.join(map(str, labels))}]" if labels else "all"
