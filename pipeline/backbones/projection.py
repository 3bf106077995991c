"""Random projections of rows that are too wide to store: sparse, seeded, from scikit-learn.

Distances are preserved within a factor that depends only on the number of dimensions (Johnson and Lindenstrauss 1984;
the sparse matrix is that of Li, Hastie and Church 2006).
"""

import functools
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


SEED = 0
"""Seed of the random matrix. Any seed projects equally well."""


@functools.lru_cache(maxsize=16)
def matrix(width: int, dimensions: int) -> "csr_matrix":
    """Return the projection matrix float32 (dimensions, width); equal arguments give equal matrices."""
    from sklearn.random_projection import SparseRandomProjection

    random = SparseRandomProjection(n_components=dimensions, random_state=SEED, dense_output=True)
    components: Any = random.fit(np.zeros((1, width), dtype=np.float32)).components_
    return components.astype(np.float32)


def digest(width: int, dimensions: int) -> str:
    """Return SHA-256 of the matrix, for the identity: another version of scikit-learn may draw another matrix."""
    projection = matrix(width, dimensions)
    total = hashlib.sha256()
    for part in (projection.indptr.astype("<i8"), projection.indices.astype("<i8"), projection.data.astype("<f4")):
        total.update(np.ascontiguousarray(part).data)
    return total.hexdigest()


def project(rows: np.ndarray, dimensions: int) -> np.ndarray:
    """Project rows (n, ...), flattened, to float32 (n, dimensions)."""
    flat = rows.reshape(len(rows), -1).astype(np.float32, copy=False)
    projected: np.ndarray = np.ascontiguousarray((matrix(flat.shape[1], dimensions) @ flat.T).T)
    return projected
