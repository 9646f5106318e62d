"""`connect`: one engine, read-only unless asked, that holds nothing while the notebook is idle."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real

from sqlalchemy import URL, Connection, Engine

from contextkit.connection.additions import is_added_to
from contextkit.connection.driver import (
    ONLY_READS,
    READ_ONLY,
    again_while_full,
    explain,
    translated_errors,
    unreachable,
)
from contextkit.connection.engines import Settings, engine_at, libpq_uri, settings_of
from contextkit.connection.silence import Partner, Silence, WatchedConnection
from contextkit.connection.url import check_pooled, found_url, is_pooled, parsed, prepared, sealed
from contextkit.counts import positive
from contextkit.errors import ReadOnlyError
from contextkit.secret import Secret
from contextkit.server import EmbeddedServer

__all__ = [
    "ONLY_READS",
    "READ_ONLY",
    "Settings",
    "again_while_full",
    "check_writable",
    "connect",
    "direct_engine",
    "engine_at",
    "explain",
    "found_url",
    "is_pooled",
    "libpq_uri",
    "reads_in_bulk",
    "separate_engine",
    "settings_of",
    "translated_errors",
    "unreachable",
    "watch_of",
    "worker_settings",
]

MOST_SECONDS = 2**31 // 1000
"""PostgreSQL counts milliseconds in 32 bits."""


def connect(
    url: str | URL | None = None,
    *,
    write: bool = False,
    require_pooled: bool = False,
    pool_size: int = 3,
    idle_timeout: float = 5.0,
    connect_timeout: float = 10.0,
    statement_timeout: float | None = None,
) -> Engine:
    """Engine on a database of conversations, read-only unless `write` is set.

    The database is `url`, else DATABASE_URL of the environment, else DATABASE_URL of the nearest `.env` file
    from the working directory upwards, else (or where DATABASE_URL is empty) an embedded PostgreSQL that starts
    now and stops with its last user. Nothing is sent to a database with a URL before the engine is first used.

    Reading is enforced by the server, transaction by transaction: every function here, `engine.connect()`,
    `pandas.read_sql` and `DataFrame.to_sql` included. It guards against accidents. It does not stop who sends
    `set transaction read write`, sets `autocommit` on a raw driver connection, or calls a function of the
    database that reaches outside it; against intent, connect as a role that has SELECT only.

    Remote hosts are asked for an encrypted connection unless the URL or PGSSLMODE says otherwise.

    A network that is gone is noticed: a server that says nothing while a statement runs is asked on a new connection
    whether it still answers, and one that does not is unavailable after `connect_timeout`. One that answers is asked
    what it does: a statement that it works at may take as long as `statement_timeout` allows, and one for which it
    waits in turn is given up as something was lost on the way, after twice `connect_timeout` and a few seconds, in
    which TCP would have sent it again. Behind a pooler that cannot be asked, nor without a free connection: there only
    `statement_timeout` ends such a wait.

    Where a connection is lost nothing is written, unless a commit was waited for: then the error says that this is
    unknown. Where a read of many rows is given up, its connections and the threads that wait for them stay until the
    server or the operating system ends the connections. `engine.dispose()` does not; the end of the program does.

    Listeners and execution options that are set on the engine, such as a search_path, a role, a password that changes
    (`do_connect`) or a schema_translate_map, hold for every read here: all then go over the pool, and `connections` has
    no effect. What asks the catalog, for indexes or in `schema_status` and `check_df`, goes by the search_path alone.

    Args:
        url: postgres://, postgresql:// or postgresql+psycopg://.
        write: allow writing.
        require_pooled: refuse a Neon host that is not its pooled one, instead of warning. Always so on Vercel.
            Other providers' hosts do not tell whether they are pooled, and pass.
        pool_size: most connections at once; a further one is waited for in turn, 10 s.
        idle_timeout: seconds after the last connection was given back until all are closed.
        connect_timeout: seconds to wait for a connection, at least 2, and for a server that has fallen silent;
            `connect_timeout` in the URL comes first.
        statement_timeout: seconds after which the server cancels a statement; none by default. `connect_timeout`
            later it is waited for no more. Waiting for notifications is not limited, nor are statements in AUTOCOMMIT
            or on a raw driver connection.

    Raises:
        ValueError: the URL cannot be read or is not PostgreSQL's, or a number is out of range.
        DatabaseUnavailableError: the embedded server will not start.
    """
    url = found_url() if url is None else sealed(url)  # from here on no traceback's locals show it
    _check_numbers(pool_size, idle_timeout, connect_timeout, statement_timeout)
    server = None if url else EmbeddedServer()
    if server is not None:
        server.join()
        url = Secret(server.url)
    target, secrets = prepared(parsed(url))
    check_pooled(target, required=require_pooled or bool(os.environ.get("VERCEL")))
    settings = Settings(write, pool_size, idle_timeout, connect_timeout, statement_timeout, server, secrets)
    return engine_at(target, settings)


def reads_in_bulk(engine: Engine) -> bool:
    """Tell whether connections opened by the URL alone see what those of the engine's pool see."""
    return settings_of(engine) is not None and not is_added_to(engine)


def worker_settings(engine: Engine) -> Settings:
    """Give the settings with which another process, that has the URL and nothing else, reads what this engine does.

    Raises:
        ValueError: the engine is not from `connect`, or has listeners or execution options of its user's.
    """
    settings = settings_of(engine)
    if settings is None:
        raise ValueError("workers need to open the database, too: give an engine from connect()")
    if not reads_in_bulk(engine):
        raise ValueError(
            "the engine's listeners and execution options do not travel to workers, which would read other rows; "
            "give an engine from connect() without any, and set a role or search_path by `options` in its URL"
        )
    return replace(settings, write=False, pool_size=1, server=None)


def watch_of(connection: Connection) -> tuple[Silence, Partner] | None:
    """Give what to watch other connections to its server with; None where nothing tells whether one is lost."""
    driver = connection.connection.driver_connection
    return driver.watched() if isinstance(driver, WatchedConnection) else None


def check_writable(engine: Engine) -> None:
    """Raise a ReadOnlyError if the engine was opened for reading."""
    settings = settings_of(engine)
    if settings is not None and not settings.write:
        raise ReadOnlyError(READ_ONLY)


@contextmanager
def direct_engine(engine: Engine) -> Iterator[Engine]:
    """Engine past Neon's pooler, for what a pooler cannot carry; elsewhere the same engine."""
    if settings_of(engine) is None or not is_pooled(engine.url):
        yield engine
        return
    with separate_engine(engine, pool_size=1) as direct:
        yield direct


@contextmanager
def separate_engine(engine: Engine, *, pool_size: int) -> Iterator[Engine]:
    """Engine with connections of its own, past Neon's pooler; of a foreign engine the same one."""
    settings = settings_of(engine)
    if settings is None:
        yield engine
        return
    # Without the embedded server: the first engine holds it, and disposing of this one must not let it go.
    separate = engine_at(_direct_url(engine.url), replace(settings, pool_size=pool_size, server=None))
    try:
        yield separate
    finally:
        separate.dispose()


def _direct_url(url: URL) -> URL:
    if not is_pooled(url):
        return url
    endpoint, domain = (url.host or "").lower().split(".", 1)
    return url.set(host=f"{endpoint.removesuffix('-pooler')}.{domain}")


def _check_numbers(
    pool_size: int, idle_timeout: float, connect_timeout: float, statement_timeout: float | None
) -> None:
    positive("pool_size", pool_size)
    times = {"idle_timeout": idle_timeout, "connect_timeout": connect_timeout}
    if statement_timeout is not None:
        times["statement_timeout"] = statement_timeout
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= MOST_SECONDS:
            raise ValueError(f"{name} is a positive number of seconds, at most {MOST_SECONDS:,}, not {value!r:.40}")
