"""A user's own network, by the import path of what builds it: `package.module:name`.

backbone.json names the path, and a file that is opened must run no code. So three things are asked of it:

* The module is one that Python finds in regular packages, which is looked up before anything is imported: code that
  is installed, or that stands in the project. A file beside a backbone.json is none, for `data/` is no package.
* The name is a subclass of `torch.nn.Module`, or a function that says in its annotation that it returns one. What is
  made to do something else (`subprocess:run`, `os:system`, `torch.hub:load`) is never called.
* The code is that which was frozen, with all that it imports (`user_code.py`): digests and versions are kept, and are
  part of the address of all features.
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
    """Return what backbone.json keeps: the path, the arguments, the digests of own modules, versions of packages.

    Imports the code, so that what this draws at random does not lie between a seed and the network.
    """
    module = path.partition(":")[0]
    user_code.file_of(module, where=path)
    code = user_code.trace(module)
    _factory(path)
    return {
        "family": "module",
        "factory": path,
        "arguments": dict(arguments),
        "code": code.digests(),
        "packages": code.packages,
    }


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the network of a factory; raises BackboneError if it is none, fails, or is not the code that was frozen."""
    path = architecture["factory"]
    user_code.file_of(path.partition(":")[0], where=path)
    user_code.check(path, architecture)
    factory = _factory(path)
    try:
        network = factory(**architecture["arguments"])
    except Exception as error:
        raise BackboneError(
            f"{path}: expected a network for the arguments {architecture['arguments']}, got "
            f"{type(error).__name__}: {error}. Mend `arguments` or the code."
        ) from error
    if not isinstance(network, nn.Module):
        raise BackboneError(f"{path}: expected a torch.nn.Module, got {type(network).__name__}.")
    return network


def _factory(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        there = vars(importlib.import_module(module))
    except Exception as error:
        raise BackboneError(f"{path}: the module cannot be imported: {type(error).__name__}: {error}.") from error
    if name not in there:
        raise BackboneError(f"{module}: {unknown('name', name, [one for one in there if not one.startswith('_')])}")
    found = there[name]
    if not _makes_network(found):
        raise BackboneError(
            f"{path}: expected a subclass of torch.nn.Module, or a function annotated to return one, got "
            f"{type(found).__name__} {name}. Write `def {name}(...) -> torch.nn.Module`."
        )
    return typing.cast("Callable[..., Any]", found)


def _makes_network(found: Any) -> bool:
    if inspect.isfunction(found):
        try:
            found = typing.get_type_hints(found).get("return")
        except (NameError, TypeError):  # annotations that name what is imported for type checkers only
            return False
    return inspect.isclass(found) and issubclass(found, nn.Module)
