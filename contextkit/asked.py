"""What a search is asked with: vectors in any form, or messages whose vectors are stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pgvector import HalfVector, Vector
from sqlalchemy import Connection

from contextkit.counts import positive
from contextkit.dtypes import embedding_matrix
from contextkit.errors import DimensionError, NotFoundError
from contextkit.models import EMBEDDING_DIMENSIONS, canonical_id
from contextkit.queries import Distance, select_embeddings
from contextkit.vectors import from_binary

Vectors = NDArray[np.float32]


READ_ROWS = 1_000
"""Vectors that one statement reads."""


@dataclass(frozen=True)
class Asked:
    """What is asked: a vector per query, and the ids of the messages if it was those."""

    vectors: Vectors
    many: bool
    ids: list[str] | None = None


def read_asked(connection: Connection, query: object, *, include_deleted: bool) -> Asked:
    """Read a query: a vector or a matrix, or the stored vectors of a message id or a column of them."""
    if isinstance(query, str | UUID):
        ids = [canonical_id(query)]
        return Asked(_embeddings(connection, ids, include_deleted=include_deleted), many=False, ids=ids)
    if holds_ids(query):
        ids = [canonical_id(value) for value in query]
        return Asked(_embeddings(connection, ids, include_deleted=include_deleted), many=True, ids=ids)
    vectors = as_array(query)
    if vectors.ndim not in (1, 2):
        raise ValueError(f"a query is a vector or a matrix, not an array of {vectors.ndim} dimensions")
    with np.errstate(over="ignore"):
        return Asked(np.atleast_2d(vectors).astype(np.float32), many=vectors.ndim == 2)


def holds_ids(query: object) -> TypeGuard[Iterable[object]]:
    """Tell whether a query is a column of message ids; an empty one without a type is."""
    if not isinstance(query, pd.Series | pd.Index | np.ndarray | list | tuple):
        return False
    if len(query):
        return isinstance(query.iloc[0] if isinstance(query, pd.Series) else query[0], str | UUID)
    dtype = getattr(query, "dtype", None)
    if dtype is None:
        return True
    holds_vectors = isinstance(dtype, pd.ArrowDtype) and pa.types.is_nested(dtype.pyarrow_dtype)
    return not holds_vectors and np.asarray(query).dtype.kind in "OU"


def as_array(query: Any) -> NDArray[Any]:
    """Numbers of a vector, a matrix or a column of vectors, in any form that holds them."""
    if isinstance(query, pd.DataFrame):
        raise TypeError("a query is one column: frame['embedding'] or frame['message_id'], not a whole DataFrame")
    if isinstance(query, pd.Series) and _is_matrix(query.dtype):
        return embedding_matrix(query.to_frame("embedding"))
    if isinstance(query, Vector | HalfVector):
        query = query.to_numpy()
    elif isinstance(query, pd.Series | list | tuple):
        query = [value.to_numpy() if isinstance(value, Vector | HalfVector) else value for value in query]
    try:
        array = np.asarray(query)
    except ValueError:
        raise DimensionError("the vectors of a query have different lengths, or one is missing") from None
    if array.dtype.kind not in "fiu":
        raise TypeError("a query is a vector, a matrix, a message id, or a column of one of them, without nulls")
    return array


def _is_matrix(dtype: Any) -> bool:
    return isinstance(dtype, pd.ArrowDtype) and pa.types.is_fixed_size_list(dtype.pyarrow_dtype)


def _embeddings(connection: Connection, ids: list[str], *, include_deleted: bool) -> Vectors:
    stored: dict[str, bytes | None] = {}
    for start in range(0, len(ids), READ_ROWS):
        statement = select_embeddings(ids[start : start + READ_ROWS], include_deleted=include_deleted)
        stored |= dict(connection.execute(statement).all())
    if unknown := sorted(set(ids) - stored.keys()):
        raise NotFoundError(f"no message, or a deleted one, has the id {', '.join(unknown[:5])}")
    if empty := sorted(id_ for id_, vector in stored.items() if vector is None):
        raise ValueError(f"message {', '.join(empty[:5])} has no embedding; ask with one that has")
    matrix = from_binary([stored[id_] for id_ in ids])
    if matrix.shape[1] != EMBEDDING_DIMENSIONS:
        raise DimensionError(
            f"the column messages.embedding holds vectors of {matrix.shape[1]} dimensions, and searches are among "
            f"{EMBEDDING_DIMENSIONS}; load the messages with embeddings=True, and ask nearest(frame, ...)"
        )
    return matrix


def check_vectors(vectors: Vectors, distance: Distance) -> None:
    """Raise for vectors that the column cannot be compared with."""
    if vectors.shape[1] != EMBEDDING_DIMENSIONS:
        raise DimensionError(
            f"the query has {vectors.shape[1]} dimensions, the column embedding {EMBEDDING_DIMENSIONS}; "
            "use the embedder that the messages were embedded with"
        )
    # In float32, as pgvector computes: a sum that over- or underflows there makes the distances meaningless.
    with np.errstate(over="ignore", under="ignore"):
        check_squares((vectors * vectors).sum(axis=1), distance)


def check_squares(squares: Vectors, distance: Distance) -> None:
    """Raise for vectors whose squared lengths say that they have no distance."""
    if (odd := ~np.isfinite(squares)).any():
        raise ValueError(f"the query holds NaN, infinity or too large numbers in {_rows(odd)}; leave those out")
    if distance == "cosine" and (zero := squares == 0).any():
        raise ValueError(
            f"the query is all zero, or too small, in {_rows(zero)}, which has no cosine distance; leave it out"
        )


def check_terms(k: int, distance: str) -> None:
    """Raise for a k or a distance that no search takes."""
    positive("k", k)
    if distance not in get_args(Distance):
        raise ValueError(f"distance is one of {', '.join(get_args(Distance))}, not {distance!r}")


def _rows(found: Any) -> str:
    return f"row {', '.join(str(row) for row in np.flatnonzero(found)[:5])}"
