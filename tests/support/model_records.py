"""Records as `fit`, `finetune` and `distill` write them to model.json: whole and valid, with some given values."""

from typing import Any

FORMAT = 2
DIGEST = "ab" * 32


def head_fit(head: str = "logistic", tap: str = "tap", **values: Any) -> dict[str, Any]:
    """Return the record of a fitted head on all labels."""
    names = {"head": head, "input": tap, "labels": None, "draw": None}
    return names | {"file": f"{head}.{tap}.all.skops", "params": {}} | values


def heads(task: str = "pets", *, settings: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    """Return the record of a run of `fit`, without fits. values: fields to replace or to add."""
    return {
        "format": FORMAT,
        "settings": {"task": task, "backbone": "tiny", **(settings or {})},
        "scores": {"logistic": "probability"},
        "task": task_of(task),
        "features": {},
        "versions": {"scikit-learn": "1.0"},
        "fits": [],
        **values,
    }


def network(
    task: str = "pets",
    *,
    settings: dict[str, Any] | None = None,
    labels: int | None = None,
    draw: int | None = None,
    **values: Any,
) -> dict[str, Any]:
    """Return the record of a run of `finetune`, or of `distill` with `student`, `teachers` and `losses` in values.

    labels, draw: of the network that the run kept.
    """
    head = "distill" if "student" in values else "finetune"
    return {
        "format": FORMAT,
        "settings": {"task": task, "backbone": "tiny", "head": head, **(settings or {})},
        "task": task_of(task),
        "features": {},
        "scores": {head: "probability"},
        "backbone": {"from": DIGEST, "weights": "cd" * 32, "labels": labels, "draw": draw},
        "fits": [network_fit(head, labels=labels, draw=draw)],
        "versions": {"torch": "2.0"},
        **values,
    }


def network_fit(head: str = "finetune", **values: Any) -> dict[str, Any]:
    """Return the record of a trained network on all labels."""
    return {
        "head": head,
        "input": "pixels",
        "labels": None,
        "draw": None,
        "file": None,
        "params": {},
        "search": None,
        "temperature": None,
        "rows": 8,
        "epochs": 4,
        "stopped": "all epochs",
        "probes": [],
        "start": None,
        "kept": {"epoch": 3, "loss": 0.5},
        "frozen": {"before": DIGEST, "after": DIGEST},
        **values,
    }


def task_of(name: str) -> dict[str, Any]:
    """Return the record of a task of two classes."""
    return {"name": name, "sha256": "cd" * 32, "kind": "classification", "classes": ["cat", "dog"]}


def teacher(name: str, run: str, **values: Any) -> dict[str, Any]:
    """Return the record of a student's teacher: by default the network of a run."""
    fit = {"head": None, "input": None, "labels": None, "draw": None}
    return {"name": name, "run": run, "backbone": "net", **fit, "identity": {"source": "network"}, **values}
