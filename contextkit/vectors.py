"""The vector column as one float32 matrix, decoded in one pass."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contextkit.errors import DimensionError
from contextkit.models import EMBEDDING_DIMENSIONS

HEADER_BYTES = 4
"""pgvector's binary form: int16 length, int16 unused, then big-endian float32."""

FIRST_BYTES = 2**30
"""Most that a column reserves on the word of the planner, who may err by far; beyond it grows with what comes."""

_Values = TypeVar("_Values", bound=NDArray[Any])


def room(rows: int, row_bytes: int) -> int:
    """Rows to reserve where so many are expected: a fifth more, as room that is never written takes no memory."""
    return min(rows + rows // 5, FIRST_BYTES // row_bytes)


def grown(values: _Values, rows: int) -> _Values:
    """The array, with room for so many rows; in place: a larger one beside it would take as much memory again."""
    if len(values) < rows:
        if not values.flags.owndata:
            values = values.copy()  # a slice of one of others, which stays as it is
        values.resize((max(rows, len(values) * 9 // 8), *values.shape[1:]), refcheck=False)
    return values


def from_binary(values: Sequence[Any]) -> NDArray[np.float32]:
    """Matrix (n, dimensions) of vectors in pgvector's binary form.

    Raises:
        DimensionError: they are of different lengths.
    """
    if len(lengths := {len(value) for value in values}) > 1:
        dimensions = sorted((length - HEADER_BYTES) // 4 for length in lengths)
        raise DimensionError(f"the vectors are of different lengths: {', '.join(map(str, dimensions))}")
    if not values:
        return np.empty((0, EMBEDDING_DIMENSIONS), np.float32)
    return np.stack([np.frombuffer(value, ">f4", offset=HEADER_BYTES) for value in values]).astype(np.float32)


class VectorColumn:
    """Gathers vectors of one length into one float32 matrix; null rows are NaN and masked."""

    def __init__(self, rows: int, matrix: NDArray[np.float32] | None = None) -> None:
        """Start for so many rows, in a matrix given for them; it grows."""
        self._matrix: NDArray[np.float32] = np.empty((0, 0), np.float32) if matrix is None else matrix
        self._expected = rows
        self._masks: list[NDArray[np.bool_]] = []
        self._rows = 0

    def add_rows(self, vectors: list[NDArray[np.float32] | None]) -> None:
        """Add vectors given one by one."""
        mask = np.array([vector is None for vector in vectors], dtype=bool)
        present = [vector for vector in vectors if vector is not None]
        lengths = {len(vector) for vector in present}
        self._extend(mask, lengths, lambda: np.stack(present))

    def add(self, storage: pa.BinaryArray) -> None:
        """Add an array of vectors in pgvector's binary form, decoded by one strided pass."""
        mask = storage.is_null().to_numpy(zero_copy_only=False)
        offsets = np.frombuffer(storage.buffers()[1], np.int32)[storage.offset : storage.offset + len(storage) + 1]
        sizes = np.unique(np.diff(offsets)[~mask])
        data = np.frombuffer(storage.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        self._extend(
            mask,
            {(int(size) - HEADER_BYTES) // 4 for size in sizes},
            lambda: data.reshape(-1, int(sizes[0]))[:, HEADER_BYTES:].view(">f4"),
        )

    keep = add

    def _extend(
        self, mask: NDArray[np.bool_], lengths: set[int], decoded: Callable[[], NDArray[np.floating[Any]]]
    ) -> None:
        self._masks.append(mask)
        start, self._rows = self._rows, self._rows + len(mask)
        if not lengths:
            self._reserve(self._matrix.shape[1])
            self._matrix[start : self._rows] = np.nan
            return
        known = {self._matrix.shape[1]} - {0}
        length = _one_of(lengths | known)
        first = not known
        self._reserve(length)
        if first:
            self._matrix[:start] = np.nan
        target = self._matrix[start : self._rows]
        if mask.any():
            target[mask] = np.nan
            target[~mask] = decoded()
        else:
            target[:] = decoded()

    def _reserve(self, length: int) -> None:
        if self._matrix.shape[1] != length:
            self._matrix = np.empty((max(self._rows, room(self._expected, 4 * length)), length), np.float32)
        else:
            self._matrix = grown(self._matrix, self._rows)

    def finish(self, dimensions: Callable[[], int]) -> pa.ChunkedArray:
        """Give a fixed-size list over the matrix; `dimensions` tells its length where every row is null."""
        if self._matrix.shape[1] == 0:
            self._reserve(dimensions())
            self._matrix[: self._rows] = np.nan
        return fixed_size_lists(self._matrix[: self._rows], np.concatenate([np.zeros(0, bool), *self._masks]))


def fixed_size_lists(matrix: NDArray[np.float32], mask: NDArray[np.bool_]) -> pa.ChunkedArray:
    """Lists over the rows of a matrix, which is not copied; those of the mask are null."""
    nulls = pa.array(mask) if mask.any() else None
    lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1], mask=nulls)
    return pa.chunked_array([lists])


def of_one_length(parts: list[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Parts of one column; those without a vector, which cannot tell its length, take that of the others.

    Raises:
        DimensionError: they are of different lengths.
    """
    lengths = {part.type.list_size for part in parts if part.null_count < len(part)}
    if not lengths:
        return parts
    length = _one_of(lengths)
    return [part if part.type.list_size == length else _nulls(len(part), length) for part in parts]


def _nulls(rows: int, length: int) -> pa.ChunkedArray:
    return fixed_size_lists(np.full((rows, length), np.nan, np.float32), np.ones(rows, dtype=bool))


def _one_of(lengths: set[int]) -> int:
    if len(lengths) > 1:
        raise DimensionError(
            f"the column holds vectors of different lengths: {', '.join(map(str, sorted(lengths)))}; "
            "select those of one length"
        )
    return next(iter(lengths))
