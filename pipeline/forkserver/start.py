"""The starter's side of a fork server: its folder of programs, and when its process begins and ends."""

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

# What several stages import; torch imports torch._dynamo when it makes an optimiser. pyarrow would start a thread.
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
"""Left out where there is a GPU: a stage with heads on the GPU sets SCIPY_ARRAY_API before it imports scipy."""

UNNEEDED = ("sklearn.externals.array_api_compat.dask",)
"""Not imported along with the libraries: skops would import Dask by it, which writes a file of settings."""

GPUS = (Path("/proc/driver/nvidia"), Path("/dev/kfd"), Path("/dev/dxg"))
LONGEST = 107  # bytes of a socket's path
STAGES: Mapping[str, tuple[str, ...]] = {"python": ("-m stages.",), "icecore": ("stage ",)}
"""How the stages of a project are started: by program, how its arguments begin."""

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
    """A process that forks for commands, and a folder of programs that hand commands over to it.

    environment: variables for whoever starts commands; in the object's `environment` the folder is first in PATH
    programs:    by name in PATH, how the arguments begin of commands that a fork may run
    libraries:   modules that the process imports

    Where a process cannot fork so, on other systems than Linux, commands start without it. To fork after imports is not
    safe on macOS.
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
        folder = Path(tempfile.mkdtemp(prefix="icecore-fork-"))  # for this user alone
        self.socket = folder / "socket"
        """The path of the socket, which is there as soon as the process takes commands."""

        self._python = own["python"]
        for name, path in own.items():
            before = [] if name == "python" else [path]
            code = RUN.format(root=ROOT, socket=str(self.socket), before=before, taken=programs[name])
            (folder / name).write_text(PROGRAM.format(python=shlex.quote(self._python), code=shlex.quote(code)))
            (folder / name).chmod(0o700)
        if len(os.fsencode(self.socket)) >= LONGEST or not os.access(folder / "python", os.X_OK):  # mounted noexec
            shutil.rmtree(folder)
            return
        self._folder = folder
        self.environment = {**environment, "PATH": os.pathsep.join([str(folder), environment["PATH"]])}

    def start(self) -> None:
        """Start the process, unless it was started. Until it has imported the libraries, commands start without it."""
        if self._folder is None or self._process is not None:
            return
        code = SERVE.format(root=ROOT, socket=str(self.socket), libraries=[*self._libraries], unneeded=UNNEEDED)
        self._process = subprocess.Popen(
            [self._python, "-c", code],
            stdin=subprocess.PIPE,  # the process ends when this is closed, also by a kill of its starter
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in self.environment.items() if name != "PYTHONPATH"},
            process_group=0,  # a terminal's Ctrl-C is for the commands
        )

    def stop(self) -> None:
        """End the process when the commands have ended that run, and remove the folder."""
        if self._process is not None:
            if not self.socket.exists():  # it imports still
                self._process.kill()
            self._process.communicate()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _installed_with_python(names: Sequence[str], path: str) -> dict[str, str]:
    """Return the programs of a PATH, by name, as far as they lie in the folder of this interpreter."""
    found = {name: shutil.which(name, path=path) for name in names}
    folder = Path(sys.executable).parent
    return {name: file for name, file in found.items() if file is not None and Path(file).parent.samefile(folder)}


def libraries_of_stages() -> list[str]:
    """Return the modules that several stages import on this machine."""
    return [*LIBRARIES, *(() if any(path.exists() for path in GPUS) else OF_HEADS)]
