"""Whitens text vectors before the adaptor sees them: centred, decorrelated, of one scale.

Sentence encoders put all texts into a narrow cone; cosines then tell items apart by little, and a learned whitening takes
many epochs to open it (on `scientific` the tuned teacher's validation NDCG@10 rose by a tenth, docs/results.md). Known as
BERT-whitening (arXiv 2103.15316); here symmetric (ZCA), so that it does not depend on the sign of eigenvectors. Official
checkpoints were trained on raw vectors: leave it off with them. Costs O(V D^2 + D^3), well below a second for 10^5 items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["whitened", "whitened_present"]

_FLOOR = 0.1  #: of the mean variance: directions that hold next to nothing are not blown up
_SCALE = 0.5  #: root mean square of the result, about that of the vectors UniSRec was made for


def whitened(vectors_VD: NDArray[np.float32], first: int | None = None) -> NDArray[np.float32]:
    """[V, D] vectors whose mean is zero and whose covariance is close to a multiple of the identity.

    Args:
        first: so many of the rows, at least one, decide; those that came later are mapped as they are. All by default.
    """
    centred = vectors_VD.astype(np.float64)
    centred -= centred[:first].mean(axis=0)
    known = centred[:first]
    values, vectors = np.linalg.eigh(known.T @ known / len(known))
    scales = 1 / np.sqrt(np.maximum(values, 0) + _FLOOR * values.mean() + np.finfo(float).tiny)
    out = centred @ (vectors * scales) @ vectors.T
    out *= _SCALE / max(float(np.sqrt(np.mean(out[:first] ** 2))), np.finfo(float).tiny)
    result: NDArray[np.float32] = out.astype(np.float32)
    return result


def whitened_present(
    vectors_VD: NDArray[np.float32], first: int | None = None
) -> NDArray[np.float32]:
    """:func:`whitened` of the rows that hold anything, which alone decide it; rows of zeros are missing and stay zeros.

    A row that equals the mean of all present ones, as a single one does, becomes missing: it tells nothing. Where none
    of the `first` rows holds anything, all are missing.
    """
    out_VD: NDArray[np.float32] = np.zeros(vectors_VD.shape, np.float32)
    present = np.flatnonzero(np.asarray(vectors_VD).any(axis=1))
    known = len(present) if first is None else int((present < first).sum())
    if known:
        out_VD[present] = whitened(vectors_VD[present], known)
    return out_VD
