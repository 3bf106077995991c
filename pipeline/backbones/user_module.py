"""A user's own network, by the import path of its factory: `package.module:name`.

backbone.json holds the path, and opening a file must not run foreign code. Therefore three conditions are checked:

* The module is in a regular package, which is checked before any import: code that is installed or part of the
  project. A file next to a backbone.json is not, since `data/` is not a package.
* The name is a subclass of `torch.nn.Module`, or a function annotated to return a module. Other callables
  (`subprocess:run`, `os:system`, `torch.hub:load`) are never called.
* The code, with all its imports (`user_code.py`), is the code that was frozen: digests and versions are stored, and are
  a part of the address of all features.
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pipeline.backbones import user_code
from pipeline.errors import BackboneError, unknown


def architecture(path: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture in backbone.json: path, arguments, digests of own modules, versions of packages.

    Imports the code, so that random numbers drawn by the import do not come between a seed and the network.
    """
    module = path.partition(":")[0]
    user_code.find_module_file(module, where=path)
    code = user_code.trace_imports(module)
    _load_factory(path)
    return {
        "family": "module",
        "factory": path,
        "arguments": dict(arguments),
        "code": code.digests(),
        "packages": code.packages,
    }


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build a network by its factory; raises BackboneError if the factory is invalid, fails, or was changed."""
    path = architecture["factory"]
    user_code.find_module_file(path.partition(":")[0], where=path)
    user_code.check(path, architecture)
    factory = _load_factory(path)
    try:
        network = factory(**architecture["arguments"])
    except Exception as error:
        raise BackboneError(
            f"{path}: expected a network for the arguments {architecture['arguments']}, got "
            f"{type(error).__name__}: {error}. Correct `arguments` or the code."
        ) from error
    if not isinstance(network, nn.Module):
        raise BackboneError(f"{path}: expected a torch.nn.Module, got {type(network).__name__}.")
    return network


def _load_factory(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        names = vars(importlib.import_module(module))
    except Exception as error:
        raise BackboneError(f"{path}: the module cannot be imported: {type(error).__name__}: {error}.") from error
    if name not in names:
        raise BackboneError(
            f"{module}: {unknown('name', name, [other for other in names if not other.startswith('_')])}"
        )
    factory = names[name]
    if not _returns_module(factory):
        raise BackboneError(
            f"{path}: expected a subclass of torch.nn.Module, or a function annotated to return one, got "
            f"{type(factory).__name__} {name}. Write `def {name}(...) -> torch.nn.Module`."
        )
    return typing.cast("Callable[..., Any]", factory)


def _returns_module(factory: Any) -> bool:
    """Return whether a factory is a class of modules, or a function annotated to return a module."""
    result = factory
    if inspect.isfunction(factory):
        try:
            result = typing.get_type_hints(factory).get("return")
        except (NameError, TypeError):  # annotations with names that are imported for type checkers only
            return False
    return inspect.isclass(result) and issubclass(result, nn.Module)
