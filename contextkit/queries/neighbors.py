"""Nearest stored messages to vectors, or to messages."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    CTE,
    REAL,
    ColumnElement,
    Float,
    FromClause,
    LargeBinary,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.orm import aliased

from contextkit.binary import RealsType, VectorType
from contextkit.models import EMBEDDING_DIMENSIONS, Context, Message
from contextkit.queries.columns import Condition, live, message_columns, split_conditions

Distance = Literal["cosine", "l2", "inner", "l1"]
NAN = literal_column("float8 'NaN'", Float)
OPERATORS: dict[Distance, str] = {"cosine": "<=>", "l2": "<->", "inner": "<#>", "l1": "<+>"}


def select_embeddings(ids: Sequence[str], *, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """message_id of the messages of these ids, and vector: their embeddings in binary."""
    wanted = func.unnest(cast(list(ids), ARRAY(Uuid(as_uuid=False)))).table_valued("id", name="wanted")
    columns: tuple[ColumnElement[Any], ...] = (
        Message.id.label("message_id"),
        func.vector_send(Message.embedding, type_=LargeBinary).label("vector"),
    )
    return (
        select(*columns)
        .join(Context, Context.id == Message.context_id)
        .where(
            Message.id.in_(select(wanted.render_derived().c.id)),
            *live(Context, Message, include_deleted=include_deleted),
        )
    )


def select_matching(
    *where: Condition, limit: int | None = None, include_deleted: bool = False
) -> Select[*tuple[Any, ...]]:
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


def select_sample(size: int) -> Select[*tuple[Any, ...]]:
    """message_id of so many embedded, live messages: always the same ones while these stay, in no order of theirs."""
    return (
        select(Message.id.label("message_id"))
        .join(Context, Context.id == Message.context_id)
        .where(Message.embedding.is_not(None), *live(Context, Message, include_deleted=False))
        .order_by(func.md5(cast(Message.id, Text)))
        .limit(size)
    )


def select_neighbors(
    vector: NDArray[np.float32] | None,
    *where: Condition,
    k: int,
    distance: Distance = "cosine",
    own_id: str | None = None,
    include_deleted: bool = False,
    counted: bool = False,
) -> Select[*tuple[Any, ...]]:
    """The k nearest messages to a vector, the message `own_id` left out; exact.

    Without a vector that of the message `own_id` is asked with, and never leaves the database.

    Counted, on request: `zero`, how many messages have no distance, as all-zero ones under cosine, and
    `without_embedding`. Both kinds come last then.
    """
    split_conditions(where)
    others = () if own_id is None else (Message.id != own_id,)
    asked = _stored(own_id) if vector is None else cast(vector, VectorType)
    embedded = () if counted else (Message.embedding.is_not(None),)
    nearest = _nearest(
        asked, (*where, *others, *embedded), k=k, distance=distance, include_deleted=include_deleted
    ).subquery("nearest")
    rank = func.row_number().over(order_by=(nearest.c.distance, nearest.c.message_id))
    counts = (nearest.c.zero, nearest.c.without_embedding) if counted else ()
    return _with_messages(nearest, rank.label("rank"), nearest.c.distance, *counts).order_by(rank)


def select_neighbors_of_many(
    vectors: Sequence[NDArray[np.float32]],
    *where: Condition,
    k: int,
    distance: Distance = "cosine",
    own_ids: Sequence[str | None],
    include_deleted: bool = False,
) -> Select[*tuple[Any, ...]]:
    """The same, zero included, for each of some vectors; `query` counts them from 0.

    One scan, shared by parallel workers, measures the distances to all of them: what takes long is to read a
    vector, which is out of line, and not to compare it. They are kept until the last query has its k.
    """
    split_conditions(where)
    measured = _measured(vectors, where, distance=distance, include_deleted=include_deleted)
    asked = (
        func.unnest(cast(list(own_ids), ARRAY(Uuid(as_uuid=False))))
        .table_valued("own_id", with_ordinality="place", name="asked")
        .render_derived()
    )
    apart = measured.c.distances[asked.c.place].label("distance")
    nearest = (
        select(measured.c.message_id, apart)
        .where(measured.c.message_id.is_distinct_from(asked.c.own_id))
        .order_by(apart, measured.c.message_id)
        .limit(k)
        .correlate(asked)
        .lateral("nearest")
    )
    # The same for every query: only messages that are all zero have no distance.
    zero = select(func.count()).where(measured.c.distances[1] == NAN).scalar_subquery()
    rank = func.row_number().over(partition_by=asked.c.place, order_by=(nearest.c.distance, nearest.c.message_id))
    columns = ((asked.c.place - 1).label("query"), rank.label("rank"), nearest.c.distance, zero.label("zero"))
    return (
        select(*columns, *message_columns())
        .select_from(asked)
        .join(nearest, true())
        .join(Message, Message.id == nearest.c.message_id)
        .order_by(asked.c.place, rank)
    )


def select_neighbors_by_index(
    *where: Condition,
    k: int,
    scanned: int,
    halfvec: bool,
    distance: Distance = "cosine",
    include_deleted: bool = False,
) -> Select[*tuple[Any, ...]]:
    """The k nearest among the first `scanned` matching messages that an index gives, for each of many vectors.

    The parameter `vectors` is a matrix of them, or null for the vectors of the messages in `own_ids`.

    Columns as of `select_neighbors_of_many` without zero, and what tells whether more would have to be scanned:
    `place`, of the row in the order of the index; `found`, rows given by it; `following`, the distance of the
    next one in rank. The index is used where sorting is switched off (`set_search`).
    """
    split_conditions(where)
    asked = _asked()
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


neighbors_template = lru_cache(select_neighbors_by_index)
"""The same, kept: building it takes longer than running it. Not with conditions, which would be kept, too."""


def _asked() -> CTE:
    own_ids = bindparam("own_ids", type_=ARRAY(Uuid(as_uuid=False)))
    given = func.unnest(own_ids).table_valued("own_id", with_ordinality="place", name="given").render_derived()
    numbers = select(cast(bindparam("vectors", type_=RealsType()), RealsType())).scalar_subquery()
    vectors: Any = type_coerce(numbers, ARRAY(REAL))
    end = given.c.place * EMBEDDING_DIMENSIONS
    vector = func.coalesce(cast(vectors[end - (EMBEDDING_DIMENSIONS - 1) : end], VectorType), _stored(given.c.own_id))
    # Materialized, or every vector would be read again for every message.
    return select(vector.label("vector"), given.c.own_id, given.c.place).cte("asked").prefix_with("materialized")


def _stored(message_id: Any) -> ColumnElement[Any]:
    stored = aliased(Message, name="stored")
    return select(stored.embedding).where(stored.id == message_id).scalar_subquery()


def _nearest(
    vector: ColumnElement[Any], where: tuple[Condition, ...], *, k: int, distance: Distance, include_deleted: bool
) -> Select[*tuple[Any, ...]]:
    # Adding zero keeps an index, which may leave rows out, from answering the order.
    apart = Message.embedding.op(OPERATORS[distance], return_type=Float)(vector) + literal(0.0)
    measured = (
        _matching(apart.label("distance"), where=where, include_deleted=include_deleted)
        .offset(0)  # else every use of the distance would measure it again
        .subquery("measured")
    )
    counts = (
        func.count().filter(measured.c.distance == NAN).over().label("zero"),
        func.count().filter(measured.c.distance.is_(None)).over().label("without_embedding"),
    )
    return select(*measured.c, *counts).order_by(measured.c.distance, measured.c.message_id).limit(k)


def _measured(
    vectors: Sequence[NDArray[np.float32]],
    where: tuple[Condition, ...],
    *,
    distance: Distance,
    include_deleted: bool,
) -> CTE:
    """message_id and the distances to each of the vectors, as an array."""
    # Adding zeros gives a vector in memory; a stored one would be read from out of line for every comparison.
    in_memory = Message.embedding.op("+")(cast(np.zeros(EMBEDDING_DIMENSIONS, np.float32), VectorType)).label("vector")
    embedded = (*where, Message.embedding.is_not(None))
    read = _matching(in_memory, where=embedded, include_deleted=include_deleted).offset(0).subquery("read")
    operator = read.c.vector.op(OPERATORS[distance], return_type=Float)
    distances = array([operator(cast(vector, VectorType)) for vector in vectors], type_=Float)
    return select(read.c.message_id, distances.label("distances")).cte("measured").prefix_with("materialized")


def _matching(
    column: ColumnElement[Any], *, where: tuple[Condition, ...], include_deleted: bool
) -> Select[*tuple[Any, ...]]:
    return (
        select(Message.id.label("message_id"), column)
        .join(Context, Context.id == Message.context_id)
        .where(*live(Context, Message, include_deleted=include_deleted), *where)
    )


def _with_messages(nearest: FromClause, *columns: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    return select(*columns, *message_columns()).join_from(nearest, Message, Message.id == nearest.c.message_id)
