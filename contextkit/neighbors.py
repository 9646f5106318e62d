"""Vector search: which stored messages are near a vector, or near a message."""

from numbers import Real
from typing import Any, get_args

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from contextkit.answers import MOST_EF_SEARCH, Mode, Terms, answer
from contextkit.asked import Asked, check_terms, check_vectors, read_asked
from contextkit.connection import translated_errors
from contextkit.queries import Condition, Distance


def neighbors_df(
    engine: Engine,
    query: object,
    *where: Condition,
    k: int = 10,
    distance: Distance = "cosine",
    mode: Mode = "auto",
    ef_search: int | None = None,
    max_distance: float | None = None,
    include_deleted: bool = False,
) -> pd.DataFrame:
    """The k stored messages nearest to each query, never fewer while more match.

    Messages without an embedding have no distance and are left out, and so are all-zero ones under cosine.

    An index finds nearly all of the nearest; `recall_df` measures how many. It is asked for k, with conditions for
    more, and where the last of these still change the answer, for more again. What it leaves open then is answered
    exactly: too few rows, an order that has not settled, or equal distances with no end. `attrs` counts such queries.

    Args:
        engine: from `connect`.
        query: a vector (1536,), a matrix (n, 1536) or column of vectors, a message id, or a column of message
            ids. A message is not its own neighbor.
        where: conditions on Message and Context.
        k: most neighbors per query.
        distance: cosine (0 to 2), l2, inner (the negative inner product) or l1; smaller is nearer.
        mode: exact compares with every message that meets the conditions; index uses one of `create_index`; auto
            is exact where at most 10,000 messages meet the conditions or no index is there, else index. Without
            conditions, more than 20,000 are counted again only once the server has analyzed the tables anew.
        ef_search: candidates that an index keeps at once, 1 to 1000; by default 2 k + 40, at least 100.
        max_distance: leave out what is further away.
        include_deleted: with deleted messages, and those of deleted contexts.

    Returns:
        rank (from 1), distance, and the columns of `messages_df`; by rank, ties by message id. For a matrix or a
        column of ids also query, its row there from 0, first in the order; for ids query_message_id.

        `attrs` says what ran: mode, index (its name), ef_search, k, queries, rows, and completed, the number of
        queries that an index left open. without_embedding counts messages that meet the conditions and have no
        embedding, zero those without a distance; each is None where an index answered and counting would have
        meant reading everything (more than 10,000 messages; any for zero).

    Raises:
        DimensionError: a vector is not 1536 long.
        NotFoundError: no message has an id.
        SchemaError: mode is index, and there is none for the distance.
        ValueError: a vector holds NaN, infinity or what float32 cannot measure, or only zeros under cosine; a
            message has no embedding; an argument is out of range.

    >>> question = messages_df(engine, Message.content.contains("crontab"))["message_id"][0]
    >>> neighbors_df(engine, question, k=3)[["rank", "distance", "content"]].round(2)
       rank  distance                                            content
    0     1      0.28  I get such a file every Monday. Could I conver...
    1     2      0.29  Next file, next problem: "line 1: unknown colu...
    2     3      0.30  I get such a file every Monday. Could I conver...
    """
    _check(k, distance, mode, ef_search, max_distance)
    terms = Terms(where, int(k), distance, include_deleted)
    with translated_errors(), engine.connect() as connection:
        # One snapshot for what is asked with, counted, searched and completed; never AUTOCOMMIT, for the settings.
        connection.execution_options(isolation_level="REPEATABLE READ")
        asked = read_asked(connection, query, include_deleted=include_deleted)
        check_vectors(asked.vectors, distance)
        found = answer(connection, asked, terms, mode, ef_search)
    frame = _finished(found.frame, asked, max_distance)
    given: dict[str, Any] = {
        "where": len(where),
        "k": int(k),
        "distance": distance,
        "mode": mode,
        "ef_search": None if ef_search is None else int(ef_search),
        "max_distance": None if max_distance is None else float(max_distance),
        "include_deleted": include_deleted,
    }
    frame.attrs = {
        "function": "neighbors_df",
        "asked": given,
        **found.done,
        "k": int(k),
        "queries": len(asked.vectors),
        "rows": len(frame),
    }
    return frame


def _finished(frame: pd.DataFrame, asked: Asked, max_distance: float | None) -> pd.DataFrame:
    if max_distance is not None:
        frame = frame[frame["distance"] <= max_distance].reset_index(drop=True)
    if asked.many and asked.ids is not None:
        frame.insert(1, "query_message_id", pd.Series([asked.ids[row] for row in frame["query"]], dtype=str))
    return frame


def _check(k: int, distance: str, mode: str, ef_search: int | None, max_distance: float | None) -> None:
    check_terms(k, distance)
    if mode not in get_args(Mode):
        raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
    if ef_search is not None:
        _check_ef_search(ef_search, mode)
    if max_distance is None:
        return
    if isinstance(max_distance, bool) or not isinstance(max_distance, Real):
        raise TypeError(f"max_distance is a number, not {max_distance!r:.40}")
    if np.isnan(max_distance):
        raise ValueError("max_distance is NaN; leave it out to have no bound")


def _check_ef_search(ef_search: int, mode: str) -> None:
    whole = isinstance(ef_search, int | np.integer) and not isinstance(ef_search, bool)
    if not whole or not 1 <= ef_search <= MOST_EF_SEARCH:
        raise ValueError(f"ef_search is a whole number from 1 to {MOST_EF_SEARCH}, not {ef_search!r}")
    if mode == "exact":
        raise ValueError("ef_search is of an index, which mode='exact' does not use; leave one of them out")
