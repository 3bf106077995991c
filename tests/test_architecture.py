"""The shape of the code: layers, imports, stages and their dependencies, names. Everything is read from the sources."""

import ast
import fnmatch
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.projects import SHIPPED

import pipeline

ROOT = Path(__file__).parent.parent
SOURCES = sorted([ROOT / "icecore.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")])
DVC: Mapping[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: Mapping[str, Any] = yaml.safe_load(SHIPPED.read_text())
FACTORY = re.compile(r"((?:pipeline|stages)(?:\.\w+)*):\w+")
"""A name such as pipeline.backbones.glyphs:build, which importlib imports later."""


@dataclass(frozen=True)
class Import:
    """Something that a file imports, and whether importing the file is enough for that to happen."""

    name: str
    on_import: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def short(module: str) -> str:
    """The path of a module, as dvc.yaml writes it."""
    return MODULES[module].relative_to(ROOT).as_posix()


def imports_in(source: str) -> list[Import]:
    """All imports of a source but those for type checkers; of `from a import b`, a.b where that is a module."""
    found: list[Import] = []

    def visit(node: ast.AST, on_import: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for inner in node.orelse:
                visit(inner, on_import)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, on_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append(Import(full if full in MODULES else str(node.module), on_import))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.iter_child_nodes(node):
            visit(inner, on_import and not inside)

    visit(ast.parse(source), True)
    return found


@cache
def imports_of(module: str) -> list[Import]:
    return imports_in(MODULES[module].read_text(encoding="utf-8"))


def project_imports(module: str) -> Iterator[Import]:
    return (found for found in imports_of(module) if found.name in MODULES)


def parents(module: str) -> Iterator[str]:
    """The packages whose __init__ runs when a module is imported."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def reached(start: str, *, functions: bool, factories: bool = False, without: frozenset[str] = frozenset()) -> set[str]:
    """The project's modules that come with one, itself too; `without` are left out and not followed."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found | without:
            continue
        found.add(module)
        waiting += parents(module)
        waiting += [one.name for one in project_imports(module) if one.on_import or functions]
        if factories:
            tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
            texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            waiting += [match[1] for text in texts if (match := FACTORY.fullmatch(text))]
    return found


def test_imports_are_read_as_python_reads_them() -> None:
    source = """
import torch.nn
from pipeline import metrics, __version__
if TYPE_CHECKING:
    import h5py
else:
    import numpy
try:
    import json
except ImportError:
    pass
class A:
    import csv
    def f(self):
        from pipeline.store.features import Features
        import sklearn
"""
    assert imports_in(source) == [
        Import("torch.nn", True),
        Import("pipeline.metrics", True),
        Import("pipeline", True),
        Import("numpy", True),
        Import("json", True),
        Import("csv", True),
        Import("pipeline.store.features", False),
        Import("sklearn", False),
    ]


# Layers --------------------------------------------------------------------------------------------------------------


def layers() -> dict[str, int]:
    """Layer by top-level name, from the docstring of the package; packages are written with a slash."""
    lines = re.findall(r"^ {4}(\d)  (.+(?:\n {7}.+)*)$", str(pipeline.__doc__), re.MULTILINE)
    assert [number for number, _ in lines] == ["0", "1", "2", "3"]
    return {name: int(number) for number, names in lines for name in names.split()}


def test_the_docstring_of_the_package_lists_every_module_once() -> None:
    there = {path.name + "/" for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()}
    there |= {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"}
    assert set(layers()) == there
    listed = re.findall(r"^ {4}\d  (.+(?:\n {7}.+)*)$", str(pipeline.__doc__), re.MULTILINE)
    assert len(" ".join(listed).split()) == len(layers())


def test_a_file_imports_only_from_its_own_layer_or_below() -> None:
    layer = {name.rstrip("/"): number for name, number in layers().items()}
    wrong = []
    for module in MODULES:
        if not module.startswith("pipeline."):
            continue
        own = module.split(".")[1]
        for found in project_imports(module):
            package, _, rest = found.name.partition(".")
            if package == "pipeline" and rest and layer[rest.split(".")[0]] > layer[own]:
                wrong.append(f"{module} (layer {layer[own]}) imports {found.name}")
    assert wrong == []


def test_only_the_command_line_imports_stages_and_only_when_it_runs() -> None:
    found = [
        (module, one.on_import)
        for module in MODULES
        if module.split(".")[0] == "pipeline"
        for one in imports_of(module)
        if one.name.split(".")[0] == "stages"
    ]
    assert {module.rpartition(".")[0] for module, _ in found} == {"pipeline.cli"}
    assert {on_import for _, on_import in found} == {False}


def test_a_stage_imports_no_other_stage() -> None:
    wrong = [
        f"{module} imports {one.name}"
        for module in MODULES
        if module.startswith("stages.")
        for one in project_imports(module)
        if one.name.startswith("stages.") and one.name not in PLUMBING
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {one.name for one in project_imports(module)} - {module} for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert set(order) == set(MODULES)


def test_no_packages_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module.startswith("pipeline."):
            own = graph.setdefault(module.split(".")[1], set())
            own |= {one.name.split(".")[1] for one in project_imports(module) if one.name.startswith("pipeline.")}
    order = graphlib.TopologicalSorter({name: others - {name} for name, others in graph.items()}).static_order()
    assert set(graph) <= set(order)  # raises CycleError with the circle


# Heavy libraries -----------------------------------------------------------------------------------------------------

# Where a library may be imported when a file is: everywhere else it is imported by the function that uses it, so that
# settings are checked, and help is shown, at once.
STREAMING = (
    "pipeline/heads/stored_answers.py",
    *(f"pipeline/streaming/{name}.py" for name in ("centroid", "lda", "logistic", "knn", "pca", "ridge", "scaler")),
)
"""Estimators of scikit-learn's kind are subclasses of its classes; the table of heads names them by text."""
AT_THE_TOP: Mapping[str, tuple[str, ...]] = {
    "torch": (
        "pipeline/backbones/",
        "pipeline/engines/",
        "pipeline/pretrain/",
        "pipeline/training/",
        "pipeline/finetune/",
        "pipeline/distill/",
        "pipeline/partition/",
        "pipeline/explain/",
        "pipeline/export/",
        "pipeline/freeze/load.py",
        "pipeline/freeze/fit_weights.py",
        "pipeline/freeze/state_dict.py",
        "pipeline/freeze/outline.py",
        "pipeline/inference/backbone.py",
        "pipeline/inference/module_in_memory.py",
        "pipeline/inference/transforms.py",
    ),
    "torchvision": ("pipeline/backbones/",),
    "timm": (),
    "lightning_fabric": (),
    "safetensors": ("pipeline/backbones/", "pipeline/training/", "pipeline/freeze/state_dict.py"),
    "onnxruntime": ("pipeline/engines/", "pipeline/export/infer.py"),
    "sklearn": (*STREAMING, "pipeline/inference/frozen_features.py"),
    "skops": (),
    "scipy": ("pipeline/streaming/lda.py", "pipeline/streaming/pca.py"),
    "h5py": ("pipeline/store/shard_writer.py", "pipeline/store/shard_checks.py"),
    "matplotlib": ("pipeline/report/figures.py", "pipeline/report/curves.py"),
}
# Importing these takes torch along; what holds settings or values never does.
WITH_TORCH = (
    "pipeline/backbones/",
    "pipeline/embed.py",
    "pipeline/inference/",
    "pipeline/explain/",
    "pipeline/predict/",
    "pipeline/projects/backbone.py",
    "pipeline/engines/",
    "pipeline/pretrain/",
    "pipeline/training/",
    "pipeline/finetune/",
    "pipeline/distill/",
    "pipeline/partition/",
    "pipeline/export/",
    "pipeline/loading/",
    "pipeline/extract/",
    "pipeline/freeze/run.py",
    "pipeline/freeze/load.py",
    "pipeline/freeze/fit_weights.py",
    "pipeline/freeze/state_dict.py",
    "pipeline/freeze/outline.py",
    "pipeline/freeze/library_model.py",
    "pipeline/teach/",
    "stages/distill.py",
    "stages/extract.py",
    "stages/finetune.py",
    "stages/freeze.py",
    "stages/pretrain.py",
    "stages/teach.py",
)


@pytest.mark.parametrize("library", AT_THE_TOP)
def test_a_heavy_library_is_imported_at_the_top_only_where_it_belongs(library: str) -> None:
    using = {short(module) for module in MODULES for one in imports_of(module) if one.on_import and is_of(one, library)}
    assert [path for path in sorted(using) if not path.startswith(AT_THE_TOP[library])] == []


def is_of(found: Import, library: str) -> bool:
    return found.name.split(".")[0] == library


def test_hdf5_files_are_opened_by_the_store_alone() -> None:
    using = {module for module in MODULES for one in imports_of(module) if is_of(one, "h5py")}
    assert using == {"pipeline.store.shard_writer", "pipeline.store.shard_checks"}


def test_torch_comes_along_only_where_networks_run() -> None:
    loading = {
        short(module)
        for module in MODULES
        for inner in reached(module, functions=False)
        for one in imports_of(inner)
        if one.on_import and is_of(one, "torch")
    }
    assert "pipeline/extract/compute.py" in loading
    wrong = [
        path
        for path in sorted(loading)
        if not path.startswith(WITH_TORCH)
        or path.endswith(
            ("__init__.py", "config.py", "backbones/spec.py", "training/config.py", "distill/losses_config.py")
        )
    ]
    assert wrong == []


def test_checking_settings_and_stages_without_networks_load_no_library_that_is_slow_to_load() -> None:
    light = "audit, compare, evaluate, fit, prepare, report, sample, settings, split"
    code = f"import sys\nfrom stages import project, {light}\nproject.settings()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pipeline.fit" in loaded
    assert not {"torch", "torchvision", "sklearn", "skops", "scipy", "matplotlib", "onnxruntime"} & loaded


# Stages --------------------------------------------------------------------------------------------------------------


GLOBAL = {"audit", "evaluate", "compare", "report"}
"""Sections that hold no names, but one set of values."""

SHARING = {"settings"}
"""The stage that hands whole sections on to others."""


def test_a_stage_has_one_name_in_all_four_places() -> None:
    files = {path.stem for path in (ROOT / "stages").glob("*.py")} - {
        "__init__",
        "project",
        "terminal",
        "cross_references",
        "names",
        "effects",
        "coverage",
        "check_files_and_models",
    }
    packages = {name.rstrip("/") for name in layers() if name.endswith("/")}
    assert set(DVC) - SHARING == set(PARAMS) == files - SHARING
    assert set(PARAMS) <= packages


@pytest.mark.parametrize("stage", PARAMS)
def test_the_package_of_a_stage_has_its_settings_and_its_function(stage: str) -> None:
    from stages import project

    assert project.SECTIONS[stage][0] == f"pipeline.{stage}.config:{stage.capitalize()}Config"
    run = ast.parse((ROOT / "pipeline" / stage / "run.py").read_text(encoding="utf-8"))
    assert stage in {node.name for node in run.body if isinstance(node, ast.FunctionDef)}


def test_a_package_is_small_enough_to_be_read_and_few_modules_lie_loose() -> None:
    sizes = {path: len(list(path.glob("*.py"))) - 1 for path in (ROOT / "pipeline").iterdir() if path.is_dir()}
    assert {path.name: size for path, size in sizes.items() if size > 18} == {}  # without __init__
    assert len(list((ROOT / "pipeline").glob("*.py"))) - 1 <= 10
    assert list((ROOT / "pipeline").glob("*/*/*.py")) == [], "two levels, never three"


def test_the_table_of_sections_has_every_stage() -> None:
    from stages import project

    assert list(project.SECTIONS) == list(PARAMS)
    assert {name for name, (_, named) in project.SECTIONS.items() if named} == set(DVC) - GLOBAL - SHARING


def test_sections_that_may_be_left_out_are_there_for_dvc() -> None:
    """`foreach` fails where params.yaml lacks a section, and so does a dependency on a key that it lacks."""
    (empty,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"]
    assert empty == {name: {} for name in PARAMS if name not in GLOBAL}
    for name, stage in DVC.items():
        for key in stage.get("do", stage).get("params", []):
            assert key.endswith(".${key}"), (name, key)


def test_a_stage_depends_on_the_whole_sections_that_it_reads() -> None:
    from stages.settings import SHARED

    used = {dep for name in DVC for dep in deps_of(name) if dep.startswith("data/settings/")}
    assert used == {f"data/settings/{section}.json" for section in SHARED}
    assert all(f"data/settings/{name}.json" in deps_of(name) for name in GLOBAL)


def test_a_stage_runs_its_own_module_over_its_own_section() -> None:
    for name, stage in DVC.items():
        if name in SHARING:
            continue
        body = stage.get("do", stage)
        assert body["cmd"] == f"python -m stages.{name}" + (" ${key}" if "foreach" in stage else "")
        over = "split" if name == "audit" else name
        assert stage.get("foreach") == (None if name in GLOBAL - {"audit"} else f"${{{over}}}")
        assert name in GLOBAL or f"{name}.${{key}}" in body["params"]
        assert body["desc"]


def pattern(path: str) -> str:
    """A path of dvc.yaml with a star for what differs from entry to entry."""
    return re.sub(r"\$\{[^}]*\}", "*", path)


def deps_of(stage: str) -> list[str]:
    return list(DVC[stage].get("do", DVC[stage])["deps"])


def outs_of(stage: str) -> list[str]:
    """The outs of a stage, a path for each entry: the names of runs tell the outs of several stages apart."""
    over = re.fullmatch(r"\$\{(\w+)\}", DVC[stage].get("foreach", ""))
    outs = [
        path for out in DVC[stage].get("do", DVC[stage])["outs"] for path in ([out] if isinstance(out, str) else out)
    ]
    return list(outs) if over is None else [out.replace("${key}", key) for out in outs for key in PARAMS[over[1]]]


def may_be(dep: str, out: str) -> bool:
    """Whether some entry's dependency, with stars in it, is an out, or a folder or file in one or around one."""
    around = (out, *(parent.as_posix() for parent in Path(out).parents))
    return any(fnmatch.fnmatchcase(path, pattern(dep)) for path in around) or fnmatch.fnmatchcase(dep, f"{out}/*")


def test_every_dependency_on_data_is_made_by_another_stage() -> None:
    outs = {name: outs_of(name) for name in DVC}
    every = [out for found in outs.values() for out in found]
    assert len(every) == len(set(every))
    assert all(out.startswith("data/") for out in every)
    for name in DVC:
        data = [dep for dep in deps_of(name) if dep.startswith("data/")]
        others = [out for other, found in outs.items() if other != name for out in found]
        for dep in data:
            is_of_links = (name, dep) == ("freeze", "data/code/${item.source}")  # which the stage itself makes
            assert is_of_links or any(may_be(dep, out) for out in others), (name, dep)


def test_every_other_dependency_is_code_or_the_root_of_a_data_set() -> None:
    for name in DVC:
        for dep in deps_of(name):
            if dep in ("${item.root}", "params.yaml"):
                assert (name, dep) in (("prepare", "${item.root}"), ("settings", "params.yaml"))
            elif not dep.startswith("data/"):
                assert dep.startswith(("pipeline/", "stages/")), (name, dep)
                assert (ROOT / dep).exists(), (name, dep)


# Code that every stage uses and none depends on: a change there changes what is said of settings and errors, and no
# result. `files` and `runtime` are no plumbing of that kind: they hold the digests and the seeds.
PLUMBING = frozenset(
    {"pipeline", "pipeline.errors", "pipeline.settings"}
    | {f"pipeline.settings.{name}" for name in ("params", "check", "messages", "repair")}
    | {
        "stages",
        *(f"stages.{name}" for name in ("project", "terminal", "cross_references", "coverage", "names", "effects")),
    }
)


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_depends_on_the_code_that_it_imports_and_on_no_other(stage: str) -> None:
    needed = {short(module) for module in reached(f"stages.{stage}", functions=True, factories=True, without=PLUMBING)}
    deps = [dep for dep in deps_of(stage) if dep.startswith(("pipeline/", "stages/"))]

    def covers(dep: str, path: str) -> bool:
        return path == dep or path.startswith(f"{dep}/")

    assert [path for path in sorted(needed) if not any(covers(dep, path) for dep in deps)] == []
    assert [dep for dep in deps if not any(covers(dep, path) for path in needed)] == []
    assert len(deps) == len(set(deps))


def test_a_run_leaves_the_lock_that_git_has(tmp_path: Path) -> None:
    """Its digests are those of one machine, and no remote holds what they name."""
    git = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / ".gitignore").write_text("/config.local\n")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    for command in (["git", "init", "-q"], ["git", "add", "."], [*git, "commit", "-qm", "lock"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run(["make", ".dvc/config.local"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {report: {cmd: x}}\n")
    status = ["git", "status", "--porcelain"]
    assert subprocess.run(status, cwd=tmp_path, check=True, capture_output=True, text=True).stdout == ""


def test_evaluation_knows_the_code_that_dvc_starts_it_again_for() -> None:
    from pipeline.evaluate.up_to_date import CODE

    code = {dep for dep in deps_of("evaluate") if not dep.startswith("data/")}
    assert {f"pipeline/{name}" for name in CODE} | {"stages/evaluate.py", "pipeline/evaluate"} == code


# Names and docstrings ------------------------------------------------------------------------------------------------


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "base", "manager", "handler", "misc"}
    assert [name for name in MODULES if empty & set(name.split("."))] == []


OUT = {
    "beside",
    "begun",
    "lesson",
    "oracle",
    "orders",
    "pilot",
    "schooling",
    "spool",
    "subject",
    "subjects",
    "told",
    "leftovers",
    "opened",
    "strays",
    "lacking",
    "alone",
    "chosen",
    "foresee",
    "room",
    "said",
    "steadiness",
    "tidy",
    "upkeep",
}
"""Words that once were names here, and say nothing to whoever comes from PyTorch, scikit-learn or DVC."""


@pytest.mark.parametrize("module", MODULES)
def test_names_are_the_words_of_the_field(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    parts = {name: re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_") for name in [*module.split("."), *names]}
    assert [name for name, words in parts.items() if OUT & set(words)] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_and_all_that_is_public_in_it_has_a_docstring(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert [name for name, node in public(tree) if not ast.get_docstring(node)] == []


def public(node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions and classes, and the methods of classes, whose name does not begin with an underscore."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and not inner.name.startswith("_"):
            yield inner.name, inner
            if isinstance(inner, ast.ClassDef):
                yield from public(inner)


# What is in the repository -------------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    """The files of the repository; skips where this is none, as in a source archive."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    names = [name for name in done.stdout.decode().split("\0") if name]
    if "pyproject.toml" not in names:
        pytest.skip("not the repository of this project")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


NOUN_CLAUSE = re.compile(
    r"(The|A|An|What|Whether|Which|Where|Why|How|Those|That|These|It|Its|One|All|Some|Every|Each)\b"
)
"""How a docstring begins that names a thing, where a function does something."""


@pytest.mark.parametrize("module", MODULES)
def test_the_docstring_of_a_function_begins_with_a_verb(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    texts = {
        node.name: ast.get_docstring(node) or ""
        for node in functions
        if not any(ast.unparse(one).endswith(("property", ".setter")) for one in node.decorator_list)
    }
    assert [f"{name}: {text}" for name, text in texts.items() if NOUN_CLAUSE.match(text)] == []


def test_no_file_of_the_repository_names_a_folder_of_some_machine() -> None:
    machine = re.compile(r"(?<![\w.$}])/(?:work|root)/")
    assert machine.search("see /" + "work/main")
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in machine.finditer(text)]
    assert found == []


def test_the_locked_requirements_name_packages_and_no_place_to_get_them() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert any(line.startswith("numpy==") for line in lines)
    assert [line for line in lines if "://" in line or line.startswith("-")] == []


def test_cleaning_leaves_every_file_that_no_stage_made(tmp_path: Path) -> None:
    """People put their photos below data/raw."""
    own = ("data/raw/photos/cat/0.jpg", "data/raw/photos.csv", "data/notes.txt", "data/raw/shards/a.tar")
    made = ("data/raw/digits/0/0.png", "data/features/net/tap/a.h5", "data/models/run/model.json", "data/audits/a.json")
    kept = (
        "data/.gitignore",
        "data/model_digests/backbone/.gitignore",
        "data/code/module/.gitignore",
        "data/raw/x.dvc",
    )
    for name in (*own, *made, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "code" / "module" / "net.py").symlink_to(ROOT / "Makefile")
    shutil.copy(ROOT / "Makefile", tmp_path)
    quiet = ["make", "--no-print-directory", "clean"]  # make prints the folder where it was started by another make
    done = subprocess.run(quiet, cwd=tmp_path, capture_output=True, text=True, check=True)
    left = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "data").rglob("*") if not path.is_dir()}
    assert left == {*own, *kept}
    assert sorted(done.stdout.splitlines()) == sorted(f"kept: {name}" for name in own)
    outs = {out.removeprefix("data/").partition("/")[0] for name in DVC for out in outs_of(name)}
    listed = re.search(r"MADE := (.*\\\n.*)", (ROOT / "Makefile").read_text())
    assert listed is not None
    assert outs - {"raw"} <= {*listed[1].split()}
