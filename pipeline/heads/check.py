"""Check heads and their parameters by what scikit-learn states of its classes, without fitting one.

`_parameter_constraints` is the table by which scikit-learn itself refuses a parameter when a head is fitted; no public
function reads the table. To fit a head on a few rows would refuse the same values, but also ones that only suit more
rows (`n_neighbors`), and a fit of a thousand trees takes seconds in a check that is to take none.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import heads
from pipeline.errors import HeadError, unknown
from pipeline.heads.search import SearchConfig, grid_of
from pipeline.settings.messages import in_yaml
from pipeline.task import Kind

YAML_WORDS = (
    (r"an instance of '[\w.]*\.?(\w+)'", r"a \1 of Python"),
    (r"an int\b", "a whole number"),
    (r"a float\b", "a number"),
    (r"\ba str\b", "text"),
    (r"'(\w+)'", r"\1"),
    (r"an array-like", "a list"),
    (r"an instance of bool|a bool\b|a boolean", "true or false"),
    (r"\bNone\b", "null"),
    (r"\bTrue\b", "true"),
    (r"\bFalse\b", "false"),
)
"""What scikit-learn says of a parameter, and the words of YAML for it."""


def check_head(
    name: str, params: Mapping[str, Any], *, kind: Kind, search: SearchConfig | None = None
) -> Iterator[str]:
    """Yield what is wrong with a head of a run; each begins with `head`, `params` or `search`.

    params: as the settings give them. search: what is searched of the head, None for nothing.
    """
    try:
        pipeline = heads.create(name, {}, scale="none", kind=kind)
    except HeadError as error:
        yield f"head: {str(error).removeprefix('search: ')}"
        return
    head = heads.inner(pipeline)
    known = head.get_params()
    called = f"{name} ({type(head).__name__})"
    for key, value in params.items():
        if key not in known:
            yield f"params.{key}: {called}: {unknown('parameter', key, known)}{heads.say_weights(key)}"
        elif expected := _misfit(head, key, value):
            yield f"params.{key}: {called}: expected {expected}, got {in_yaml(value)}."
    if search is None or search.parameter is None:
        return
    parameter, values = grid_of(search, name)
    if parameter not in known:
        yield f"search.parameter: {called}: {unknown('parameter', parameter, known)}"
        return
    for value in values:
        if expected := _misfit(head, parameter, value):
            yield f"search.values: {called}: expected {expected} for {parameter}, got {in_yaml(value)}."


def _misfit(head: Any, key: str, value: Any) -> str:
    """Return what scikit-learn expects of a parameter that a value does not fit; "" where it fits or is not stated."""
    from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

    constraints: Mapping[str, Sequence[Any]] = getattr(type(head), "_parameter_constraints", {})
    if key not in constraints:
        return ""
    try:
        validate_parameter_constraints({key: constraints[key]}, {key: value}, caller_name=type(head).__name__)
    except InvalidParameterError as error:
        expected = re.search(r"must be (.*?)\. Got ", str(error), re.DOTALL)
        text = expected[1] if expected else str(error)
        text = re.sub(r"a str among \{([^}]*)\}", _in_order, text)
        for pattern, word in YAML_WORDS:
            text = re.sub(pattern, word, text)
        return text
    return ""


def _in_order(words: re.Match[str]) -> str:
    """Return the words of a set, which come in any order."""
    return f"one of {', '.join(sorted(words[1].split(', ')))}"
