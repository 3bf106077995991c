"""Why one fit failed, where the others go on."""

from pipeline.errors import HeadError, PipelineError


def cause_of_failure(error: Exception) -> str:
    """Return in one line why a head could not be fitted, applied or saved: of any class, whatever it raises.

    An error that is of no single fit is raised again: of the store, of workers, of the system.
    """
    if isinstance(error, OSError) or (isinstance(error, PipelineError) and not isinstance(error, HeadError)):
        raise error
    line = next(iter(str(error).splitlines()), "")
    return line if isinstance(error, HeadError | ValueError) else f"{type(error).__name__}: {line}".removesuffix(": ")
