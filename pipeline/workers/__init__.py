"""Worker processes: started on this machine, or those of a running Dask cluster.

WorkersConfig   settings: how many processes, or which scheduler
preload         set-up of a worker on this machine
client          the connection to Dask
ordered_map     a parallel `map` over workers that keeps the order of its items
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings.check import Settings


class WorkersConfig(Settings):
    """Worker processes on this machine, or the scheduler of a Dask cluster."""

    REMOVED = {"tls": "Dask reads certificates from its own configuration, `distributed.comm.tls`: docs/cluster.md."}

    workers: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], Field(description="processes on this machine; auto: one per GPU")
    ] = "auto"
    scheduler: Annotated[
        str | None, Field(description="address of a Dask scheduler (tcp://, tls://), or its scheduler file")
    ] = None

    def processes(self, gpus: int) -> int:
        """Return the number of worker processes on this machine."""
        return max(1, gpus) if self.workers == "auto" else self.workers

    def several(self, gpus: int) -> bool:
        """Return whether work goes to other processes than this one."""
        return self.scheduler is not None or self.processes(gpus) > 1

    @model_validator(mode="after")
    def _workers_or_scheduler(self) -> "WorkersConfig":
        if self.scheduler is not None and self.workers != type(self).model_fields["workers"].default:
            raise ValueError("a scheduler has its own workers: leave out `workers`, or `scheduler`")
        return self
