"""Compare validation rows with folds, for growing numbers of validation rows: `python benchmarks/validation.py`.

CIFAR-10's images and MobileNetV2's last features. For each number of rows that are no test rows, a tenth of them are
validation rows. C is chosen by these, and by five folds of all rows; both heads then learn from all rows. Prints the
mean log loss and accuracy of both on the same test rows, how much the difference in log loss spreads over draws of the
rows (its standard deviation), and the seconds. `FOLDS` and `SPLIT_ROWS` in `pipeline/fit` say what is the default.
"""

import argparse
import os
import tempfile
from pathlib import Path

import defaults
import numpy as np
from defaults import Case
from threadpoolctl import threadpool_limits

SHARE = 10  # one of so many rows is a validation row


def divided(case: Case, known: int, seed: int) -> np.ndarray:
    """Split a number of rows, a tenth of them for validation, and 1,000 other rows for the test."""
    order = np.random.default_rng(seed).permutation(len(case.targets))
    found = np.full(len(order), "", dtype=object)
    found[order[-1000:]], found[order[:known]] = "test", "train"
    found[order[: known // SHARE]] = "validation"
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, nargs="+", default=[200, 600, 1000, 2000, 3000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--root", type=Path, help="keep images and features there, for the next time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, threadpool_limits(1):
        root = given.root or Path(temporary)
        os.environ.setdefault("ICECORE_CACHE", str(root / "cache"))
        [case] = defaults.cases("cifar10", "mobilenet_v2", root, None)
        print("| rows | validation rows | log loss: split / folds | accuracy | spread of the difference | seconds |")
        print("|---|---|---|---|---|---|")
        for known in given.known:
            losses, right, seconds = ([[], []] for _ in range(3))
            for seed in range(given.seeds):
                split = divided(case, known, seed)
                with tempfile.TemporaryDirectory() as folder:
                    for place, how in enumerate(("split", "folds")):
                        answer = defaults.icecore(case, split, Path(folder), validation=how)
                        hit, loss = defaults.rows_of(case, split, answer)
                        losses[place].append(loss.mean())
                        right[place].append(hit.mean())
                        seconds[place].append(answer.seconds)
            means = [" / ".join(f"{np.mean(one):.3f}" for one in pair) for pair in (losses, right)]
            spread = np.std(np.subtract(*losses))
            times = " / ".join(f"{np.mean(one):.1f}" for one in seconds)
            print(f"| {known:,} | {known // SHARE:,} | {means[0]} | {means[1]} | {spread:.3f} | {times} |", flush=True)


if __name__ == "__main__":
    main()
