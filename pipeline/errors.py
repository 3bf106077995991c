"""The errors of icecore, and their common wording.

PipelineError
├── ConfigError      the settings are wrong: nothing was done
├── DataError        a manifest, a split or a sample is wrong
├── BackboneError    weights, architecture or taps do not fit each other
├── EngineError      an engine cannot run a backbone, or its values are not those of torch
├── ClusterError     other processes or machines cannot be reached, or are gone
├── StoreError       features on disk are missing, damaged or made by something else
├── HeadError        a head cannot be fitted to what it was given
├── TrainingError    a network cannot be trained as it was asked to be
└── MissingExtraError a library is not installed; the message names the extra that brings it

A message reads `<what> <where>: expected <x>, got <y>. <what to do>`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class PipelineError(Exception):
    """An error with a message for the user; the stages and the command line print it without a traceback."""


class ConfigError(PipelineError):
    """The settings are invalid."""


class DataError(PipelineError):
    """A manifest, a task or a sample is invalid."""


class BackboneError(PipelineError):
    """Weights, architecture or taps do not match."""


class EngineError(PipelineError):
    """An engine cannot run a backbone here, or its values differ from those of torch float32."""


class ClusterError(PipelineError):
    """Worker processes or machines cannot be reached, or were lost."""


class StoreError(PipelineError):
    """Stored features are missing, damaged or have another identity."""


class HeadError(PipelineError):
    """A head cannot be fitted or applied to the given data."""


class TrainingError(PipelineError):
    """A network cannot be trained with the given settings."""


class MissingExtraError(PipelineError):
    """A library of an optional extra cannot be imported."""


class Interrupted(KeyboardInterrupt):
    """The user interrupted the work; the message says what is kept and how to resume."""


DISTRIBUTION = "icecore-features"
"""The name of the distribution on PyPI, where `icecore` is another project."""


def install_command(extra: str) -> str:
    """Return the command that installs the libraries of an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


@contextmanager
def requires(extra: str, *, what: str, error: type[PipelineError] = MissingExtraError) -> Iterator[None]:
    """Raise `error` with the name of the extra if an import in this block fails.

    what: what needs the libraries, such as `fine-tuning`; the message begins with it.
    """
    try:
        yield
    except ImportError as cause:
        raise error(
            f"{what}: expected the libraries of the extra `{extra}`, got: {cause}. Run `{install_command(extra)}`."
        ) from cause


def unknown(what: str, name: str, choices: Iterable[str], *, most: int = 12) -> str:
    """Return a message that `name` is not a known `what`, with similar and known names."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    listed = ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
    return f"unknown {what} {name!r}.{hint} Expected one of: {listed or '(there are none)'}."


def unknown_node(name: str, nodes: Iterable[str], *, backbone: str = "NAME") -> str:
    """Return a message that a backbone has no such node, with similar names and the command that lists all.

    backbone: what `icecore layers` takes: a backbone of the project, a folder, or a model of torchvision or timm.
    """
    names = list(dict.fromkeys(nodes))
    plain: dict[str, list[str]] = {}
    for one in names:
        plain.setdefault(_letters(one), []).append(one)
    near = difflib.get_close_matches(_letters(name), plain, n=3, cutoff=0.6)
    meant = [one for letters in near for one in plain[letters]][:3]
    hint = f" Did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    return f"unknown node {name!r}.{hint} `icecore layers {backbone}` lists its nodes."


def _letters(name: str) -> str:
    """Normalise a name for comparison: without case, dots, underscores and blanks."""
    return re.sub(r"[\W_]+", "", name).lower()


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`; `nouns`: the plural, where it is more than an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def bullets(title: str, problems: Iterable[str]) -> str:
    """Return a message with a line per problem."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
