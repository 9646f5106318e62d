"""Distances between float32 vectors in memory: fast estimates of all, exact ones of the few that matter."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from contextkit.queries import Distance

Vectors = NDArray[np.float32]
Numbers = NDArray[np.float64]
Places = NDArray[np.intp]

PART_BYTES = 4 * 2**20
"""Most that rows take, in float64, while they are measured number by number."""
ORDINARY = (1e-30, 1e30)
"""Squared lengths between which no estimate over- or underflows in float32."""


def squared_lengths(matrix: Vectors) -> Vectors:
    """In float32, as pgvector computes: what over- or underflows there has no distance."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares: Vectors = np.vecdot(matrix, matrix)
    return squares


def estimated(matrix: Vectors, squares: Vectors, vectors: Vectors, distance: Distance) -> Vectors:
    """Numbers (vectors, rows) that order the rows as their distances do, but for errors of float32."""
    if distance == "l1":
        return _estimated_l1(matrix, vectors)
    with np.errstate(all="ignore"):  # of rows beyond ORDINARY, whose estimates nobody uses
        estimates: Vectors = vectors @ matrix.T
        if distance == "l2":
            estimates *= -2
            estimates += squares
        elif distance == "cosine":
            estimates /= -np.sqrt(squares)
        else:
            np.negative(estimates, out=estimates)
    return estimates


def _estimated_l1(matrix: Vectors, vectors: Vectors) -> Vectors:
    estimates = np.empty((len(vectors), len(matrix)), np.float32)
    step = _rows_per_part(matrix)
    room = np.empty((step, matrix.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, len(matrix), step):
            rows = matrix[start : start + step]
            apart = room[: len(rows)]
            for vector, sums in zip(vectors, estimates, strict=True):
                np.abs(np.subtract(rows, vector, out=apart), out=apart)
                apart.sum(axis=1, out=sums[start : start + step])
    return estimates


def possible(estimates: Vectors, k: int, vector: Vectors, longest: float, distance: Distance) -> Places:
    """Rows that may be among the k nearest to a vector, whatever the errors of their estimates are.

    A float32 product over n numbers, summed in any order, is wrong by at most about n * 2**-24 of the product of the
    lengths: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1.

    Args:
        estimates: of all rows, infinite where a row is out of the question.
        k: how many are wanted.
        vector: that the estimates are for.
        longest: length of the longest row.
        distance: that was estimated.
    """
    bound = float(np.partition(estimates, k - 1)[k - 1]) if k <= len(estimates) else np.inf
    square = float(vector @ vector)
    length = float(np.sqrt(square))
    scale = {
        "cosine": length,
        "inner": length * longest,
        "l2": (length + longest) ** 2,
        "l1": bound,
    }[distance]
    # Doubled for the error of the rows' lengths, and again for that of the bound beside that of the row.
    error = 4 * (len(vector) + 8) * 2.0**-24 * scale if ORDINARY[0] < square < ORDINARY[1] else np.inf
    return np.flatnonzero(estimates <= min(bound + error, float(np.finfo(np.float32).max)))


class Twins:
    """Tells for each row the first one known to hold the same numbers, so that those are measured once."""

    def __init__(self, matrix: Vectors) -> None:
        """Know nothing yet: rows are read when they are asked for."""
        self._matrix = matrix
        self._first = np.full(len(matrix), -1, np.intp)
        self._known: dict[bytes, int] = {}

    def of(self, rows: Places) -> Places:
        """Give one row for all that are equal."""
        for row in rows[self._first[rows] < 0]:
            digest = blake2b(self._matrix[row].tobytes(), digest_size=16).digest()
            self._first[row] = self._known.setdefault(digest, row)
        return self._first[rows]


def measured(matrix: Vectors, rows: Places, vector: Vectors, distance: Distance) -> Numbers:
    """Distances of a vector to rows, by pgvector's formulas in float64."""
    query = vector.astype(np.float64)
    step = _rows_per_part(matrix)
    starts = range(0, len(rows), step)
    parts = [_measured(matrix[rows[start : start + step]].astype(np.float64), query, distance) for start in starts]
    return np.concatenate([np.empty(0), *parts])


def _measured(rows: Numbers, query: Numbers, distance: Distance) -> Numbers:
    if distance in ("l1", "l2"):
        apart = np.subtract(rows, query, out=rows)
        sums: Numbers = np.abs(apart, out=apart).sum(axis=1) if distance == "l1" else np.sqrt(np.vecdot(apart, apart))
        return sums
    products: Numbers = np.vecdot(rows, query)
    if distance == "cosine":
        products /= np.sqrt(np.vecdot(rows, rows) * (query @ query))
        return 1 - products.clip(-1, 1)
    return -products


def _rows_per_part(matrix: Vectors) -> int:
    return max(1, PART_BYTES // (8 * max(1, int(matrix.shape[1]))))
