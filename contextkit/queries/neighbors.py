"""Nearest stored messages to vectors, or to messages."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Float,
    FromClause,
    Select,
    Text,
    Uuid,
    cast,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.orm import aliased

from contextkit.models import EMBEDDING_DIMENSIONS, Context, Message
from contextkit.queries.columns import Condition, live, message_columns, split_conditions

Distance = Literal["cosine", "l2", "inner", "l1"]
NAN = literal_column("float8 'NaN'", Float)
OPERATORS: dict[Distance, str] = {"cosine": "<=>", "l2": "<->", "inner": "<#>", "l1": "<+>"}


def select_embeddings(ids: Sequence[str], *, include_deleted: bool = False) -> Select[Any]:
    """message_id and embedding of the messages of these ids."""
    wanted = func.unnest(cast(list(ids), ARRAY(Uuid(as_uuid=False)))).table_valued("id", name="wanted")
    columns: tuple[ColumnElement[Any], ...] = (
        Message.id.label("message_id"),
        Message.embedding.label("embedding"),
    )
    return (
        select(*columns)
        .join(Context, Context.id == Message.context_id)
        .where(
            Message.id.in_(select(wanted.render_derived().c.id)),
            *live(Context, Message, include_deleted=include_deleted),
        )
    )


def select_matching(*where: Condition, limit: int | None = None, include_deleted: bool = False) -> Select[Any]:
    """One row: how many messages meet the conditions, counted up to a limit, and how many of them are embedded."""
    split_conditions(where)
    matching = (
        select(Message.embedding.is_not(None).label("embedded"))
        .join(Context, Context.id == Message.context_id)
        .where(*live(Context, Message, include_deleted=include_deleted), *where)
        .limit(limit)
        .subquery("matching")
    )
    columns: tuple[Any, ...] = (func.count().label("rows"), func.count().filter(matching.c.embedded).label("embedded"))
    return select(*columns).select_from(matching)


def select_sample(size: int) -> Select[Any]:
    """message_id of so many embedded, live messages: always the same ones while these stay, in no order of theirs."""
    return (
        select(Message.id.label("message_id"))
        .join(Context, Context.id == Message.context_id)
        .where(Message.embedding.is_not(None), *live(Context, Message, include_deleted=False))
        .order_by(func.md5(cast(Message.id, Text)))
        .limit(size)
    )


def select_neighbors(
    vector: NDArray[np.float32],
    *where: Condition,
    k: int,
    distance: Distance = "cosine",
    own_id: str | None = None,
    include_deleted: bool = False,
    zero: bool = False,
) -> Select[Any]:
    """The k nearest messages to a vector, the message `own_id` left out; exact.

    With `zero`, on request, how many messages have no distance, as all-zero ones under cosine; those come last.
    """
    split_conditions(where)
    others = () if own_id is None else (Message.id != own_id,)
    nearest = _nearest(
        cast(vector, VECTOR), (*where, *others), k=k, distance=distance, include_deleted=include_deleted
    ).subquery("nearest")
    rank = func.row_number().over(order_by=(nearest.c.distance, nearest.c.message_id))
    counted = (nearest.c.zero,) if zero else ()
    return _with_messages(nearest, rank.label("rank"), nearest.c.distance, *counted).order_by(rank)


def select_neighbors_of_many(
    vectors: Sequence[str] | None,
    *where: Condition,
    k: int,
    distance: Distance = "cosine",
    own_ids: Sequence[str | None],
    include_deleted: bool = False,
) -> Select[Any]:
    """The same, zero included, for each of many vectors in their text form; `query` counts them from 0.

    Without vectors, those of the messages `own_ids` are asked with, and never leave the database.
    """
    split_conditions(where)
    asked = _asked(vectors, own_ids)
    nearest = (
        _nearest(
            asked.c.vector,
            (*where, Message.id.is_distinct_from(asked.c.own_id)),
            k=k,
            distance=distance,
            include_deleted=include_deleted,
            asked=asked,
        )
        .correlate(asked)
        .lateral("nearest")
    )
    rank = func.row_number().over(partition_by=asked.c.place, order_by=(nearest.c.distance, nearest.c.message_id))
    query = (asked.c.place - 1).label("query")
    statement = select(query, rank.label("rank"), nearest.c.distance, nearest.c.zero, *message_columns())
    return (
        statement.select_from(asked)
        .join(nearest, true())
        .join(Message, Message.id == nearest.c.message_id)
        .order_by(asked.c.place, rank)
    )


def select_neighbors_by_index(
    vectors: Sequence[str] | None,
    *where: Condition,
    k: int,
    scanned: int,
    halfvec: bool,
    distance: Distance = "cosine",
    own_ids: Sequence[str | None],
    include_deleted: bool = False,
) -> Select[Any]:
    """The k nearest among the first `scanned` matching messages that an index gives, for each of many vectors.

    Columns as of `select_neighbors_of_many` without zero, and what tells whether more would have to be scanned:
    `place`, of the row in the order of the index; `found`, rows given by it; `following`, the distance of the
    next one in rank. The index is used where sorting is switched off (`set_search`).
    """
    split_conditions(where)
    asked = _asked(vectors, own_ids)
    measured = Message.embedding.op(OPERATORS[distance], return_type=Float)(asked.c.vector)
    half = HALFVEC(EMBEDDING_DIMENSIONS)
    order = cast(Message.embedding, half).op(OPERATORS[distance])(cast(asked.c.vector, half)) if halfvec else measured
    scan = (
        select(Message.id.label("message_id"), measured.label("distance"))
        .join(Context, Context.id == Message.context_id)
        .where(
            *live(Context, Message, include_deleted=include_deleted),
            *where,
            Message.id.is_distinct_from(asked.c.own_id),
        )
        .order_by(order)
        .limit(scanned)
        .correlate(asked)
        .lateral("scan")
    )
    given = select(*scan.c, func.row_number().over().label("place")).correlate(asked).lateral("given")
    window: dict[str, Any] = {"partition_by": asked.c.place}
    ranked = (
        select(
            (asked.c.place - 1).label("query"),
            func.row_number().over(order_by=(given.c.distance, given.c.message_id), **window).label("rank"),
            func.count().over(**window).label("found"),
            func.lead(given.c.distance)
            .over(order_by=(given.c.distance, given.c.message_id), **window)
            .label("following"),
            *given.c,
        )
        .select_from(asked)
        .join(given, true())
        .subquery("ranked")
    )
    own = (ranked.c.query, ranked.c.rank, ranked.c.distance, ranked.c.place, ranked.c.found, ranked.c.following)
    return _with_messages(ranked, *own).where(ranked.c.rank <= k).order_by(ranked.c.query, ranked.c.rank)


def set_search(ef_search: int) -> Select[Any]:
    """Settings, for this transaction only, with which an index answers and loses no rows."""
    settings = {
        # Of an index scan the planner leaves out that every other plan reads the vectors, which are out of line.
        "enable_sort": "off",
        "enable_indexscan": "on",
        "enable_nestloop": "on",
        "jit": "off",
        "ivfflat.probes": 32_768,  # dear, so that HNSW is taken where both are there
        "hnsw.ef_search": ef_search,
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": 2**31 - 1,
        # 1 GB, about ten million visited messages; a scan that stops there is completed exactly.
        "work_mem": "64MB",
        "hnsw.scan_mem_multiplier": 16,
    }
    return select(*(func.set_config(name, str(value), True) for name, value in settings.items()))


def _asked(vectors: Sequence[str] | None, own_ids: Sequence[str | None]) -> CTE:
    texts = [None] * len(own_ids) if vectors is None else list(vectors)
    given = (
        func.unnest(cast(texts, ARRAY(Text)), cast(list(own_ids), ARRAY(Uuid(as_uuid=False))))
        .table_valued("text", "own_id", with_ordinality="place", name="given")
        .render_derived()
    )
    vector: ColumnElement[Any] = cast(given.c.text, VECTOR)
    if vectors is None:
        stored = aliased(Message, name="stored")
        vector = select(stored.embedding).where(stored.id == given.c.own_id).scalar_subquery()
    # Materialized, or every vector would be read from its text again for every message.
    return select(vector.label("vector"), given.c.own_id, given.c.place).cte("asked").prefix_with("materialized")


def _nearest(
    vector: ColumnElement[Any],
    where: tuple[Condition, ...],
    *,
    k: int,
    distance: Distance,
    include_deleted: bool,
    asked: CTE | None = None,
) -> Select[Any]:
    # Adding zero keeps an index, which may leave rows out, from answering the order.
    apart = Message.embedding.op(OPERATORS[distance], return_type=Float)(vector) + literal(0.0)
    measured: FromClause = (
        select(Message.id.label("message_id"), apart.label("distance"))
        .join(Context, Context.id == Message.context_id)
        .where(Message.embedding.is_not(None), *live(Context, Message, include_deleted=include_deleted), *where)
        .offset(0)  # else every use of the distance would measure it again
        .correlate(asked)
        .lateral("measured")
    )
    zero = func.count().filter(measured.c.distance == NAN).over()
    return select(*measured.c, zero.label("zero")).order_by(measured.c.distance, measured.c.message_id).limit(k)


def _with_messages(nearest: FromClause, *columns: ColumnElement[Any]) -> Select[Any]:
    return select(*columns, *message_columns()).join_from(nearest, Message, Message.id == nearest.c.message_id)
