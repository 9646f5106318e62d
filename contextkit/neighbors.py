"""Vector search: which stored messages are near a vector, or near a message."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeGuard, get_args
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pgvector import HalfVector, Vector
from sqlalchemy import Engine, Select

from contextkit.arrow import fetch
from contextkit.errors import DimensionError, NotFoundError
from contextkit.frames import embedding_matrix, read_df, to_frame
from contextkit.models import EMBEDDING_DIMENSIONS, canonical_id
from contextkit.queries import (
    Condition,
    Distance,
    select_embeddings,
    select_neighbors,
    select_neighbors_of_many,
)

Mode = Literal["auto", "exact"]
Vectors = NDArray[np.float32]


def neighbors_df(
    engine: Engine,
    query: object,
    *where: Condition,
    k: int = 10,
    distance: Distance = "cosine",
    mode: Mode = "auto",
    max_distance: float | None = None,
    include_deleted: bool = False,
) -> pd.DataFrame:
    """The k stored messages nearest to each query, never fewer while more match.

    Messages without an embedding have no distance and are left out, and so are all-zero ones under cosine.

    Args:
        engine: from `connect`.
        query: a vector (1536,), a matrix (n, 1536) or column of vectors, a message id, or a column of message
            ids. A message is not its own neighbor.
        where: conditions on Message and Context.
        k: most neighbors per query.
        distance: cosine (0 to 2), l2, inner (the negative inner product) or l1; smaller is nearer.
        mode: exact compares with every message that meets the conditions; auto is exact, too.
        max_distance: leave out what is further away.
        include_deleted: with deleted messages, and those of deleted contexts.

    Returns:
        rank (from 1), distance, and the columns of `messages_df`; by rank, ties by message id. For a matrix or a
        column of ids also query, its row there from 0, first in the order; for ids query_message_id.

    Raises:
        DimensionError: a vector is not 1536 long.
        NotFoundError: no message has an id.
        ValueError: a vector holds NaN, infinity or what float32 cannot measure, or only zeros under cosine; a
            message has no embedding; an argument is out of range.
    """
    _check(k, distance, mode, max_distance)
    asked = _asked(engine, query, include_deleted=include_deleted)
    _check_vectors(asked.vectors, distance)
    frame = to_frame(
        fetch(
            engine,
            _statement(asked, where, k=k, distance=distance, include_deleted=include_deleted),
            bulk=False,
        )
    )
    if asked.many and asked.ids is not None:
        frame.insert(1, "query_message_id", pd.Series([asked.ids[row] for row in frame["query"]], dtype=str))
    found = frame["distance"].notna()
    if max_distance is not None:
        found &= frame["distance"] <= max_distance
    frame = frame[found].reset_index(drop=True)
    frame.attrs = {
        "function": "neighbors_df",
        "asked": {
            "where": len(where),
            "k": int(k),
            "distance": distance,
            "mode": mode,
            "max_distance": None if max_distance is None else float(max_distance),
            "include_deleted": include_deleted,
        },
        "mode": "exact",
        "queries": len(asked.vectors),
        "rows": len(frame),
    }
    return frame


@dataclass(frozen=True)
class _Asked:
    vectors: Vectors
    many: bool
    ids: list[str] | None = None


def _asked(engine: Engine, query: object, *, include_deleted: bool) -> _Asked:
    if isinstance(query, str | UUID):
        ids = [canonical_id(query)]
        return _Asked(_embeddings(engine, ids, include_deleted=include_deleted), many=False, ids=ids)
    if _holds_ids(query):
        ids = [canonical_id(value) for value in query]
        return _Asked(_embeddings(engine, ids, include_deleted=include_deleted), many=True, ids=ids)
    vectors = _as_array(query)
    if vectors.ndim not in (1, 2):
        raise ValueError(f"a query is a vector or a matrix, not an array of {vectors.ndim} dimensions")
    with np.errstate(over="ignore"):
        return _Asked(np.atleast_2d(vectors).astype(np.float32), many=vectors.ndim == 2)


def _holds_ids(query: object) -> TypeGuard[Iterable[object]]:
    if not isinstance(query, pd.Series | pd.Index | np.ndarray | list | tuple):
        return False
    if len(query):
        return isinstance(query.iloc[0] if isinstance(query, pd.Series) else query[0], str | UUID)
    dtype = getattr(query, "dtype", None)
    holds_vectors = isinstance(dtype, pd.ArrowDtype) and pa.types.is_nested(dtype.pyarrow_dtype)
    return not holds_vectors and np.asarray(query).dtype.kind in "OU"


def _as_array(query: Any) -> NDArray[Any]:
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


def _embeddings(engine: Engine, ids: list[str], *, include_deleted: bool) -> Vectors:
    frame = read_df(engine, select_embeddings(ids, include_deleted=include_deleted))
    if unknown := sorted(set(ids) - set(frame["message_id"])):
        raise NotFoundError(f"no message, or a deleted one, has the id {', '.join(unknown[:5])}")
    if empty := frame.loc[frame["embedding"].isna(), "message_id"].tolist():
        raise ValueError(f"message {', '.join(empty[:5])} has no embedding; ask with one that has")
    places = {id_: place for place, id_ in enumerate(frame["message_id"])}
    return embedding_matrix(frame)[np.array([places[id_] for id_ in ids], dtype=np.intp)]


def _check_vectors(vectors: Vectors, distance: Distance) -> None:
    if vectors.shape[1] != EMBEDDING_DIMENSIONS:
        raise DimensionError(
            f"the query has {vectors.shape[1]} dimensions, the column embedding {EMBEDDING_DIMENSIONS}; "
            "use the embedder that the messages were embedded with"
        )
    # In float32, as pgvector computes: a sum that over- or underflows there makes the distances meaningless.
    with np.errstate(over="ignore", under="ignore"):
        squares = (vectors * vectors).sum(axis=1)
    if (odd := ~np.isfinite(squares)).any():
        raise ValueError(f"the query holds NaN, infinity or too large numbers in {_rows(odd)}; leave those out")
    if distance == "cosine" and (zero := squares == 0).any():
        raise ValueError(
            f"the query is all zero, or too small, in {_rows(zero)}, which has no cosine distance; leave it out"
        )


def _rows(found: Any) -> str:
    return f"row {', '.join(str(row) for row in np.flatnonzero(found)[:5])}"


def _statement(
    asked: _Asked, where: tuple[Condition, ...], *, k: int, distance: Distance, include_deleted: bool
) -> Select[Any]:
    own_ids: Sequence[str | None] = asked.ids or [None] * len(asked.vectors)
    if asked.many:
        return select_neighbors_of_many(
            [_as_text(vector) for vector in asked.vectors],
            *where,
            k=k,
            distance=distance,
            own_ids=own_ids,
            include_deleted=include_deleted,
        )
    return select_neighbors(
        asked.vectors[0],
        *where,
        k=k,
        distance=distance,
        own_id=own_ids[0],
        include_deleted=include_deleted,
    )


def _as_text(vector: Vectors) -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"


def _check(k: int, distance: str, mode: str, max_distance: float | None) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is a whole number of at least 1, not {k!r}")
    if distance not in get_args(Distance):
        raise ValueError(f"distance is one of {', '.join(get_args(Distance))}, not {distance!r}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
    if max_distance is None:
        return
    if isinstance(max_distance, bool) or not isinstance(max_distance, Real):
        raise TypeError(f"max_distance is a number, not {max_distance!r:.40}")
    if np.isnan(max_distance):
        raise ValueError("max_distance is NaN; leave it out to have no bound")
