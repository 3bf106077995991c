"""One thread against the default number of threads for small logistic fits: `python benchmarks/threads.py`.

Prints the ratio of the two, measured in turn in one run, for training sets of growing size.
"""

import time
from contextlib import nullcontext

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits


def seconds(X: np.ndarray, y: np.ndarray, threads: int | None) -> float:
    """Return the seconds of a fit."""
    with threadpool_limits(threads) if threads else nullcontext():
        start = time.perf_counter()
        LogisticRegression(max_iter=200, tol=1e-3).fit(X, y)
        return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    random = np.random.default_rng(0)
    print(f"{'rows':>7} {'width':>6} {'values':>12} {'one thread':>11} {'default':>9} {'ratio':>6}")
    for rows, width in [(50, 256), (500, 256), (2_000, 512), (5_000, 1_024), (20_000, 1_024)]:
        X = random.standard_normal((rows, width), dtype=np.float32)
        y = (X[:, :10] + random.standard_normal((rows, 10))).argmax(axis=1)
        pairs = [(seconds(X, y, 1), seconds(X, y, None)) for _ in range(3)]
        one, default = np.median(pairs, axis=0)
        print(f"{rows:7,} {width:6,} {rows * width:12,} {one:10.3f}s {default:8.3f}s {default / one:6.2f}")


if __name__ == "__main__":
    main()
