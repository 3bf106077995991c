"""What happens in a training run, epoch by epoch: its rows, which was the best, when to stop, and the curves."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from pipeline.training import LoopConfig

Row = dict[str, float]


@dataclasses.dataclass
class History:
    """A row an epoch with `epoch`, `learning_rate`, `loss`, and where it was measured `validation_loss`, `_accuracy`.

    `best`: the epoch with the best validation, the last where there are no validation rows. `stopped`: why it ended.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    best: int = -1
    stopped: str = ""

    def monitored(self, config: LoopConfig) -> list[float]:
        """What validation says of each epoch, less is better; infinite where there is no validation."""
        accuracy = config.monitor == "accuracy"
        return [
            -row["validation_accuracy"]
            if accuracy and "validation_accuracy" in row
            else row.get("validation_loss", math.inf)
            for row in self.rows
        ]

    def add(self, row: Row, config: LoopConfig) -> None:
        """Take up an epoch; the first of equals stays the best, but without validation the last is."""
        self.rows.append(row)
        known = self.monitored(config)
        self.best = known.index(min(known)) if math.isfinite(min(known)) else len(known) - 1
        if len(known) == config.epochs:
            self.stopped = "all epochs"
        elif config.patience is not None and len(known) - 1 - self.best >= config.patience:
            self.stopped = f"no better validation for {config.patience} epochs"


def line(row: Row, config: LoopConfig) -> str:
    """An epoch as a line for a log."""
    told = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items() if name != "epoch"]
    return f"epoch {int(row['epoch']) + 1} of {config.epochs}: {', '.join(told)}"


class Curves:
    """The rows of a history as DVCLive's files in a folder, written anew when a run goes on; none without a folder."""

    def __init__(self, folder: Path | None, history: History) -> None:
        self._live: Any = None
        if folder is not None:
            from dvclive.live import Live

            self._live = Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None)
        for row in history.rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Write an epoch."""
        if self._live is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._live.log_metric(name, value)
            self._live.next_step()

    def end(self) -> None:
        """No epoch comes any more."""
        if self._live is not None:
            self._live.end()
