"""Check what params.yaml refers to: data, weight files, models, nodes, heads, and columns of data sets.

No features are computed and no outputs are written. Problems that need them are left to the stages.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.settings.check import all_entries
from pipeline.settings.repair import UNKNOWN
from pipeline.task import Kind
from stages import project

Values = Mapping[str, Any]


def find_problems(values: Values) -> list[str]:
    """Return a problem for each reference in the settings that is missing or unsuitable.

    The valid settings of a partly invalid entry are checked too.
    """
    problems = [*_of_data(values), *_of_backbones(values), *_of_tasks(values), *_of_heads(values)]
    return [line for line in problems if UNKNOWN not in line]


def _of_data(values: Values) -> Iterator[str]:
    """Yield data sets whose root, folders or columns are missing.

    Not checked are URLs, which need a network, and roots that `sample` has still to write.
    """
    from pipeline.prepare.find import label_types
    from pipeline.prepare.roots import inspect_roots
    from pipeline.sources import filesystem as files

    for name, config in all_entries(values, "prepare"):
        where, root = f"prepare.{name}", Path(config.root)
        if not _is_here(config.root, values):
            continue
        if root.resolve() in (project.DATA.resolve(), *project.DATA.resolve().parents):
            yield (
                f"{where}.root: expected a folder that holds no outputs of stages, got {config.root}, with "
                f"{project.DATA} in it. Put the data into a folder of their own."
            )
            continue
        try:
            label_types(config, inspect_roots(config))
        except (PipelineError, OSError) as error:
            yield f"{where}: {_one_line(error)}"
            continue
        if config.base is not None and not files.is_url(config.base) and files.path_kind(config.base) != "folder":
            yield f"{where}.base: {config.base}: no such folder. Set it to the folder that the list's paths start from."


def _is_here(root: str, values: Values) -> bool:
    """Return whether a root can be checked: it is no URL, and nothing that `sample` has still to write."""
    from pipeline.sources import filesystem as files

    samples = [(project.RAW / name).as_posix() for name, _ in all_entries(values, "sample")]
    is_sample = any(root == sample or root.startswith(f"{sample}/") for sample in samples)
    return not files.is_url(root) and (not is_sample or Path(root).exists())


def _of_tasks(values: Values) -> Iterator[str]:
    """Yield the problems of tasks in their data sets: columns, domains, classes, splits.

    If all data sets are prepared, the task is split as by the stage. Otherwise the files are listed, but not opened.
    """
    from pipeline.split.run import check_names, split

    with tempfile.TemporaryDirectory(prefix="icecore-check-") as folder:
        outlined: dict[str, bool] = {}
        for name, config in all_entries(values, "split"):
            datasets = [dataset for dataset in config.datasets if dataset != UNKNOWN]
            prepared = all((project.MANIFESTS / f"{dataset}.parquet").is_file() for dataset in datasets)
            try:
                if prepared:
                    split(config, project.MANIFESTS)
                elif all(_outline(dataset, values, Path(folder), outlined) for dataset in datasets):
                    check_names(config, Path(folder))
            except PipelineError as error:
                again = " ".join(f"prepare@{dataset}" for dataset in datasets)
                source = f"By the last `icecore repro {again}`" if prepared else "By the names of files and the lists"
                text = _one_line(error).replace(f"{folder}/", "").replace(".parquet: ", ": ")
                yield f"split.{name}: {text} ({source}.)"


def _outline(dataset: str, values: Values, folder: Path, outlined: dict[str, bool]) -> bool:
    """Write the outline of a data set that is not prepared; return whether that was possible."""
    import pyarrow.parquet as pq

    from pipeline.prepare.outline import outline_manifest

    if dataset not in outlined:
        outlined[dataset] = False
        config = values["prepare"].get(dataset)
        if config is not None and _is_here(config.root, values):
            try:
                table = outline_manifest(config)
            except (PipelineError, OSError):  # `_of_data` reports the problem
                table = None
            if table is not None:
                pq.write_table(table, folder / f"{dataset}.parquet")
                outlined[dataset] = True
    return outlined[dataset]


def _of_heads(values: Values) -> Iterator[str]:
    """Yield the problems of heads and their parameters."""
    from pipeline.heads.check import check_head

    for run, config in all_entries(values, "fit"):
        task = values["split"].get(config.task)
        for name, params in config.heads.values():
            where = f"fit.{run}.head.{name}" if isinstance(config.head, dict) else f"fit.{run}.params"
            kind: Kind = "classification" if task is None else task.kind
            for line in check_head(name, params, kind=kind, search=config.search_of(name, params)):
                place, _, message = line.partition(": ")
                key = place.removeprefix("params.")
                yield f"{where}.{key}: {message}" if key != place else f"fit.{run}.{line}"


def _of_backbones(values: Values) -> Iterator[str]:
    """Yield the problems of backbones, of the nodes of their taps, and of the nodes that trainings name."""
    if not all_entries(values, "freeze"):
        return
    from pipeline.freeze.config import LocalWeights
    from pipeline.freeze.load import load
    from pipeline.freeze.outline import Outline, check_file, outline

    outlines: dict[str, Outline | None] = {}
    for name, config in all_entries(values, "freeze"):
        has_file = isinstance(config, LocalWeights) and config.file is not None
        if isinstance(config, LocalWeights) and (problem := check_file(config)):
            yield f"freeze.{name}.file: {problem}"
            has_file = False
        try:
            if has_file:
                load(config, pretrained=project.PRETRAINED)  # fails if the weights do not fit the network
            outlines[name] = outline(config, pretrained=project.PRETRAINED)
        except PipelineError as error:
            yield f"freeze.{name}: {_one_line(error)}"
    for name, config in all_entries(values, "extract"):
        for tap, spec in config.taps.items():
            network = outlines.get(name)
            if network is not None and (problem := network.check_tap(spec)):
                yield f"extract.{name}.taps.{tap}: {problem}"
    for where, backbone, node in _nodes_of_trainings(values):
        network = outlines.get(backbone)
        if network is not None and (problem := network.check_node(node)):
            yield f"{where}: {problem}"


def _nodes_of_trainings(values: Values) -> Iterator[tuple[str, str, str]]:
    """Yield the setting, the backbone and the node, for each node that a training names."""
    for section, network in (("finetune", "backbone"), ("distill", "student")):
        for name, item in all_entries(values, section):
            where, backbone = f"{section}.{name}", getattr(item, network)
            if (from_tap := getattr(getattr(item, "train", None), "from_tap", None)) is not None:
                yield f"{where}.train.from_tap", backbone, from_tap
            for epoch, node in getattr(item, "unfreeze", {}).items():
                yield f"{where}.unfreeze.{epoch}", backbone, node
    for name, item in all_entries(values, "teach"):
        for node in item.hints:
            yield f"teach.{name}.hints", item.backbone, node


def _one_line(error: Exception) -> str:
    """Return a message with its bullets joined into one line."""
    first, *more = str(error).splitlines()
    return f"{first}: {'; '.join(line.strip().removeprefix('- ') for line in more)}" if more else first
