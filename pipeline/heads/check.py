"""Validate heads and their parameters by scikit-learn's own constraints, without fitting.

`_parameter_constraints` is the table by which scikit-learn refuses parameters in `fit`; it has no public reader.
Fitting a few rows would also refuse values that need more rows (`n_neighbors`), and would take seconds for a thousand
trees.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import heads
from pipeline.errors import HeadError, unknown
from pipeline.heads.search import SearchConfig, grid_values
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
"""Patterns in scikit-learn's messages, and the words of YAML for them."""


def check_head(
    name: str, params: Mapping[str, Any], *, kind: Kind, search: SearchConfig | None = None
) -> Iterator[str]:
    """Yield the problems of a head of a run; each begins with `head`, `params` or `search`.

    params: parameters in the settings. search: the search of the head; None without a search.
    """
    try:
        pipeline = heads.create(name, {}, scale="none", kind=kind)
    except HeadError as error:
        yield f"head: {str(error).removeprefix('search: ')}"
        return
    head = heads.inner_head(pipeline)
    known = head.get_params()
    called = f"{name} ({type(head).__name__})"
    for key, value in params.items():
        if key not in known:
            yield f"params.{key}: {called}: {unknown('parameter', key, known)}{heads.advise_weights(key)}"
        elif expected := _expected_value(head, key, value):
            yield f"params.{key}: {called}: expected {expected}, got {in_yaml(value)}."
    if search is None or search.parameter is None:
        return
    parameter, values = grid_values(search, name)
    if parameter not in known:
        yield f"search.parameter: {called}: {unknown('parameter', parameter, known)}"
        return
    for value in values:
        if expected := _expected_value(head, parameter, value):
            yield f"search.values: {called}: expected {expected} for {parameter}, got {in_yaml(value)}."


def _expected_value(head: Any, key: str, value: Any) -> str:
    """Return what scikit-learn expects of a parameter; "" if the value is valid or there is no constraint."""
    from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

    constraints: Mapping[str, Sequence[Any]] = getattr(type(head), "_parameter_constraints", {})
    if key not in constraints:
        return ""
    try:
        validate_parameter_constraints({key: constraints[key]}, {key: value}, caller_name=type(head).__name__)
    except InvalidParameterError as error:
        expected = re.search(r"must be (.*?)\. Got ", str(error), re.DOTALL)
        text = expected[1] if expected else str(error)
        text = re.sub(r"a str among \{([^}]*)\}", _sort_options, text)
        for pattern, word in YAML_WORDS:
            text = re.sub(pattern, word, text)
        return text
    return ""


def _sort_options(words: re.Match[str]) -> str:
    """Return the options of a set, whose order varies, sorted."""
    return f"one of {', '.join(sorted(words[1].split(', ')))}"
