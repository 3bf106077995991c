"""Run a command in a fork of the server as in a new Python process, and exit as Python does."""

import atexit
import contextlib
import ctypes
import importlib
import importlib.machinery
import io
import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

IMPORTED = tuple(importlib.machinery.all_suffixes())
"""Suffixes of the files that Python imports; `dvc.yaml` in a project folder does not shadow the package dvc."""

PR_SET_PDEATHSIG = 1
NOT_WRITTEN = 120  # Python's exit status if the rest of the output could not be written


def become(request: Mapping[str, Any], files: Sequence[int], folders: Sequence[str], server: int) -> NoReturn:
    """Run a command in this process as in a new Python process, and exit as that process would.

    files:   file descriptors of standard input, output and error
    folders: the result of `search_path`
    server:  the process ID of the server; if the server is killed, the kernel kills this process
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sorted(os.sched_getaffinity(0)) != request["cores"]:
        os.sched_setaffinity(0, request["cores"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _open_streams()
    _reset_random_state()
    sys.path[:0] = folders
    importlib.invalidate_caches()
    status = _run(request["call"])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError as error:
            status = NOT_WRITTEN
            with contextlib.suppress(OSError):
                print(f"Exception ignored in: {getattr(sys, name)!r}\n{type(error).__name__}: {error}", file=sys.stderr)
    libc.fflush(None)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)  # unloading all libraries takes longer than most commands


def search_path(call: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the first folders of `sys.path` for a command: the folder of the script, and PYTHONPATH."""
    folder = {"-m": str(Path.cwd()), "-c": ""}.get(call[0], str(Path(call[0]).resolve().parent))
    own = [] if environment.get("PYTHONSAFEPATH") else [folder]
    return own + [str(Path(entry).absolute()) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]


def are_hidden(modules: Collection[str], folders: Sequence[str]) -> bool:
    """Return whether a folder has modules that would shadow these, which the server has imported."""
    for folder in folders:
        try:
            with os.scandir(folder or ".") as entries:
                same = [Path(entry.path) for entry in entries if entry.name.partition(".")[0] in modules]
        except NotADirectoryError:  # an archive
            return True
        except OSError:  # Python ignores the folder, too
            continue
        if any(path.name.endswith(IMPORTED) or [*path.glob("__init__.*")] for path in same):
            return True
    return False


def _open_streams() -> None:
    """Open standard input, output and error as Python does at startup."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before: TextIO = getattr(sys, f"__{name}__")
        raw = io.FileIO(number, "w" if number else "r", closefd=False)
        raw.name = f"<{name}>"
        stream = io.TextIOWrapper(
            (raw if unbuffered else io.BufferedWriter(raw)) if number else io.BufferedReader(raw),
            encoding=before.encoding,
            errors=before.errors,
            newline="\n",
            line_buffering=not unbuffered and (number == 2 or raw.isatty()),
            write_through=unbuffered,
        )
        stream.mode = "w" if number else "r"  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _reset_random_state() -> None:
    """Draw new seeds and folders in libraries that drew them at import, so that each command has its own."""
    if "tempfile" in sys.modules:
        importlib.import_module("tempfile").tempdir = None  # type: ignore[attr-defined]
    if "numpy" in sys.modules:
        importlib.import_module("numpy").random.seed()


def _run(call: Sequence[str]) -> int:
    """Run `-m module …`, `-c code …` or `script …`; return the exit status, or minus the signal to exit with."""
    kind, *rest = call
    sys.orig_argv = [sys.executable, *call]
    sys.argv = [kind, *rest] if not kind.startswith("-") else [kind, *rest[1:]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        if kind == "-m":
            runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
        elif kind == "-c":
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            main.__file__ = kind
            exec(compile(Path(kind).read_bytes(), kind, "exec"), main.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - the interpreter prints whatever ends it
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0
