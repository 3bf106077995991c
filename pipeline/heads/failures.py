"""The reason of a failed fit, which does not stop the other fits."""

from pipeline.errors import HeadError, PipelineError


def cause_of_failure(error: Exception) -> str:
    """Return in a line why a head could not be fitted, applied or saved.

    Errors that are not specific to a fit are raised again: those of the store, of workers and of the system.
    """
    if isinstance(error, OSError) or (isinstance(error, PipelineError) and not isinstance(error, HeadError)):
        raise error
    line = next(iter(str(error).splitlines()), "")
    return line if isinstance(error, HeadError | ValueError) else f"{type(error).__name__}: {line}".removesuffix(": ")
