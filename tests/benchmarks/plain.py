"""The statements that contextkit sends, run by psycopg alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, event

Statement = tuple[str, Any]


def sent(engine: Engine, call: Callable[[], object]) -> list[Statement]:
    """The statements with their parameters that a call sends, as the driver gets them."""
    statements: list[Statement] = []

    def note(_connection: Any, _cursor: Any, sql: str, parameters: Any, *_: object) -> None:
        statements.append((sql, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return statements


@contextmanager
def opened(url: str) -> Iterator[psycopg.Connection]:
    """A connection in one transaction, for reading.

    Nothing is prepared, as on contextkit's: both plan every time, and both could run through a pooler.
    """
    with psycopg.connect(url, prepare_threshold=None) as connection:
        yield connection
        connection.rollback()
