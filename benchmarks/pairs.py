"""Combinations of the settings of `fit`, `finetune` and `distill`: prints tables, and exits with 1 at failures.

Settings meet in the combinations that allpairspy makes. Runs of `fit` are compared with scikit-learn's classes. Those
of `finetune` and `distill` leave a network, whose outputs are compared with the predictions and with what was measured.
`ok` says how far values are off at most, in units of the largest; `refused` cells end with an error that says why.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import pairs_of_settings, pairs_of_training

STAGES = ("fit", *pairs_of_training.AXES)


def main() -> int:
    """Run all cells; return 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"of {', '.join(STAGES)} (all)")
    parser.add_argument("--order", type=int, help="allpairspy's `n` (3 of fit, 2 of the others)")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    for stage in asked.stages:
        with tempfile.TemporaryDirectory() as folder:
            if stage == "fit":
                axes, outcomes = list(pairs_of_settings.AXES), fitted(Path(folder), asked.order or 3)
            else:
                axes, outcomes = list(pairs_of_training.AXES[stage]), trained(stage, Path(folder), asked.order or 2)
            failed += table(stage, axes, outcomes)
    return 1 if failed else 0


def fitted(root: Path, order: int) -> Iterator[tuple[Sequence[Any], Any]]:
    """Yield the values of each cell of `fit`, and its outcome."""
    places = pairs_of_settings.make_places(root)
    for cell in pairs_of_settings.cells(order):
        yield cell, pairs_of_settings.run(cell, places[cell.kind])


def trained(stage: str, root: Path, order: int) -> Iterator[tuple[Sequence[Any], Any]]:
    """Yield the values of each cell of `finetune` or `distill`, and its outcome."""
    place = pairs_of_training.Place(root / "world")
    for number, cell in enumerate(pairs_of_training.cells(stage, order)):
        yield list(cell.values()), place.run(stage, cell, root / str(number))


def table(stage: str, axes: Sequence[str], outcomes: Iterable[tuple[Sequence[Any], Any]]) -> int:
    """Print a row per cell and the counts; return the number of failed cells."""
    states: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    worst = 0.0
    print(f"\n{stage}\n\n| {' | '.join(axes)} | outcome |\n|{'---|' * (len(axes) + 1)}")
    for values, outcome in outcomes:
        states[outcome.state] += 1
        worst = max(worst, outcome.off or 0.0)
        if outcome.state == "refused":
            refused[outcome.why] += 1
        off = "" if outcome.off is None else f" {outcome.off:.1e}"
        print(f"| {' | '.join(map(str, values))} | {outcome.state}{off} {outcome.why} |", flush=True)
    print(
        f"\n{stage}: {sum(states.values())} cells: {', '.join(f'{count} {state}' for state, count in states.items())}"
    )
    print(f"{stage}: values are off by {worst:.1e} at most")
    for why, count in refused.most_common():
        print(f"refused, {why}: {count}")
    return states["FAILED"]


if __name__ == "__main__":
    sys.exit(main())
