"""Vector search: which stored messages are near a vector, or near a message."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args
from uuid import UUID

import numpy as np
import pandas as pd
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
        ValueError: a vector holds NaN or infinity, or only zeros under cosine; a message has no embedding; an
            argument is out of range.
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
            "k": k,
            "distance": distance,
            "mode": mode,
            "max_distance": max_distance,
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
    return _Asked(np.atleast_2d(vectors).astype(np.float32), many=vectors.ndim == 2)


def _holds_ids(query: object) -> TypeGuard[Iterable[object]]:
    if isinstance(query, pd.Series | pd.Index | np.ndarray | list | tuple) and len(query):
        first = query.iloc[0] if isinstance(query, pd.Series) else query[0]
        return isinstance(first, str | UUID)
    return isinstance(query, pd.Series | pd.Index) and isinstance(query.dtype, pd.StringDtype)


def _as_array(query: Any) -> NDArray[Any]:
    if isinstance(query, pd.DataFrame):
        raise TypeError("a query is one column: frame['embedding'] or frame['message_id'], not a whole DataFrame")
    if isinstance(query, pd.Series) and isinstance(query.dtype, pd.ArrowDtype):
        return embedding_matrix(query.to_frame("embedding"))
    if isinstance(query, pd.Series):
        query = query.tolist()
    elif isinstance(query, Vector | HalfVector):
        query = query.to_numpy()
    try:
        array = np.asarray(query)
    except ValueError:
        raise DimensionError("the vectors of a query have different lengths; give them one length") from None
    if array.dtype.kind not in "fiu":
        raise TypeError("a query is a vector, a matrix, a message id, or a column of one of them, without nulls")
    return array


def _embeddings(engine: Engine, ids: list[str], *, include_deleted: bool) -> Vectors:
    frame = read_df(engine, select_embeddings(ids, include_deleted=include_deleted))
    if unknown := sorted(set(ids) - set(frame["message_id"])):
        raise NotFoundError(f"no message, or a deleted one, has the id {', '.join(unknown[:5])}")
    if empty := frame.loc[frame["embedding"].isna(), "message_id"].tolist():
        raise ValueError(f"message {', '.join(empty[:5])} has no embedding; ask with one that has")
    places = pd.Series(range(len(frame)), index=frame["message_id"])
    return embedding_matrix(frame)[places[ids].to_numpy()]


def _check_vectors(vectors: Vectors, distance: Distance) -> None:
    if vectors.shape[1] != EMBEDDING_DIMENSIONS:
        raise DimensionError(
            f"the query has {vectors.shape[1]} dimensions, the column embedding {EMBEDDING_DIMENSIONS}; "
            "use the embedder that the messages were embedded with"
        )
    odd = np.isnan(vectors).any(axis=1) | np.isinf(vectors).any(axis=1)
    if odd.any():
        raise ValueError(f"the query holds NaN or infinity in {_rows(odd)}; leave those out")
    zero = np.abs(vectors).max(axis=1, initial=0) == 0
    if distance == "cosine" and zero.any():
        raise ValueError(f"the query is all zero in {_rows(zero)}, which has no cosine distance; leave it out")


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
    if max_distance is not None and np.isnan(max_distance):
        raise ValueError("max_distance is NaN; leave it out to have no bound")
