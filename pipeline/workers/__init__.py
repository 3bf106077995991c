"""Other processes that work: on this machine, or those of a Dask cluster that is there.

WorkersConfig   which
preload      what a worker of this machine does before it works
client       the connection to Dask
ordered_map  items handed out to workers, results in their order
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings.check import Settings


class WorkersConfig(Settings):
    """Processes on this machine, or a scheduler that has some."""

    REMOVED = {"tls": "Dask reads certificates from its own configuration, `distributed.comm.tls`: docs/cluster.md."}

    workers: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], Field(description="processes on this machine; auto: one a GPU")
    ] = "auto"
    scheduler: Annotated[
        str | None, Field(description="a Dask scheduler's address (tcp://, tls://), or its scheduler file")
    ] = None

    def processes(self, gpus: int) -> int:
        """Return how many processes work on this machine."""
        return max(1, gpus) if self.workers == "auto" else self.workers

    def several(self, gpus: int) -> bool:
        """Return whether others than this process work."""
        return self.scheduler is not None or self.processes(gpus) > 1

    @model_validator(mode="after")
    def _one_place(self) -> "WorkersConfig":
        if self.scheduler is not None and self.workers != type(self).model_fields["workers"].default:
            raise ValueError("a scheduler has its own workers: leave out `workers`, or `scheduler`")
        return self
