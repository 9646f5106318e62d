"""`info`: what an engine is connected to, at one look."""

import statistics
import time
from importlib.metadata import version

import pandas as pd
from sqlalchemy import URL, Connection, Engine, func, inspect, select, text

from contextkit.connection import is_pooled, settings_of, translated_errors
from contextkit.migrate import schema_status
from contextkit.models import Base, Context, Message

ROUND_TRIPS = 5
ABOUT = text(
    "select current_setting('server_version') as postgresql, "
    "(select extversion from pg_extension where extname = 'vector') as pgvector, "
    "current_database() as database, current_user as user, "
    "current_setting('transaction_read_only') = 'on' as read_only"
)


def info(engine: Engine) -> pd.Series:
    """What the engine is connected to, as a Series; never a password.

    Index: contextkit, postgresql and pgvector (versions; pgvector is None before `upgrade`), host, database,
    user, embedded, pooled (None for hosts that do not tell), read_only, latency_ms (median round trip of
    `select 1`), schema (the state of `schema_status`), revision, contexts and messages (stored rows, deleted
    ones included; None for a missing table).

    Raises:
        DatabaseUnavailableError: nothing answers.

    >>> info(engine)[["schema", "contexts", "messages"]]
    schema      current
    contexts         55
    messages        369
    dtype: object
    """
    settings = settings_of(engine)
    status = schema_status(engine)
    with translated_errors(), engine.connect() as connection:
        about = connection.execute(ABOUT).one()
        values = {
            "contextkit": version("contextkit"),
            "postgresql": about.postgresql.split()[0],
            "pgvector": about.pgvector,
            "host": _host(engine.url),
            "database": about.database,
            "user": about.user,
            "embedded": settings is not None and settings.server is not None,
            "pooled": is_pooled(engine.url),
            "read_only": about.read_only,
            "latency_ms": _latency(connection),
            "schema": status.state,
            "revision": status.revision,
            "contexts": _rows(connection, Context),
            "messages": _rows(connection, Message),
        }
    return pd.Series(values, dtype=object)


def _host(url: URL) -> str:
    host = url.host or url.query.get("host") or "local"
    return host if isinstance(host, str) else ", ".join(host)


def _latency(connection: Connection) -> float:
    times = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        connection.execute(text("select 1"))
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1000, 2)


def _rows(connection: Connection, model: type[Base]) -> int | None:
    if not inspect(connection).has_table(model.__tablename__):
        return None
    return connection.scalar(select(func.count()).select_from(model))
