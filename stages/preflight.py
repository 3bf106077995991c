"""What params.yaml names outside of itself: data, files of weights, models, nodes, and data sets that are prepared.

Nothing is computed and nothing is written. What only a stage can know is left to that stage.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from stages import project

Values = Mapping[str, Any]


def find_problems(values: Values) -> list[str]:
    """Return a problem for each thing that is named in the settings and is not there, or is not what it should be."""
    return [*_of_data(values), *_of_tasks(values), *_of_backbones(values)]


def _of_data(values: Values) -> Iterator[str]:
    """Yield data sets whose root, folders or columns are not there.

    Roots that `sample` writes are left out until it has, and URLs, since asking for them takes a network.
    """
    from pipeline.prepare.find import label_types
    from pipeline.prepare.roots import look
    from pipeline.sources import files

    made = {(project.RAW / name).as_posix() for name in values["sample"]}
    for name, config in values["prepare"].items():
        where, root = f"prepare.{name}", Path(config.root)
        if any(config.root == one or config.root.startswith(f"{one}/") for one in made) and not root.exists():
            continue
        if files.is_url(config.root):
            continue
        if root.resolve() in (project.DATA.resolve(), *project.DATA.resolve().parents):
            yield (
                f"{where}.root: expected a folder that holds no outputs of stages, got {config.root}, with "
                f"{project.DATA} in it. Put the data into a folder of their own."
            )
            continue
        try:
            label_types(config, look(config))
        except (PipelineError, OSError) as error:
            yield f"{where}: {_one_line(error)}"
            continue
        if config.base is not None and not files.is_url(config.base) and files.kind(config.base) != "folder":
            yield f"{where}.base: {config.base}: no such folder. Set it to what the paths of the list are relative to."


def _of_tasks(values: Values) -> Iterator[str]:
    """Yield what is wrong with tasks over data sets that are prepared: columns, domains, classes, splits."""
    from pipeline.split.run import split

    for name, config in values["split"].items():
        manifests = [project.MANIFESTS / f"{dataset}.parquet" for dataset in config.datasets]
        if not all(path.is_file() for path in manifests):
            continue
        try:
            split(config, project.MANIFESTS)
        except PipelineError as error:
            again = " ".join(f"prepare@{dataset}" for dataset in config.datasets)
            yield f"split.{name}: {_one_line(error)} (By the last `dvc repro {again}`.)"


def _of_backbones(values: Values) -> Iterator[str]:
    """Yield what is wrong with backbones, the nodes of their taps, and nodes that trainings name."""
    if not values["freeze"]:
        return
    from pipeline.freeze import LocalWeights
    from pipeline.freeze.outline import Outline, check_file, outline

    outlines: dict[str, Outline | None] = {}
    for name, config in values["freeze"].items():
        if isinstance(config, LocalWeights) and (problem := check_file(config)):
            yield f"freeze.{name}.file: {problem}"
        try:
            outlines[name] = outline(config, pretrained=project.PRETRAINED)
        except PipelineError as error:
            yield f"freeze.{name}: {_one_line(error)}"
    for name, config in values["extract"].items():
        for tap, spec in config.taps.items():
            found = outlines.get(name)
            if found is not None and (problem := found.check_tap(spec)):
                yield f"extract.{name}.taps.{tap}: {problem}"
    for where, backbone, node in _nodes_of_trainings(values):
        found = outlines.get(backbone)
        if found is not None and (problem := found.check_node(node)):
            yield f"{where}: {problem}"


def _nodes_of_trainings(values: Values) -> Iterator[tuple[str, str, str]]:
    """Yield each node that a training names, with the setting and the backbone."""
    for section, own in (("finetune", "backbone"), ("distill", "student")):
        for name, item in values[section].items():
            where, backbone = f"{section}.{name}", getattr(item, own)
            if (from_tap := getattr(getattr(item, "train", None), "from_tap", None)) is not None:
                yield f"{where}.train.from_tap", backbone, from_tap
            for epoch, node in getattr(item, "unfreeze", {}).items():
                yield f"{where}.unfreeze.{epoch}", backbone, node
    for name, item in values["teach"].items():
        for node in item.hints:
            yield f"teach.{name}.hints", item.backbone, node


def _one_line(error: Exception) -> str:
    """Return a message with its bullets behind one another."""
    first, *more = str(error).splitlines()
    return f"{first}: {'; '.join(line.strip().removeprefix('- ') for line in more)}" if more else first
