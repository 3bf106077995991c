"""Early stopping: the metrics of each epoch, the best epoch, when to stop; and the curves."""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import counted
from pipeline.files import write_json, write_text
from pipeline.training.config import LoopConfig

Row = dict[str, float]

SURE = 2.0
"""Standard errors by which an epoch must be better than the network before training; by chance, 2 in 100 are.

With 30 validation rows and one standard error, an epoch was chosen that was worse on test rows: `benchmarks/README.md`.
"""

START = -1
"""The epoch of a network before its first."""


@dataclasses.dataclass
class History:
    """One row per epoch: `epoch`, `learning_rate`, `loss`, and with validation `validation_loss`,
    `validation_accuracy`.

    start: the row of the network before the first epoch, if its classifier was fitted; its `epoch` is START. best: the
    epoch with the best validation; START if no epoch is better by more than `SURE` standard errors; the last epoch
    without validation rows. stopped: why training ended. start_rows: the monitored value of each validation row at the
    start. errors: for each epoch, the standard error of the mean difference from `start_rows`.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    best: int = START
    stopped: str = ""
    start: Row | None = None
    start_rows: list[float] = dataclasses.field(default_factory=list)
    errors: list[float] = dataclasses.field(default_factory=list)

    def begin(self, held: Mapping[str, np.ndarray], config: LoopConfig) -> Row:
        """Record the network before its first epoch and return its row; `held` is from `loop.by_row`."""
        self.start = {"epoch": START, **means(held)}
        self.start_rows = _rows(held, config).tolist()
        return self.start

    def monitored(self, config: LoopConfig) -> list[float]:
        """Return the monitored validation value of each epoch as a loss; infinite without validation."""
        return [_monitored(row, config) for row in self.rows]

    def add(self, row: Row, config: LoopConfig, held: Mapping[str, np.ndarray] | None = None) -> None:
        """Record an epoch and update the best: the first of equal epochs, or the last epoch without validation.

        held: from `loop.by_row`. With few validation rows, the network before the first epoch stays the best unless an
        epoch is better by more than chance.
        """
        self.rows.append(row)
        if self.start is not None:
            gaps = _rows(held or {}, config) - np.array(self.start_rows)
            self.errors.append(float(np.std(gaps, ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else 0.0)
        known = self.monitored(config)
        if self.start is not None:
            least = _monitored(self.start, config)
            better = [
                value if least - value > SURE * error else math.inf
                for value, error in zip(known, self.errors, strict=True)
            ]
            self.best = better.index(min(better)) if math.isfinite(min(better)) else START
        else:
            self.best = known.index(min(known)) if math.isfinite(min(known)) else len(known) - 1
        if len(known) == config.epochs:
            self.stopped = "all epochs"
        elif config.patience is not None and len(known) - 1 - self.best >= config.patience:
            self.stopped = f"no better validation for {counted(config.patience, 'epoch')}"

    def kept(self, config: LoopConfig) -> Row:
        """Return the row of the epoch whose weights are saved."""
        if config.weights == "last":
            return self.rows[-1]
        return self.start if self.best == START and self.start is not None else self.rows[self.best]


def means(held: Mapping[str, np.ndarray]) -> Row:
    """Return the mean of each column over its rows."""
    return {name: float(values.mean()) for name, values in held.items()}


def _rows(held: Mapping[str, np.ndarray], config: LoopConfig) -> np.ndarray:
    """Return the monitored value of each validation row as a loss."""
    if config.monitor == "accuracy" and "validation_accuracy" in held:
        return -held["validation_accuracy"]
    return held["validation_loss"]


def _monitored(row: Row, config: LoopConfig) -> float:
    if config.monitor == "accuracy" and "validation_accuracy" in row:
        return -row["validation_accuracy"]
    return row.get("validation_loss", math.inf)


def line(row: Row, config: LoopConfig) -> str:
    """Return an epoch as a line for a log."""
    columns = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items() if name != "epoch"]
    return f"epoch {int(row['epoch']) + 1} of {config.epochs}: {', '.join(columns)}"


class Curves:
    """Writes the curves of a history to a folder after each epoch; does nothing without a folder.

    `plots/metrics/<name>.tsv` has a line per epoch, `metrics.json` the last epoch: the files of DVCLive, which
    `dvc plots` shows. DVCLive itself needs a repository with commits, and turns a folder without DVC into a project.
    """

    def __init__(self, folder: Path | None, history: History) -> None:
        self._folder, self._history = folder, history
        if folder is not None:
            shutil.rmtree(folder / "plots", ignore_errors=True)
        if history.rows:
            self.write()

    def write(self) -> None:
        """Write all epochs."""
        if self._folder is None:
            return
        rows = self._history.rows
        for name in [name for name in rows[-1] if name != "epoch"]:
            lines = [f"{int(row['epoch'])}\t{row[name]}\n" for row in rows if name in row]
            write_text(self._folder / "plots" / "metrics" / f"{name}.tsv", f"step\t{name}\n" + "".join(lines))
        last = {name: value for name, value in rows[-1].items() if name != "epoch"}
        write_json(self._folder / "metrics.json", {**last, "step": int(rows[-1]["epoch"])})
