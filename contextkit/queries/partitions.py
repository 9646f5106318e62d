"""Where context ids part the rows into about equal shares, each context whole in one of them."""

from typing import Any

from sqlalchemy import BigInteger, Select, Subquery, Text, cast, func, select

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, live, split_conditions
from contextkit.queries.forks import select_families


def select_message_partitions(count: int, *where: Condition, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """first_id and rows of at most so many partitions of the messages that `select_messages` gives, by id."""
    split_conditions(where)
    counted = (
        select(Message.context_id, func.count().label("rows"))
        .join(Context, Context.id == Message.context_id)
        .where(*live(Context, Message, include_deleted=include_deleted), *where)
        .group_by(Message.context_id)
    )
    return _at_quantiles(counted.subquery("counted"), count)


def select_history_partitions(count: int, *where: Condition, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """first_id and rows of at most so many partitions of the histories of contexts, by id; rows are the most."""
    families = select_families(*where, include_deleted=include_deleted).order_by(None).subquery("families")
    counted = select(families.c.context_id, families.c.most_messages.label("rows"))
    return _at_quantiles(counted.subquery("counted"), count)


def _at_quantiles(counted: Subquery, count: int) -> Select[*tuple[Any, ...]]:
    rows = cast(counted.c.rows, BigInteger)
    total = func.nullif(cast(func.sum(rows).over(), BigInteger), 0)
    # Where the middle of a context's rows lies, in halves of a row; at the very end it would be one too many.
    middle = 2 * cast(func.sum(rows).over(order_by=counted.c.context_id), BigInteger) - rows
    place = func.coalesce(func.least(middle * count // (2 * total), count - 1), 0)
    placed = select(counted.c.context_id, rows.label("rows"), place.label("place")).subquery("placed")
    # As text in the order of bytes, which is that of uuid: only PostgreSQL 18 has a least one of those.
    first = func.min(cast(placed.c.context_id, Text).collate("C"))
    columns: tuple[Any, ...] = (first.label("first_id"), cast(func.sum(placed.c.rows), BigInteger).label("rows"))
    return select(*columns).group_by(placed.c.place).order_by(placed.c.place)
