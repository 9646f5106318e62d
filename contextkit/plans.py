"""What the server's planner says of a query that does not run."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.pq import Format
from sqlalchemy import Connection, Engine

from contextkit.queries import select_knowledge

UNKNOWN_ROWS = 100_000
"""What stands for a number of rows that the planner cannot know; many."""

_informed: WeakSet[Engine] = WeakSet()


@dataclass(frozen=True)
class Expected:
    """What a query is expected to give."""

    rows: int
    row_bytes: int


UNKNOWN = Expected(UNKNOWN_ROWS, 0)


def expected(connection: Connection, sql: str) -> Expected:
    """What the planner expects of a query, many rows if it has no statistics of contexts and messages yet.

    Right after an import, until the server analyzes the tables by itself, it expects one row of every condition. What
    is stored out of line, as most vectors are, it takes for the few bytes that say where.
    """
    plan = plan_of(connection, sql)
    rows = int(plan["Plan Rows"])
    return Expected(max(rows, UNKNOWN_ROWS) if _is_ignorant(connection) else rows, int(plan["Plan Width"]))


def _is_ignorant(connection: Connection) -> bool:
    if connection.engine in _informed:
        return False
    analyzed, many = connection.execute(select_knowledge()).one()
    if analyzed:
        _informed.add(connection.engine)
    return many and not analyzed


def plan_of(connection: Connection, sql: str) -> dict[str, Any]:
    """The plan that the server has for a query, which does not run."""
    # On the driver's own cursor: SQLAlchemy's logging would write the literals down.
    cursor = connection.connection.cursor()
    if isinstance(cursor, psycopg.Cursor):  # so that the server takes no second statement, which would run
        cursor.format = Format.BINARY
    try:
        cursor.execute(f"explain (format json) {sql}")
    except Exception as error:
        # As SQLAlchemy does with its own: what cannot be given back to the pool would stay out for ever.
        if connection.dialect.is_disconnect(error, connection.connection, cursor):  # type: ignore[arg-type]
            connection.invalidate(error)
        raise
    ((plan,),) = cursor.fetchone()  # type: ignore[misc]
    cursor.close()
    root: dict[str, Any] = plan["Plan"]
    return root
