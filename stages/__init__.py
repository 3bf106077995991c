"""One file per stage of dvc.yaml: read its section of params.yaml, make one library call, write the outs.

Importing this package records for `icecore repro` that a stage has started. A stage that fails on import, or that the
system kills, is thus among the failed stages that `icecore repro` lists.
"""

import sys
from pathlib import Path
from types import TracebackType

from pipeline.runtime import note_error

SILENT_END = "the process ended without an error message, as when the system kills it for memory; see its lines above."


def name_of_stage(module: str) -> str:
    """Return DVC's name of a running stage, such as `fit@digits`: its module and its entry."""
    entries = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    return "@".join([module, *entries[:1]])


def _running_module() -> str:
    """Return the stage of `python -m stages.STAGE` or `icecore stage STAGE`; "" for another command."""
    command = sys.orig_argv
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    if module.startswith("stages."):
        return module.removeprefix("stages.")
    pairs = zip(command, command[1:], command[2:], strict=False)
    return next((name for program, word, name in pairs if (Path(program).name, word) == ("icecore", "stage")), "")


def _note_start() -> None:
    """Record that the stage of this process has no result yet; `stages.project.run` records how it ends."""
    module = _running_module()
    if not module:
        return
    stage = name_of_stage(module)
    note_error(stage, SILENT_END)

    def note_and_print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        note_error(stage, f"{kind.__name__}: {error}" if issubclass(kind, Exception) else None)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = note_and_print


_note_start()
