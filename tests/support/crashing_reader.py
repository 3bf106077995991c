"""Readers that refuse a sample or end their process, for tests of what goes on without it; other processes read it."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipeline.errors import DataError
from pipeline.readers import Sample


def end() -> NoReturn:
    """End this process as the system does where memory is lacking."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Words:
    """Gives the bytes of a sample back; some words make it do something else.

    `bad`: refuses the sample. `end`: ends the process. `once <path>`: does so if the file is there, and removes it.
    `slow`: takes a while.
    """

    def __call__(self, data: bytes) -> Sample:
        word, _, rest = data.partition(b" ")
        if word == b"bad":
            raise DataError("damaged")
        if word == b"end":
            end()
        if word == b"once" and Path(rest.decode()).exists():
            Path(rest.decode()).unlink()
            end()
        if word == b"slow":
            time.sleep(0.02)
        return {"bytes": np.frombuffer(data, np.uint8), "length": np.array([[len(data)]], np.int64)}

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of nothing that is stored."""
        return {"name": "words"}


class Unloadable(Words):
    """Cannot be made in another process."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> NoReturn:
    """Fail where a process begins."""
    raise RuntimeError("this reader cannot be made here")
