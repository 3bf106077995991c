"""Start and stop a fork server, and create the folder of its programs."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pipeline
from pipeline.runtime import has_gpu_driver

# Libraries of several stages. torch imports torch._dynamo with the first optimiser. pyarrow would start a thread.
LIBRARIES = (
    *("torch", "torch._dynamo", "torchvision.models", "torchvision.transforms.v2", "lightning_fabric"),
    *(
        "h5py",
        "safetensors.torch",
        "pydantic",
        "PIL.Image",
        "xxhash",
        "fsspec",
        "psutil",
        "tqdm",
        "typer",
        "ruamel.yaml",
    ),
)
OF_HEADS = (
    *(
        "sklearn.linear_model",
        "sklearn.neighbors",
        "sklearn.preprocessing",
        "sklearn.pipeline",
        "sklearn.decomposition",
    ),
    *("scipy.stats", "scipy.special", "skops.io"),
)
"""Not imported on a machine with a GPU: a stage with heads on the GPU sets SCIPY_ARRAY_API before it imports scipy."""

UNNEEDED = ("sklearn.externals.array_api_compat.dask", "pandas")
"""Modules that the libraries must not import: skops would import Dask, which writes a file of settings; scikit-learn
would import pandas, and that pyarrow. No stage gives scikit-learn a DataFrame.
"""

MAX_SOCKET_PATH = 107  # bytes
STAGES: Mapping[str, tuple[str, ...]] = {"python": ("-m stages.",), "icecore": ("stage ",)}
"""The prefixes of the arguments that start a stage, by program."""

PROGRAM = """\
#!/bin/sh
exec {python} -IS -c {code} "$@"
"""
RUN = (
    "import sys; sys.path.append({root!r}); from pipeline.forkserver.client import run; "
    "run({socket!r}, {before!r}, {taken!r})"
)
SERVE = (
    "import sys; sys.path[0] = {root!r}; from pipeline.forkserver.server import serve; del sys.path[0]; "
    "serve({socket!r}, {libraries!r}, {unneeded!r})"
)
ROOT = str(Path(pipeline.__file__).parent.parent)


class ForkServer:
    """A process that forks for commands, and a folder of programs that send commands to the process.

    environment: environment variables of the commands; the attribute `environment` has the folder first in PATH
    programs:    prefixes of the arguments of commands that a fork may run, by the name of the program in PATH
    libraries:   modules that the process imports

    On other systems than Linux commands run in ordinary processes; forking after imports is not safe on macOS.
    """

    def __init__(
        self, environment: Mapping[str, str], programs: Mapping[str, tuple[str, ...]], libraries: Sequence[str]
    ) -> None:
        self.environment = environment
        self._libraries = libraries
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        own = _installed_with_python([*programs], environment["PATH"])
        if sys.platform != "linux" or "python" not in own:
            return
        folder = Path(tempfile.mkdtemp(prefix="icecore-fork-"))  # only this user has access
        self.socket = folder / "socket"
        """The path of the socket, which exists when the process accepts commands."""

        self._python = own["python"]
        for name, path in own.items():
            before = [] if name == "python" else [path]
            code = RUN.format(root=ROOT, socket=str(self.socket), before=before, taken=programs[name])
            (folder / name).write_text(PROGRAM.format(python=shlex.quote(self._python), code=shlex.quote(code)))
            (folder / name).chmod(0o700)
        if len(os.fsencode(self.socket)) >= MAX_SOCKET_PATH or not os.access(folder / "python", os.X_OK):  # noexec
            shutil.rmtree(folder)
            return
        self._folder = folder
        self.environment = {**environment, "PATH": os.pathsep.join([str(folder), environment["PATH"]])}

    def start(self) -> None:
        """Start the process unless it is running. While it imports libraries, commands run in ordinary processes."""
        if self._folder is None or self._process is not None:
            return
        code = SERVE.format(root=ROOT, socket=str(self.socket), libraries=[*self._libraries], unneeded=UNNEEDED)
        self._process = subprocess.Popen(
            [self._python, "-c", code],
            stdin=subprocess.PIPE,  # the process exits when this is closed, also if this process is killed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in self.environment.items() if name != "PYTHONPATH"},
            process_group=0,  # a terminal's Ctrl-C is for the commands
        )

    def stop(self) -> None:
        """Stop the process after the running commands have ended, and remove the folder."""
        if self._process is not None:
            if not self.socket.exists():  # it is still importing
                self._process.kill()
            self._process.communicate()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _installed_with_python(names: Sequence[str], path: str) -> dict[str, str]:
    """Return the programs of a PATH that are in the folder of this interpreter, by name."""
    files = {name: shutil.which(name, path=path) for name in names}
    folder = Path(sys.executable).parent
    return {name: file for name, file in files.items() if file is not None and Path(file).parent.samefile(folder)}


def libraries_of_stages() -> list[str]:
    """Return the modules that several stages import on this machine."""
    return [*LIBRARIES, *(() if has_gpu_driver() else OF_HEADS)]
