"""Nearest stored messages to vectors, or to messages."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Float,
    FromClause,
    Select,
    Text,
    Uuid,
    cast,
    func,
    literal,
    select,
    true,
)

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, live, message_columns, split_conditions

Distance = Literal["cosine", "l2", "inner", "l1"]
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


def select_neighbors(
    vector: NDArray[np.float32],
    *where: Condition,
    k: int,
    distance: Distance = "cosine",
    own_id: str | None = None,
    include_deleted: bool = False,
) -> Select[Any]:
    """The k nearest messages to a vector, the message `own_id` left out; exact."""
    split_conditions(where)
    others = () if own_id is None else (Message.id != own_id,)
    nearest = _nearest(
        cast(vector, VECTOR), (*where, *others), k=k, distance=distance, include_deleted=include_deleted
    ).subquery("nearest")
    return _ranked(nearest, (), ())


def select_neighbors_of_many(
    vectors: Sequence[str],
    *where: Condition,
    k: int,
    distance: Distance = "cosine",
    own_ids: Sequence[str | None],
    include_deleted: bool = False,
) -> Select[Any]:
    """The same for each of many vectors in their text form, in one statement; `query` counts them from 0."""
    split_conditions(where)
    given = (
        func.unnest(cast(list(vectors), ARRAY(Text)), cast(list(own_ids), ARRAY(Uuid(as_uuid=False))))
        .table_valued("text", "own_id", with_ordinality="place", name="given")
        .render_derived()
    )
    # Materialized, or every vector would be read from its text again for every message.
    asked = (
        select(cast(given.c.text, VECTOR).label("vector"), given.c.own_id, given.c.place)
        .cte("asked")
        .prefix_with("materialized")
    )
    not_itself = Message.id.is_distinct_from(asked.c.own_id)
    nearest = _nearest(
        asked.c.vector,
        (*where, not_itself),
        k=k,
        distance=distance,
        include_deleted=include_deleted,
    ).lateral("nearest")
    query = (asked.c.place - 1).label("query")
    return _ranked(nearest, (query,), (asked.c.place,)).select_from(asked).join(nearest, true())


def _nearest(
    vector: ColumnElement[Any],
    where: tuple[Condition, ...],
    *,
    k: int,
    distance: Distance,
    include_deleted: bool,
) -> Select[Any]:
    # Adding zero keeps an index, which may leave rows out, from answering the order.
    measured = Message.embedding.op(OPERATORS[distance], return_type=Float)(vector)
    apart = (measured + literal(0.0)).label("distance")
    return (
        select(apart, *message_columns())
        .join(Context, Context.id == Message.context_id)
        .where(Message.embedding.is_not(None), *live(Context, Message, include_deleted=include_deleted), *where)
        .order_by(apart, Message.id)
        .limit(k)
    )


def _ranked(
    nearest: FromClause, columns: tuple[ColumnElement[Any], ...], order: tuple[ColumnElement[Any], ...]
) -> Select[Any]:
    nearness = (nearest.c.distance, nearest.c.message_id)
    rank = func.row_number().over(partition_by=order or None, order_by=nearness)
    return select(*columns, rank.label("rank"), *nearest.c).order_by(*order, rank)
