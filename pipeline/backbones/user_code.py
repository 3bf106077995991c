"""The code that a user's network is made of: all modules that it imports, followed without running any of them.

A module is the user's own where it lies neither in Python's library nor among installed packages; own modules count by
the digest of what their source does, without comments and docstrings, installed packages by their versions. Imports are
read off the source, those in functions and `importlib.import_module("a.name")` too. What a name that is put together at
run time imports is not seen, nor are files that code reads.
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
# What ast.parse raises for a source that Python cannot import either; the import names the reason.
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Code:
    """Own modules with their files, and the installed packages that these import, with their versions."""

    files: dict[str, Path] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """Return the digest of each own module by `source_digest`."""
        return {name: source_digest(file) for name, file in sorted(self.files.items())}

    def known(self, name: str, kept: str) -> str:
        """Return a digest of an own module, for one of its bytes as they are now that of `source_digest`."""
        file = self.files.get(name)
        return source_digest(file) if file is not None and sha256_file(file) == kept else kept


def trace(module: str, *, of_icecore: bool = False) -> Code:
    """Follow the imports of a module; raises BackboneError where the module is missing.

    `of_icecore`: the modules of icecore count as own ones, and no packages are looked up.
    """
    code, waiting, tops = Code(), [module], set[str]()
    code.files[module] = file_of(module, where=module)
    seen = {module}
    while waiting:
        for name in _imported(waiting.pop(), code.files):
            for part in _with_parents(name):
                top = part.partition(".")[0]
                if part in seen or top in tops or top in sys.stdlib_module_names:
                    continue
                seen.add(part)
                file = _find(part)
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
    """Return a digest of a module of icecore and all of icecore that it imports, without comments and docstrings."""
    return digest(trace(module, of_icecore=True).digests())


def source_digest(file: Path) -> str:
    """Return the SHA-256 of what a module does: of its syntax tree without comments, docstrings and layout.

    Versions of Python agree on it. A module that is no Python source, such as a compiled one, counts by its bytes.
    """
    if file.suffix != ".py":
        return sha256_file(file)
    try:
        tree = ast.parse(file.read_bytes())
    except UNREADABLE:
        return sha256_file(file)
    return sha256_bytes("\n".join(_words(tree)).encode())


def _words(tree: ast.AST) -> Iterator[str]:
    """Yield the nodes of a syntax tree from the top: the name of each and how many parts follow, and plain values.

    Left out are places, empty fields, which versions of Python add, and statements that are a constant.
    """
    waiting: list[Any] = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.AST):
            fields = [(name, value) for name, value in ast.iter_fields(part) if value is not None and value != []]
            yield f"{type(part).__name__} {len(fields)}"
            waiting += [each for field in reversed(fields) for each in reversed(field)]
        elif isinstance(part, list):
            statements = [each for each in part if not _is_constant(each)]
            yield f"list {len(statements)}"
            waiting += reversed(statements)
        else:
            yield ascii(part)


def _is_constant(statement: Any) -> bool:
    """Return whether a statement is a constant alone: a docstring, a text under an attribute, or `...`."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def check(path: str, frozen: Mapping[str, Any]) -> None:
    """Raise BackboneError where the code of a factory is not that which `architecture` keeps, with what differs.

    Backbones of earlier versions of icecore keep the SHA-256 of the bytes of own modules, which counts as well.
    """
    if not isinstance(frozen.get("code"), dict):
        raise BackboneError(
            f"{path}: frozen by a version of icecore that did not look at what its module imports. {_AGAIN}"
        )
    now = trace(path.partition(":")[0])
    kept = {name: now.known(name, before) for name, before in frozen["code"].items()}
    lines = [*_differences(kept, now.digests()), *_differences(frozen["packages"], now.packages)]
    if lines:
        raise BackboneError(
            f"{path}: expected the code as it was frozen, but {'; '.join(lines)}. Features of the network as it was "
            f"stay stored. {_AGAIN}"
        )


_AGAIN = "Freeze the backbone again: `dvc repro -f freeze@<its name>`."


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if name not in now:
            yield f"{name} is no longer imported"
        elif name not in before:
            yield f"{name} is imported too"
        elif before[name] != now[name]:
            yield f"{name} changed ({before[name][:16]} to {now[name][:16]})"


def is_installed(file: Path) -> bool:
    """Return whether a file belongs to Python or to an installed package, and not to the user's own code."""
    return any(file.is_relative_to(place) for place in _installed_places())


@functools.cache
def _installed_places() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(path).resolve() for path in [*paths, *site.getsitepackages(), site.getusersitepackages()])


def _versions(tops: set[str]) -> dict[str, str]:
    """Return the versions of the packages that bring some top-level modules; without the tag of a build, such as
    +cpu.
    """
    names = {name for top in tops for name in _packages_with(top)}
    return {
        name: (__version__ if name == "icecore" else metadata.version(name)).partition("+")[0] for name in sorted(names)
    }


@functools.cache
def _packages_with(top: str) -> tuple[str, ...]:
    """Return the installed packages that bring a top-level module; most have its name."""
    if top == OWN_PACKAGE:
        return ("icecore",)  # whatever the distribution is called: backbone.json and addresses keep this name
    try:
        metadata.version(top)
    except metadata.PackageNotFoundError:
        return tuple(metadata.packages_distributions().get(top, ()))
    return (top,)


def file_of(module: str, *, where: str) -> Path:
    """Find the file of a module in regular packages, without importing anything; raises BackboneError without one."""
    origin = None
    for name, spec in _specs(module):
        if spec is None:
            raise BackboneError(f"{where}: expected a module that Python finds, got no module {name!r}.")
        if not spec.has_location or spec.origin is None:
            raise BackboneError(
                f"{where}: expected a module in regular packages, got {name!r}, which has no file of its own. "
                "Where it is a folder of yours, put an empty __init__.py into it."
            )
        origin = spec.origin
    return Path(str(origin)).resolve()


def _find(module: str) -> Path | None:
    """Return the file of a module, in packages of any kind; None where there is none, as of a class that is
    imported.
    """
    spec = None
    for _, spec in _specs(module):  # noqa: B007  # the last one counts
        pass
    return Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None


def _specs(module: str) -> Iterator[tuple[str, Any]]:
    """Yield each package around a module, and the module, by name with its spec; None of one that is missing, last."""
    places: Any = None
    for name in _with_parents(module):
        specs = (finder.find_spec(name, places) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        yield name, spec
        if spec is None:
            return
        places = spec.submodule_search_locations or []


def _with_parents(name: str) -> Iterator[str]:
    """Return the packages around a module, and the module: importing it runs them all."""
    parts = name.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _imported(module: str, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the names that the source of an own module imports; some may be of classes and functions, not of
    modules.
    """
    file = files[module]
    yield module  # and with it the packages around it
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except UNREADABLE:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{one.name}" for one in node.names if one.name != "*")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value.lstrip(".")
