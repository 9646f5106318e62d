"""Vector search over a loaded frame: many questions to one matrix, without the database."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contextkit.asked import as_array, check_squares, check_terms, holds_ids
from contextkit.distances import (
    ORDINARY,
    Numbers,
    Places,
    Twins,
    Vectors,
    estimated,
    measured,
    possible,
    squared_lengths,
)
from contextkit.dtypes import embedding_matrix
from contextkit.errors import DimensionError, NotFoundError
from contextkit.models import canonical_id
from contextkit.queries import Distance

Flags = NDArray[np.bool_]

BLOCK_BYTES = 64 * 2**20
"""Most that the vectors of a block of queries take, and again their estimates; a block has at least one query."""
MEASURED = ["query", "query_message_id", "rank", "distance"]


def nearest(frame: pd.DataFrame, query: object, *, k: int = 10, distance: Distance = "cosine") -> pd.DataFrame:
    """The k rows of a loaded frame nearest to each query; exact, as `neighbors_df` over the same messages.

    Rows without an embedding have no distance and are left out, and so are all-zero ones under cosine. A message
    that stands in several rows, as in the histories of several contexts, is found in each.

    Products of float32 matrices (BLAS) estimate all distances; the rows that their errors leave possible are then
    measured in float64. Beside the frame and the result that takes at most 150 MB and 400 bytes per row.

    Args:
        frame: with the columns message_id and embedding, such as messages_df(engine, embeddings=True). The
            embeddings may have any length.
        query: a vector, a matrix (n, dimensions) or column of vectors, a message id, or a column of message ids,
            all of the frame. None asks with every row that has a distance, for near-duplicates and neighbor
            graphs. A message is not its own neighbor.
        k: most neighbors per query.
        distance: cosine (0 to 2), l2, inner (the negative inner product) or l1; smaller is nearer.

    Returns:
        rank (from 1), distance, and the columns of the frame but embedding; by rank, ties by message id. For a
        matrix, a column of ids or None also query, its row there from 0, first in the order; for ids and None
        query_message_id. `attrs` counts the rows of the frame `without_embedding`, and `zero` under cosine.

    Raises:
        DimensionError: a vector is not as long as the frame's embeddings.
        NotFoundError: no row of the frame has an id.
        ValueError: the frame has no embeddings; a vector holds NaN, infinity or what float32 cannot measure, or
            only zeros under cosine; a message has no embedding; an argument is out of range.

    >>> messages = messages_df(engine, Message.embedding.is_not(None), embeddings=True)
    >>> nearest(messages, messages["message_id"][0], k=2)[["rank", "distance", "content"]].round(2)
       rank  distance                                            content
    0     1      0.28   Will it find 31.4.2026? That day does not exist.
    1     2      0.30  Limit month and day, and stop it from matching...
    """
    check_terms(k, distance)
    corpus = _corpus(frame, distance)
    asked = _asked(corpus, query)
    check_squares(squared_lengths(asked.source)[asked.rows], distance)
    found = list(_search(corpus, asked, int(k)))
    result = _result(frame, corpus, asked, found)
    result.attrs = {
        "function": "nearest",
        "asked": {"k": int(k), "distance": distance},
        "mode": "memory",
        "queries": len(asked.rows),
        "rows": len(result),
        "without_embedding": int(corpus.missing.sum()),
        "zero": int(corpus.zero.sum()),
    }
    return result


@dataclass(frozen=True)
class _Corpus:
    """The rows that are searched, each with a code: the place of its message id in the order of all ids.

    Estimates hold for the rows that are `sure`; `odd` ones over- or underflow there and are measured every time.
    """

    distance: Distance
    matrix: Vectors
    squares: Vectors
    missing: Flags
    zero: Flags
    sure: Flags
    ids: "pd.Index[str]"
    codes: Places

    @cached_property
    def odd(self) -> Places:
        return np.flatnonzero(~self.sure & ~self.missing & ~self.zero)

    @cached_property
    def longest(self) -> float:
        return float(np.sqrt(self.squares[self.sure].max(initial=0)))

    @cached_property
    def _by_code(self) -> tuple[Places, Places]:
        order = np.argsort(self.codes, kind="stable")
        return order, np.searchsorted(self.codes[order], np.arange(len(self.ids) + 1))

    def rows_of(self, code: int | None) -> Places:
        order, starts = self._by_code
        return order[:0] if code is None else order[starts[code] : starts[code + 1]]


def _corpus(frame: pd.DataFrame, distance: Distance) -> _Corpus:
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"a frame is a DataFrame such as messages_df gives, not {type(frame).__name__}")
    matrix = embedding_matrix(frame)
    if "message_id" not in frame:
        raise ValueError("the frame has no column message_id, by which results are told apart; keep it")
    codes, ids = pd.factorize(frame["message_id"].astype(str), sort=True)
    squares = squared_lengths(matrix)
    zero = (squares == 0) & (distance == "cosine")
    sure = (ORDINARY[0] < squares) & (squares < ORDINARY[1])
    return _Corpus(distance, matrix, squares, np.isnan(squares), zero, sure, ids, codes)


@dataclass(frozen=True)
class _Asked:
    """The rows of a matrix that ask, how they are numbered, and codes of their messages where they have one."""

    source: Vectors
    rows: Places
    numbers: Places
    many: bool
    own: Places | None = None


def _asked(corpus: _Corpus, query: object) -> _Asked:
    if query is None:
        rows = np.flatnonzero(~corpus.missing & ~corpus.zero)
        return _Asked(corpus.matrix, rows, rows, many=True, own=corpus.codes[rows])
    if isinstance(query, str | UUID):
        return _of_ids(corpus, [canonical_id(query)], many=False)
    if holds_ids(query):
        return _of_ids(corpus, [canonical_id(value) for value in query], many=True)
    given = as_array(query)
    if given.ndim not in (1, 2):
        raise ValueError(f"a query is a vector or a matrix, not an array of {given.ndim} dimensions")
    with np.errstate(over="ignore"):
        vectors = np.atleast_2d(given).astype(np.float32, copy=False)
    if vectors.shape[1] != corpus.matrix.shape[1]:
        raise DimensionError(
            f"the query has {vectors.shape[1]} dimensions, the frame's embeddings {corpus.matrix.shape[1]}; "
            "use the embedder that the messages were embedded with"
        )
    numbers = np.arange(len(vectors))
    return _Asked(vectors, numbers, numbers, many=given.ndim == 2)


def _of_ids(corpus: _Corpus, ids: list[str], *, many: bool) -> _Asked:
    own = corpus.ids.get_indexer(pd.Index(ids, dtype=corpus.ids.dtype))
    if unknown := sorted({id_ for id_, code in zip(ids, own, strict=True) if code < 0}):
        raise NotFoundError(f"no row of the frame has the message id {', '.join(unknown[:5])}")
    rows = np.array([corpus.rows_of(code)[0] for code in own.tolist()], np.intp)
    if empty := corpus.ids[np.unique(own[corpus.missing[rows]])].tolist():
        raise ValueError(f"message {', '.join(empty[:5])} has no embedding; ask with one that has")
    return _Asked(corpus.matrix, rows, np.arange(len(rows)), many=many, own=own)


def _search(corpus: _Corpus, asked: _Asked, k: int) -> Iterator[tuple[Places, Numbers]]:
    """Rows and distances of the k nearest, for each query."""
    twins = Twins(corpus.matrix)
    block = max(1, BLOCK_BYTES // (4 * max(1, *corpus.matrix.shape)))
    for start in range(0, len(asked.rows), block):
        # In a function of its own, or two blocks would be held at a time.
        yield from _search_block(corpus, asked, slice(start, start + block), k, twins)


def _search_block(
    corpus: _Corpus, asked: _Asked, block: slice, k: int, twins: Twins
) -> Iterator[tuple[Places, Numbers]]:
    vectors = asked.source[asked.rows[block]]
    codes = [None] * len(vectors) if asked.own is None else asked.own[block].tolist()
    estimates = estimated(corpus.matrix, corpus.squares, vectors, corpus.distance)
    estimates[:, ~corpus.sure] = np.inf
    for vector, code, estimate in zip(vectors, codes, estimates, strict=True):
        own = corpus.rows_of(code)
        estimate[own] = np.inf
        likely = possible(estimate, k, vector, corpus.longest, corpus.distance)
        rows = np.concatenate([likely, np.setdiff1d(corpus.odd, own)])
        different, places = np.unique(twins.of(rows), return_inverse=True)
        distances = measured(corpus.matrix, different, vector, corpus.distance)[places]
        order = np.lexsort((rows, corpus.codes[rows], distances))[:k]
        yield rows[order], distances[order]


def _result(frame: pd.DataFrame, corpus: _Corpus, asked: _Asked, found: list[tuple[Places, Numbers]]) -> pd.DataFrame:
    counts = [len(rows) for rows, _ in found]
    columns: dict[str, object] = {
        "rank": np.concatenate([np.empty(0, np.int64), *(np.arange(1, count + 1) for count in counts)]),
        "distance": np.concatenate([np.empty(0), *(distances for _, distances in found)]),
    }
    rows = np.concatenate([np.empty(0, np.intp), *(rows for rows, _ in found)])
    if asked.many and asked.own is not None:
        ids = corpus.ids[np.repeat(asked.own, counts)]
        columns = {"query_message_id": pd.Series(ids, dtype=str)} | columns
    if asked.many:
        columns = {"query": np.repeat(asked.numbers, counts)} | columns
    result = frame.drop(columns=["embedding", *MEASURED], errors="ignore").iloc[rows].reset_index(drop=True)
    return pd.concat([pd.DataFrame(columns), result], axis=1)
