"""Check that the sections of params.yaml agree: an entry that one section names exists in another."""

import graphlib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import unknown
from pipeline.settings.check import Entries, all_entries
from pipeline.settings.messages import key_in_yaml
from stages.coverage import uncovered
from stages.effects import unsuited_settings
from stages.names import RESERVED, RUNS, unusable_names


def disagreements(values: Mapping[str, Any], raw: Mapping[str, Any]) -> list[str]:
    """Return a problem for each name in one section that another section lacks.

    `values`: as returned by `pipeline.settings.check.check`. An entry of `raw` that is invalid was reported there, so
    entries that name it are not reported again. A section that is left out has no entries.
    """
    given = {section: raw.get(section, {}) for section in {**values, **raw}}
    named = {
        section: [key_in_yaml(name) for name in entries]
        for section, entries in given.items()
        if isinstance(entries, dict)
    }
    problems = unusable_names(named)
    values = {section: _without_reserved(section, entries) for section, entries in values.items()}
    values["extract"] = _with_known_taps(values.get("extract", {}), given.get("extract"))

    def expect(where: str, what: str, name: str, section: str) -> None:
        if section in named and name not in named[section]:
            problems.append(f"{where}: {_absent_message(what, name, section, named)}")

    for name, item in all_entries(values, "pretrain"):
        expect(f"pretrain.{name}.dataset", "data set", item.dataset, "prepare")
    for name, item in all_entries(values, "freeze"):
        if item.source == "pretrained":
            expect(f"freeze.{name}.network", "pretrained network", item.network, "pretrain")
    for name, item in all_entries(values, "extract"):
        expect(f"extract.{name}", "backbone", name, "freeze")
        for dataset in item.datasets:
            expect(f"extract.{name}.datasets", "data set", dataset, "prepare")
    for name, item in all_entries(values, "split"):
        for dataset in item.datasets:
            expect(f"split.{name}.datasets", "data set", dataset, "prepare")
    for name, item in all_entries(values, "fit"):
        expect(f"fit.{name}.task", "task", item.task, "split")
        expect(f"fit.{name}.backbone", "backbone", item.backbone, "extract")
        extracted = values.get("extract", {}).get(item.backbone)
        for tap in item.taps if extracted is not None else ():
            if tap not in extracted.taps:
                problems.append(f"fit.{name}.inputs: {unknown('tap', tap, extracted.taps)}")
    problems += _finetune_problems(values, named)
    problems += _teach_problems(values, named)
    problems += _distill_problems(values, named)
    problems += unsuited_settings(values)
    problems += uncovered(values)
    return problems


def _without_reserved(section: str, entries: Any) -> Any:
    """Return a section in which entries with reserved names count as invalid: the name has another meaning."""
    if section not in (*RUNS, "teach") or not isinstance(entries, dict):
        return entries
    reserved = {name: entry for name, entry in entries.items() if name.lower() in RESERVED}
    usable = {name: entry for name, entry in entries.items() if name not in reserved}
    return Entries(usable, {**reserved, **getattr(entries, "partial", {})})


def _with_known_taps(entries: Any, raw: Any) -> Any:
    """Return the extractions in which a partly invalid entry counts as valid if its taps and data sets are valid."""
    if not isinstance(entries, Entries) or not isinstance(raw, dict):
        return entries
    whole = {
        name: item
        for name, item in entries.partial.items()
        if isinstance(given := raw.get(name), dict)
        and isinstance(given.get("taps"), dict)
        and set(item.taps) == set(given["taps"])
        and list(item.datasets) == given.get("datasets")
    }
    rest = {name: item for name, item in entries.partial.items() if name not in whole}
    return Entries({**entries, **whole}, rest)


BEFORE: Mapping[str, tuple[str, ...]] = {
    "prepare": ("sample",),
    "freeze": ("pretrain",),
    "extract": ("freeze",),
    "split": ("prepare",),
    "teach": ("fit", "finetune"),
}
"""For each section, the earlier sections whose entries users often name by mistake."""


def _absent_message(what: str, name: str, section: str, named: Mapping[str, list[str]]) -> str:
    """Return the message that a section lacks an entry; it differs if an earlier section has an entry of that name."""
    earlier = next((before for before in BEFORE.get(section, ()) if name in named.get(before, ())), None)
    if earlier is None:
        return unknown(what, name, named[section])
    return (
        f"`{earlier}` has an entry {name!r}, and `{section}` has none. Add `{section}.{name}`, or name one of: "
        f"{', '.join(sorted(named[section])) or '(there are none)'}."
    )


def _finetune_problems(values: Mapping[str, Any], named: Mapping[str, list[str]]) -> list[str]:
    """Return the problems of entries of `finetune` that name entries of other sections."""
    problems: list[str] = []
    extracted = values.get("extract", {})
    for name, item in all_entries(values, "finetune"):
        if item.task not in named.get("split", [item.task]):
            problems.append(f"finetune.{name}.task: {_absent_message('task', item.task, 'split', named)}")
        section = "extract" if item.input == "features" else "freeze"  # a run from pixels needs no stored features
        if item.backbone not in named.get(section, [item.backbone]):
            problems.append(f"finetune.{name}.backbone: {_absent_message('backbone', item.backbone, section, named)}")
        runs = [run for kind in ("fit", "finetune", "distill") for run in named.get(kind, [item.start]) if run != name]
        if item.start not in ("backbone", "scratch", *runs):
            problems.append(f"finetune.{name}.start: {unknown('start', item.start, ('backbone', 'scratch', *runs))}")
        problems += [f"finetune.{name}.{line}" for line in _start_problems(item, values)]
        taps = extracted[item.backbone].taps if item.backbone in extracted else None
        if item.tap is not None and taps is not None:
            if item.tap not in taps:
                problems.append(f"finetune.{name}.tap: {unknown('tap', item.tap, taps)}")
            elif taps[item.tap].pool != "none" or taps[item.tap].project is not None:
                problems.append(f"finetune.{name}.tap: expected a tap with `pool: none`, got {taps[item.tap].pool!r}.")
    return problems


def _start_problems(item: Any, values: Mapping[str, Any]) -> list[str]:
    """Return the settings of a run of finetune that conflict with the run that it starts from."""
    stated = item.classifier.model_fields_set if item.start in values.get("fit", {}) else set()
    for names, expected in (({"hidden", "convolution"}, "one layer, that"), ({"init"}, "that")):
        if given := names & stated:
            return [
                f"classifier: expected {expected} of {item.start}, got {' and '.join(sorted(given))}. Leave it out."
            ]
    before = values.get("finetune", {}).get(item.start) or values.get("distill", {}).get(item.start)
    if before is None:
        return []
    problems = []
    if item.classifier.model_fields_set:
        problems.append(f"classifier: expected none, since the network of {item.start} has one. Leave it out.")
    backbone = getattr(before, "backbone", None) or before.student
    if item.backbone != backbone:
        problems.append(f"backbone: expected {backbone!r}, that of {item.start}, got {item.backbone!r}.")
    if item.task not in (before.task, *getattr(before, "extra_tasks", ())):
        problems.append(f"task: expected {before.task!r}, that of {item.start}, got {item.task!r}.")
    if item.input == "features":
        problems.append(f"input: expected pixels, since rows are stored of the backbone, not of {item.start}.")
    return problems


def _distill_problems(values: Mapping[str, Any], named: Mapping[str, list[str]]) -> list[str]:
    """Return the problems of entries of `distill` that name entries of other sections, or need something of them."""
    problems: list[str] = []
    valid_teachers = values.get("teach", {})
    for name, item in all_entries(values, "distill"):
        where = f"distill.{name}"
        if item.student not in named.get("freeze", [item.student]):
            problems.append(f"{where}.student: {_absent_message('backbone', item.student, 'freeze', named)}")
        for dataset in item.datasets:
            if dataset not in named.get("prepare", [dataset]):
                problems.append(f"{where}.datasets: {_absent_message('data set', dataset, 'prepare', named)}")
        for task, teachers in item.teachers.items():
            key = "teacher" if task == item.task else f"extra_tasks.{task}"
            if task not in named.get("split", [task]):
                which = "task" if task == item.task else "extra_tasks"
                problems.append(f"{where}.{which}: {_absent_message('task', task, 'split', named)}")
            split = values.get("split", {}).get(task)
            wanted = {*(() if split is None else split.datasets), *(item.datasets if task == item.task else ())}
            wanted &= set(named.get("prepare", ()))
            for teacher in teachers:
                if teacher not in named.get("teach", [teacher]):
                    problems.append(f"{where}.{key}: {_absent_message('teacher', teacher, 'teach', named)}")
                elif teacher in valid_teachers:
                    problems += [f"{where}.{line}" for line in _teacher_problems(item, key, teacher, wanted, values)]
    return problems + _cycles(values)


def _teacher_problems(item: Any, key: str, name: str, wanted: set[str], values: Mapping[str, Any]) -> list[str]:
    """Return what a run of distill needs and its teacher lacks; each problem begins with the key."""
    problems = []
    teacher = values["teach"][name]
    lacking = sorted(wanted - set(teacher.datasets))
    if lacking:
        problems.append(f"{key}: {name} does not score {', '.join(lacking)}. Add it to `teach.{name}.datasets`.")
    views = teacher.views
    stored = 0 if views is None else views if isinstance(views, int) else views.count
    if item.views > stored:
        problems.append(f"views: expected at most the {stored} of {name}, got {item.views}. Give it `views`.")
    if key == "teacher" and (item.online or item.losses.hint_names) and teacher.run in values.get("fit", {}):
        problems.append(
            f"{key}: expected a network for `teacher_outputs: online` and hints, got {name}, a head of {teacher.run}."
        )
    elif key == "teacher" and not item.online:
        problems += [
            f"losses: {unknown('hint', hint, teacher.hints)} Add it to `teach.{name}.hints`."
            for hint in item.losses.hint_names
            if hint not in teacher.hints
        ]
    return problems


def _cycles(values: Mapping[str, Any]) -> list[str]:
    """Return a problem if runs wait for each other; the message of DVC would not say how to fix it."""
    trained = {name for section in ("finetune", "distill") for name in values.get(section, {})}
    graph = {name: {item.start} & trained for name, item in all_entries(values, "finetune")}
    graph |= {name: {f"teach.{teacher}" for teacher in values.get("teach", {})} for name in values.get("distill", {})}
    tuned = set(values.get("finetune", {}))
    graph |= {f"teach.{name}": {item.run} & tuned for name, item in all_entries(values, "teach")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        names = ", ".join(dict.fromkeys(error.args[1]))
        return [
            f"{names}: expected runs that do not wait for each other, got a cycle; every run of distill waits for all "
            "of teach. Freeze a network (`freeze: {source: folder}`) to continue from it."
        ]
    return []


def _teach_problems(values: Mapping[str, Any], named: Mapping[str, list[str]]) -> list[str]:
    """Return the problems of entries of `teach` that name entries of other sections, or do not suit the named run."""
    problems: list[str] = []
    for name, item in all_entries(values, "teach"):
        where = f"teach.{name}"
        for dataset in item.datasets:
            if dataset not in named.get("prepare", [dataset]):
                problems.append(f"{where}.datasets: {_absent_message('data set', dataset, 'prepare', named)}")
        section = "extract" if item.run in named.get("fit", ()) else "freeze"  # a network needs no stored features
        if item.backbone not in named.get(section, [item.backbone]):
            problems.append(f"{where}.backbone: {_absent_message('backbone', item.backbone, section, named)}")
        if item.run in named.get("distill", ()):
            problems.append(
                f"{where}.run: expected a run of fit or finetune, got {item.run!r} of distill, which needs teachers "
                "itself. Freeze its network (`freeze: {source: folder}`), and teach with that backbone."
            )
            continue
        runs = ["backbone", *named.get("fit", [item.run]), *named.get("finetune", [item.run])]
        if item.run not in runs:
            problems.append(f"{where}.run: {unknown('run', item.run, runs)}")
        found = values.get("fit", {}).get(item.run) or values.get("finetune", {}).get(item.run)
        if found is not None and found.backbone != item.backbone:
            problems.append(
                f"{where}.backbone: expected {found.backbone!r}, that of {item.run}, got {item.backbone!r}."
            )
        if item.run in values.get("fit", {}):
            problems += [f"{where}.{line}" for line in _of_head(item, values["fit"][item.run], values)]
        elif item.run == "backbone" or item.run in values.get("finetune", {}):
            problems += [
                f"{where}.{field}: expected it with a run of fit, whose heads it tells apart, got a network. Leave it "
                "out."
                for field in ("input", "head", "labels", "draw")
                if getattr(item, field) is not None
            ]
            if isinstance(item.views, int):
                problems.append(
                    f"{where}.views: expected `count` and `augment`, since a network scores them itself, got "
                    f"{item.views}."
                )
    return problems


def _of_head(item: Any, run: Any, values: Mapping[str, Any]) -> list[str]:
    """Return what a teacher asks of a run of fit and the run lacks; each begins with the key."""
    problems = []
    inputs = ["+".join([one] if isinstance(one, str) else one) for one in run.inputs]
    if item.input is not None and item.input not in inputs:
        problems.append(f"input: {unknown('input', item.input, inputs)}")
    if item.head is not None and item.head not in run.heads:
        problems.append(f"head: {unknown('head', item.head, run.heads)}")
    problems += [
        f"{field}: expected it with a network, got {item.run}, a run of fit, whose heads need none. Leave it out."
        for field in ("engine", "precision", "batch_size")
        if field in item.model_fields_set
    ]
    if item.hints:
        problems.append("hints: expected a network, which has nodes, got a run of fit. Leave them out.")
    if item.views is not None and not isinstance(item.views, int):
        problems.append("views: expected a number of stored views, got settings. The extraction has the settings.")
    extracted = values.get("extract", {}).get(item.backbone)
    stored = 0 if extracted is None or extracted.views is None else extracted.views.count
    if isinstance(item.views, int) and extracted is not None and item.views > stored:
        problems.append(
            f"views: expected at most the {stored} of the extraction of {item.backbone}, got {item.views}. Give it "
            f"`views` with `count: {item.views}`."
        )
    lacking = sorted(set(item.datasets) - set(extracted.datasets)) if extracted is not None else []
    if lacking:
        problems.append(f"datasets: {item.backbone} was not extracted for {', '.join(lacking)}.")
    return problems
