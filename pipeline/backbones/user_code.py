"""The code of a user's network: all modules that it imports, traced without running them.

A module is the user's own if it is neither in Python's library nor in an installed package. Own modules are identified
by a digest of their source without comments and docstrings, installed packages by their versions. Imports are read from
the source, including those in functions and `importlib.import_module("a.name")`. Imports of names computed at run time
are not detected, nor are files that the code reads.
"""

import ast
import functools
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import BackboneError
from pipeline.files import digest, sha256_bytes, sha256_file

OWN_PACKAGE = __name__.partition(".")[0]
# Errors of ast.parse for a source that Python cannot import either; the import reports the reason.
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Code:
    """Own modules with their files, and the versions of the installed packages that they import."""

    files: dict[str, Path] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """Return the `source_digest` of each own module."""
        return {name: source_digest(file) for name, file in sorted(self.files.items())}

    def upgrade_digest(self, name: str, stored: str) -> str:
        """Return a stored digest of an own module; a digest of its present bytes becomes its `source_digest`."""
        file = self.files.get(name)
        return source_digest(file) if file is not None and sha256_file(file) == stored else stored


def trace_imports(module: str, *, of_icecore: bool = False) -> Code:
    """Trace the imports of a module; raises BackboneError if the module is missing.

    `of_icecore`: modules of icecore count as own modules, and versions of packages are not collected.
    """
    code, waiting, tops = Code(), [module], set[str]()
    code.files[module] = find_module_file(module, where=module)
    seen = {module}
    while waiting:
        for name in _imports_of(waiting.pop(), code.files):
            for part in _with_parents(name):
                top = part.partition(".")[0]
                if part in seen or top in tops or top in sys.stdlib_module_names:
                    continue
                seen.add(part)
                file = _find_file(part)
                if file is None:
                    continue
                if is_installed(file) if top != OWN_PACKAGE else not of_icecore:
                    tops.add(top)
                else:
                    code.files[part] = file
                    waiting.append(part)
    if not of_icecore:
        code.packages.update(_versions(tops))
    return code


@functools.cache
def digest_of_icecore(module: str) -> str:
    """Return a digest of an icecore module and all icecore modules that it imports, without comments and docstrings."""
    return digest(trace_imports(module, of_icecore=True).digests())


def source_digest(file: Path) -> str:
    """Return SHA-256 of a module's syntax tree, without comments, docstrings and layout.

    It is the same in all versions of Python. For a compiled module, or a source with errors, it is that of the bytes.
    """
    if file.suffix != ".py":
        return sha256_file(file)
    try:
        tree = ast.parse(file.read_bytes())
    except UNREADABLE:
        return sha256_file(file)
    return sha256_bytes("\n".join(_serialise(tree)).encode())


def _serialise(tree: ast.AST) -> Iterator[str]:
    """Yield the nodes of a syntax tree from the root: class and number of fields, or the value of a constant.

    Omitted are positions, empty fields, which new versions of Python add, and statements that are a constant.
    """
    waiting: list[Any] = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.AST):
            fields = [(name, value) for name, value in ast.iter_fields(part) if value is not None and value != []]
            yield f"{type(part).__name__} {len(fields)}"
            waiting += [item for field in reversed(fields) for item in reversed(field)]
        elif isinstance(part, list):
            statements = [item for item in part if not _is_constant(item)]
            yield f"list {len(statements)}"
            waiting += reversed(statements)
        else:
            yield ascii(part)


def _is_constant(statement: Any) -> bool:
    """Return whether a statement is only a constant: a docstring, a string under an attribute, or `...`."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def check(path: str, frozen: Mapping[str, Any]) -> None:
    """Raise BackboneError, with the differences, if the code of a factory is not that stored in `frozen`.

    Backbones of earlier versions of icecore store SHA-256 of the bytes of own modules, which is accepted too.
    """
    if not isinstance(frozen.get("code"), dict):
        raise BackboneError(
            f"{path}: frozen by a version of icecore that did not record the imports of its module. {_FREEZE_AGAIN}"
        )
    now = trace_imports(path.partition(":")[0])
    stored = {name: now.upgrade_digest(name, before) for name, before in frozen["code"].items()}
    lines = [*_differences(stored, now.digests()), *_differences(frozen["packages"], now.packages)]
    if lines:
        raise BackboneError(
            f"{path}: expected the code that was frozen, but {'; '.join(lines)}. Features of the frozen network "
            f"stay stored. {_FREEZE_AGAIN}"
        )


_FREEZE_AGAIN = "Freeze the backbone again: `icecore repro -f freeze@<its name>`."


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if name not in now:
            yield f"{name} is no longer imported"
        elif name not in before:
            yield f"{name} is now imported"
        elif before[name] != now[name]:
            yield f"{name} changed ({before[name][:16]} to {now[name][:16]})"


def is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python or to an installed package."""
    return any(file.is_relative_to(folder) for folder in _installed_folders())


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(path).resolve() for path in [*paths, *site.getsitepackages(), site.getusersitepackages()])


def _versions(tops: set[str]) -> dict[str, str]:
    """Return the versions of the packages that provide top-level modules, without build tags such as +cpu."""
    names = {name for top in tops for name in _packages_of(top)}
    return {
        name: (__version__ if name == "icecore" else metadata.version(name)).partition("+")[0] for name in sorted(names)
    }


@functools.cache
def _packages_of(top: str) -> tuple[str, ...]:
    """Return the installed packages that provide a top-level module; most have its name."""
    if top == OWN_PACKAGE:
        return ("icecore",)  # not the name of the distribution: backbone.json and addresses have this name
    try:
        metadata.version(top)
    except metadata.PackageNotFoundError:
        return tuple(metadata.packages_distributions().get(top, ()))
    return (top,)


def find_module_file(module: str, *, where: str) -> Path:
    """Return the file of a module in regular packages, without importing it; raises BackboneError if there is none."""
    origin = None
    for name, spec in _specs_along(module):
        if spec is None:
            raise BackboneError(f"{where}: expected a module that Python can import, but there is no module {name!r}.")
        if not spec.has_location or spec.origin is None:
            raise BackboneError(
                f"{where}: expected a module in regular packages, got {name!r}, which has no file of its own. "
                "If it is a folder of yours, put an empty __init__.py into it."
            )
        origin = spec.origin
    return Path(str(origin)).resolve()


def _find_file(module: str) -> Path | None:
    """Return the file of a module in any kind of package; None if there is none, as for the name of a class."""
    spec = None
    for _, spec in _specs_along(module):  # noqa: B007  # only the last spec is needed
        pass
    return Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None


def _specs_along(module: str) -> Iterator[tuple[str, Any]]:
    """Yield name and spec of each package around a module, then of the module; a missing spec is None and ends it."""
    paths: Any = None
    for name in _with_parents(module):
        specs = (finder.find_spec(name, paths) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        yield name, spec
        if spec is None:
            return
        paths = spec.submodule_search_locations or []


def _with_parents(name: str) -> Iterator[str]:
    """Yield the names of the packages around a module, then the module: importing it runs them all."""
    parts = name.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _imports_of(module: str, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the names that the source of an own module imports; some are classes or functions, not modules."""
    file = files[module]
    yield module  # for the packages around it
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except UNREADABLE:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value.lstrip(".")
