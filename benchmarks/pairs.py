"""Combinations of the settings of `fit`, each compared with scikit-learn: prints a table, and exits with 1 at failures.

Heads, kinds of tasks, scales, principal components, searches, refits, temperatures and inputs meet in the combinations
that allpairspy makes. `ok` says how far scores or numbers are off at most, in units of the
largest; `refused` cells end with an error that says why.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pairs_of_settings import cells, make_places, run


def main() -> int:
    """Run all cells; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--order", type=int, default=3, help="allpairspy's `n` (3)")
    order = parser.parse_args().order
    warnings.simplefilter("ignore")
    states: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    worst = 0.0
    print("| head | kind | scale | pca | search | refit | calibrate | inputs | outcome |\n|" + "---|" * 9)
    with tempfile.TemporaryDirectory() as folder:
        places = make_places(Path(folder))
        for cell in cells(order):
            outcome = run(cell, places[cell.kind])
            states[outcome.state] += 1
            worst = max(worst, outcome.off or 0.0)
            if outcome.state == "refused":
                refused[outcome.why] += 1
            off = "" if outcome.off is None else f" {outcome.off:.1e}"
            print(f"| {' | '.join(map(str, cell))} | {outcome.state}{off} {outcome.why} |", flush=True)
    print(f"\n{sum(states.values())} cells: {', '.join(f'{count} {state}' for state, count in states.items())}")
    print(f"values are off by {worst:.1e} at most")
    for why, count in refused.most_common():
        print(f"refused, {why}: {count}")
    return 1 if states["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
