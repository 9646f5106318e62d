"""`connect`: one engine, read-only unless asked, that holds nothing while the notebook is idle."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError

import contextkit.parameters  # noqa: F401  # each engine copies what psycopg knows of types
from contextkit.connection.additions import is_added_to, note_listeners
from contextkit.connection.driver import (
    ONLY_READS,
    READ_ONLY,
    CommitLostError,
    again_while_full,
    explain,
    lost,
    state_of,
    translated_errors,
    unreachable,
)
from contextkit.connection.pool import IdleCloser, Pool
from contextkit.connection.silence import Partner, Silence, SilentError, WatchedConnection
from contextkit.connection.url import (
    KNOWN_PARAMETERS,
    Secrets,
    check_pooled,
    found_url,
    is_pooled,
    parsed,
    prepared,
    sealed,
)
from contextkit.counts import positive
from contextkit.errors import ContextkitError, ReadOnlyError
from contextkit.secret import Secret, without_history
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
]

POOL_WAIT = 10.0
MOST_SECONDS = 2**31 // 1000
"""PostgreSQL counts milliseconds in 32 bits."""
FRESH = 1.0
"""Seconds for which a connection that was given back, and has heard nothing since, counts as alive unasked."""


@dataclass(frozen=True)
class Settings:
    """How `connect` opened an engine; travels with it as an execution option."""

    write: bool
    pool_size: int
    idle_timeout: float
    connect_timeout: float
    statement_timeout: float | None
    server: EmbeddedServer | None = field(default=None, repr=False)
    secrets: Secrets = field(default=(), repr=False)

    @property
    def limit_statements(self) -> str | None:
        """The SQL that limits the statements of a transaction; nothing outlives it, as a pooler demands."""
        if self.statement_timeout is None:
            return None
        return f"set local statement_timeout = {math.ceil(self.statement_timeout * 1000)}"


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
        pool_size: most connections at once; a further one is waited for, 10 s.
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


def settings_of(engine: Engine) -> Settings | None:
    """Give the settings of an engine from `connect`; None for any other engine."""
    if not isinstance(engine, Engine):
        raise TypeError(f"an engine is expected, as connect() gives one, not {type(engine).__name__}")
    return engine.get_execution_options().get("contextkit")


def reads_in_bulk(engine: Engine) -> bool:
    """Tell whether connections opened by the URL alone see what those of the engine's pool see."""
    return settings_of(engine) is not None and not is_added_to(engine)


def watch_of(connection: Connection) -> tuple[Silence, Partner] | None:
    """Give what to watch other connections to its server with; None where nothing tells whether one is lost."""
    driver = connection.connection.driver_connection
    return driver.watched() if isinstance(driver, WatchedConnection) else None


def libpq_uri(engine: Engine) -> Secret:
    """Give the URI, password included, that libpq opens the same database with."""
    settings = settings_of(engine)
    if settings is None:
        raise ValueError("the engine was not opened by contextkit.connect()")
    given = engine.dialect.create_connect_args(engine.url)[1]
    parameters = {key: value for key, value in given.items() if key in KNOWN_PARAMETERS}
    parameters |= _libpq_defaults(engine.url, settings)
    # All as parameters and all percent-encoded: libpq reads neither a space nor a plus for one.
    return Secret(f"postgresql:///?{urlencode(parameters, quote_via=quote)}")


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
        if not isinstance(value, Real) or not 0 < value <= MOST_SECONDS:
            raise ValueError(f"{name} is a positive number of seconds, at most {MOST_SECONDS:,}, not {value!r:.40}")


def _libpq_defaults(url: URL, settings: Settings) -> dict[str, Any]:
    seconds = math.ceil(settings.connect_timeout)
    defaults = {
        "connect_timeout": seconds,
        "fallback_application_name": "contextkit",
        # A network that is gone ends what waits in libpq itself, where nobody can ask who answers.
        "keepalives_idle": seconds,
        "keepalives_interval": seconds,
        "tcp_user_timeout": 1000 * seconds,
    }
    secrets = dict(settings.secrets)
    if url.password is not None:
        secrets["password"] = Secret(url.password)
    given = {key: value for key, value in defaults.items() if key not in url.query} | secrets
    # Whatever the URL, the role or the database prefer: in bulk SQL is sent as UTF-8, which in another encoding
    # could end a literal; and of SQL_ASCII psycopg gives bytes.
    return given | {"client_encoding": "UTF8"}


def engine_at(url: URL, settings: Settings) -> Engine:
    """Engine on a URL of another engine's, with settings like its."""
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"prepare_threshold": None} | _libpq_defaults(url, settings),
        execution_options={"contextkit": settings},
        hide_parameters=True,
        max_overflow=0,
        pool_size=settings.pool_size,
        pool_timeout=POOL_WAIT,
        pool_use_lifo=True,
        poolclass=Pool,
        use_native_hstore=False,
    )
    _listen(engine, settings)
    note_listeners(engine)
    return engine


def _listen(engine: Engine, settings: Settings) -> None:
    idle = IdleCloser(engine, settings.idle_timeout)
    event.listen(engine, "checkin", idle.given_back)
    event.listen(engine, "engine_disposed", idle.stop)
    event.listen(engine, "handle_error", _explain_on_engine)

    def open_connection(*args: Any, **params: Any) -> WatchedConnection:
        try:
            opened = _opened(engine.url, settings.server, args, params)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed = error
        else:
            seconds = float(params["connect_timeout"])  # of which libpq takes 0 and less for endless
            opened.watch(seconds if seconds > 0 else settings.connect_timeout, settings.statement_timeout, params)
            return opened
        raise without_history(failed)

    # Not by a listener to do_connect: those of users would not be asked any more.
    engine.dialect.connect = open_connection  # type: ignore[assignment]

    @event.listens_for(engine, "checkin")
    def note_time(_connection: Any, record: Any) -> None:
        record.info["given_back"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def start_afresh(connection: Any, record: Any, _fairy: Any) -> None:
        # In place of SQLAlchemy's own ping, which waits for ever, and twice for a server that is gone.
        since = record.info.get("given_back")  # None of one that was opened just now
        is_ours = isinstance(connection, WatchedConnection)  # and not of a listener to do_connect
        if since is not None and is_ours and (time.monotonic() - since > FRESH or not connection.is_quiet()):
            _check_alive(connection)
        # Not at connect: SQLAlchemy resets an option by switching it off, and a raw connection keeps its own.
        connection.autocommit = False
        connection.read_only = None if settings.write else True

    if limit := settings.limit_statements:

        @event.listens_for(engine, "begin")
        def limit_statements(connection: Connection) -> None:
            connection.exec_driver_sql(limit)

    if not settings.write:
        event.listen(engine, "set_connection_execution_options", _refuse_unguarded)
        event.listen(engine, "set_engine_execution_options", _refuse_unguarded)

    if settings.server is not None:
        server = settings.server

        @event.listens_for(engine, "engine_disposed")
        def leave_server(_engine: Engine) -> None:
            server.leave()


def _opened(url: URL, server: EmbeddedServer | None, args: Any, params: Any) -> WatchedConnection:
    open_ = partial(WatchedConnection.connect, *args, **params)
    if server is not None and not server.held:
        server.join()
    try:
        return again_while_full(open_)
    except psycopg.Error as error:
        if server is None:
            raise unreachable(url, error) from None
    server.join()
    try:
        return again_while_full(open_)
    except psycopg.Error as error:
        raise unreachable(url, error) from None


def _check_alive(connection: WatchedConnection) -> None:
    try:
        if connection.answers():
            return
    except SilentError as error:
        raise lost(error) from None
    raise InvalidatePoolError  # the pool connects anew


def _explain_on_engine(context: ExceptionContext) -> None:
    """Translate a refused write and a lost connection; what else goes wrong on an engine is its user's."""
    error = context.original_exception
    if isinstance(error, ContextkitError) or not isinstance(error, Exception):
        return  # the last is a KeyboardInterrupt: SQLAlchemy gives up the connection, and that is all
    if context.is_disconnect or isinstance(error, CommitLostError):
        raise lost(error)
    if state_of(error) == "25006":
        settings = context.engine and settings_of(context.engine)
        raise ReadOnlyError(READ_ONLY) if settings and not settings.write else explain(error)


def _refuse_unguarded(_target: Connection | Engine, options: dict[str, Any]) -> None:
    level = str(options.get("isolation_level", "")).upper()
    if level == "AUTOCOMMIT" or not options.get("postgresql_readonly", True):
        raise ReadOnlyError(READ_ONLY)
