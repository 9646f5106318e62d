"""Engines whose connections are read-only unless asked, watched while they wait, and closed when idle."""

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError

import contextkit.parameters  # noqa: F401  # each engine copies what psycopg knows of types
from contextkit.connection.additions import note_listeners
from contextkit.connection.driver import (
    READ_ONLY,
    CommitLostError,
    again_while_full,
    explain,
    lost,
    state_of,
    unreachable,
)
from contextkit.connection.pool import IdleCloser, Pool
from contextkit.connection.silence import SilentError, WatchedConnection
from contextkit.connection.url import KNOWN_PARAMETERS, Secrets
from contextkit.errors import ContextkitError, ReadOnlyError
from contextkit.secret import Secret, without_history
from contextkit.server import EmbeddedServer

POOL_WAIT = 10.0
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


def settings_of(engine: Engine) -> Settings | None:
    """Give the settings of an engine from `connect`; None for any other engine."""
    if not isinstance(engine, Engine):
        raise TypeError(f"an engine is expected, as connect() gives one, not {type(engine).__name__}")
    return engine.get_execution_options().get("contextkit")


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
