"""`connect`: one engine, read-only unless asked, that holds nothing while the notebook is idle."""

import math
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode
from weakref import WeakSet

import psycopg
from dotenv import dotenv_values, find_dotenv
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, CompileError, DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from contextkit.errors import (
    ContextkitError,
    ContextkitWarning,
    DatabaseUnavailableError,
    DimensionError,
    ReadOnlyError,
    SchemaError,
)
from contextkit.server import EmbeddedServer

SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")
NODE_PARAMETERS = frozenset(
    [
        "connection_limit",
        "pgbouncer",
        "pool_timeout",
        "schema",
        "socket_timeout",
        "sslaccept",
        "statement_cache_size",
        "uselibpqcompat",
    ]
)
SECRETS = frozenset(["oauth_client_secret", "scram_client_key", "scram_server_key", "sslpassword"])
KNOWN_PARAMETERS = NODE_PARAMETERS | {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
POOL_WAIT = 10.0
READ_ONLY = "this engine was opened for reading; to write, open one with connect(write=True)"


@dataclass(frozen=True)
class Settings:
    """How `connect` opened an engine; travels with it as an execution option."""

    write: bool
    pool_size: int
    idle_timeout: float
    connect_timeout: float
    statement_timeout: float | None
    server: EmbeddedServer | None = field(default=None, repr=False)
    secrets: tuple[tuple[str, str], ...] = field(default=(), repr=False)

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

    Args:
        url: postgres://, postgresql:// or postgresql+psycopg://.
        write: allow writing.
        require_pooled: refuse a Neon host that is not its pooled one, instead of warning. Always so on Vercel.
            Other providers' hosts do not tell whether they are pooled, and pass.
        pool_size: most connections at once; a further one is waited for, 10 s.
        idle_timeout: seconds after the last connection was given back until all are closed.
        connect_timeout: seconds to wait for a connection; `connect_timeout` in the URL comes first.
        statement_timeout: seconds after which the server cancels a statement; none by default.

    Raises:
        ValueError: the URL cannot be read or is not PostgreSQL's, or a number is out of range.
        DatabaseUnavailableError: the embedded server will not start.
    """
    _check_numbers(pool_size, idle_timeout, connect_timeout, statement_timeout)
    given = _given_url(url)
    server = None if given else EmbeddedServer()
    if server is not None:
        server.join()
    target, secrets = _prepared(given or make_url(server.url))  # type: ignore[union-attr]
    _check_pooled(target, required=require_pooled or bool(os.environ.get("VERCEL")))
    settings = Settings(write, pool_size, idle_timeout, connect_timeout, statement_timeout, server, secrets)
    return _engine(target, settings)


def settings_of(engine: Engine) -> Settings | None:
    """Give the settings of an engine from `connect`; None for any other engine."""
    return engine.get_execution_options().get("contextkit")


def libpq_uri(engine: Engine) -> str:
    """Give the URI, password included, that libpq opens the same database with."""
    settings = settings_of(engine)
    if settings is None:
        raise ValueError("the engine was not opened by contextkit.connect()")
    given = engine.dialect.create_connect_args(engine.url)[1]
    parameters = {key: value for key, value in given.items() if key in KNOWN_PARAMETERS}
    parameters |= _libpq_defaults(engine.url, settings)
    # All as parameters and all percent-encoded: libpq reads neither a space nor a plus for one.
    return f"postgresql:///?{urlencode(parameters, quote_via=quote)}"


def is_pooled(url: URL) -> bool | None:
    """Tell whether a Neon host is the pooled one; None for hosts that do not tell."""
    host = (url.host or "").lower()
    if not host.endswith(".neon.tech"):
        return None
    return host.split(".")[0].endswith("-pooler")


@contextmanager
def direct_engine(engine: Engine) -> Iterator[Engine]:
    """Engine past Neon's pooler, for what a pooler cannot carry; elsewhere the same engine."""
    settings = settings_of(engine)
    if settings is None or not is_pooled(engine.url):
        yield engine
        return
    endpoint, domain = (engine.url.host or "").lower().split(".", 1)
    url = engine.url.set(host=f"{endpoint.removesuffix('-pooler')}.{domain}")
    direct = _engine(url, replace(settings, pool_size=1))
    try:
        yield direct
    finally:
        direct.dispose()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn errors of the drivers and of SQLAlchemy into ours, without the drivers' texts."""
    try:
        yield
    except ContextkitError as error:
        raise error.with_traceback(None) from None
    except PoolTimeoutError:
        raise DatabaseUnavailableError(
            f"all connections of this engine were in use for {POOL_WAIT:.0f} s; "
            "end what uses them, or open the engine with a larger pool_size"
        ) from None
    except DBAPIError as error:
        raise (_lost(error.orig) if error.connection_invalidated else explain(error.orig)) from None
    except (StatementError, CompileError) as error:
        cause = getattr(error, "orig", None) or error.__cause__
        if isinstance(cause, TypeError | ValueError):
            raise cause.with_traceback(None) from None
        raise
    except psycopg.Error as error:
        raise explain(error) from None


def explain(error: BaseException | None) -> ContextkitError | ValueError:
    """Give our error for a driver's, told by its SQLSTATE."""
    state = _state(error)
    if state is None:
        return _explain_client(error)
    if state[:2] == "08" or state in _LOST:
        return _lost(error)
    if state == "22000" and (lengths := re.findall(r"\d+", str(error))):
        return DimensionError(f"vectors of different lengths: {' and '.join(lengths[:2])} ({_named(state)})")
    kind, text = _EXPLANATIONS.get(state, (ContextkitError, "the database refused the statement"))
    return kind(f"{text} ({_named(state)})")


_LOST = ("25P03", "25P04", "53300", "57P01", "57P02", "57P03", "57P05")
_TABLES = "the tables contexts and messages are missing or older than this contextkit; run upgrade(engine)"
_EXPLANATIONS: dict[str, tuple[type[ContextkitError] | type[ValueError], str]] = {
    "22P02": (ValueError, "a value does not fit its column: an id that is no UUID, or a role the enum lacks"),
    "25006": (ReadOnlyError, READ_ONLY),
    "3F000": (SchemaError, _TABLES),
    "42501": (ContextkitError, "this role lacks a right for that; ask the database's owner to grant it"),
    "42703": (SchemaError, "a column is missing; schema_status(engine) lists the differences"),
    "42704": (SchemaError, "a type is missing, probably vector of pgvector; run upgrade(engine)"),
    "42P01": (SchemaError, _TABLES),
    "53100": (ContextkitError, "the server's disk is full; nothing was written"),
    "57014": (ContextkitError, "the statement was cancelled: it ran over statement_timeout, or was stopped"),
}


def _state(error: BaseException | None) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)  # psycopg2, of foreign engines


def _explain_client(error: BaseException | None) -> ContextkitError | ValueError:
    """Explain what the server did not say itself; the drivers share names of errors, not classes."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DataError", "ProgrammingError"}:
        return ValueError(
            "a value cannot be sent or read: its type has no counterpart in PostgreSQL, or it holds a NUL "
            "character, or it is a time beyond the year 9999"
        )
    if error is None or names & {"OperationalError", "InterfaceError"}:
        return _lost(error)
    return ContextkitError("the driver refused the statement")


def _named(state: str) -> str:
    try:
        name = psycopg.errors.lookup(state).__name__
    except KeyError:
        return f"SQLSTATE {state}"
    return f"SQLSTATE {state}, {name}"


def _lost(error: BaseException | None) -> DatabaseUnavailableError:
    state = _state(error)
    if state == "53300":
        return DatabaseUnavailableError(
            f"the server has no connection left ({_named(state)}); close others, or use a pooled host"
        )
    suffix = f" ({_named(state)})" if state else ""
    return DatabaseUnavailableError(f"the connection was lost{suffix}; run it again")


def _check_numbers(
    pool_size: int, idle_timeout: float, connect_timeout: float, statement_timeout: float | None
) -> None:
    if pool_size < 1:
        raise ValueError(f"pool_size is at least 1, not {pool_size}")
    times = {"idle_timeout": idle_timeout, "connect_timeout": connect_timeout}
    if statement_timeout is not None:
        times["statement_timeout"] = statement_timeout
    for name, value in times.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is a positive number of seconds, not {value}")


def _given_url(url: str | URL | None) -> URL | None:
    if url is None:
        url = os.environ["DATABASE_URL"] if "DATABASE_URL" in os.environ else _dotenv_url()
    if isinstance(url, str):
        url = url.strip()
    return _parsed(url) if url else None


def _dotenv_url() -> str | None:
    path = find_dotenv(usecwd=True)
    # Without interpolation: a password may hold a dollar sign.
    return dotenv_values(path, interpolate=False).get("DATABASE_URL") if path else None


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or _is_torn(url if isinstance(url, str) else url.render_as_string(hide_password=False)):
        raise ValueError(
            "the database URL cannot be read; it looks like postgresql://user:password@host/database, "
            "with special characters in the password percent-encoded (@ as %40)"
        )
    if parsed.drivername not in SCHEMES:
        raise ValueError("the database URL is not PostgreSQL's; it starts with postgresql:// or postgres://")
    return parsed


def _is_torn(text: str) -> bool:
    """Tell whether host, database or parameters likely hold a piece of the password, which no text may show."""
    rest = re.sub(r"[^:]*://([^:/]*(:[^@]*)?@)?", "", text, count=1)
    address, _, query = rest.partition("?")
    foreign = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] not in KNOWN_PARAMETERS]
    return "@" in address or "@" in str(foreign) or "\0" in unquote(text)


def _prepared(url: URL) -> tuple[URL, tuple[tuple[str, str], ...]]:
    """Drop what libpq does not know, take secrets out of sight, ask remote hosts for TLS."""
    dropped = sorted(NODE_PARAMETERS & url.query.keys())
    if dropped:
        warnings.warn(
            f"dropped from the database URL, as meant for other clients: {', '.join(dropped)}",
            ContextkitWarning,
            stacklevel=3,
        )
    url = url.difference_update_query(dropped)
    if unknown := sorted(url.query.keys() - KNOWN_PARAMETERS):
        raise ValueError(f"the database URL has parameters that PostgreSQL lacks: {', '.join(unknown)}")
    # Of a parameter given twice libpq takes the last; SQLAlchemy reads several hosts so.
    query = {key: _single(key, value) for key, value in url.query.items()}
    secrets = tuple((key, query.pop(key)) for key in sorted(SECRETS & query.keys()))
    if "password" in query:
        url = url.set(password=query.pop("password"))
    if re.fullmatch(r"[\w.-]+", query.get("host", "")):
        url = url.set(host=query.pop("host"))
    url = url.set(query=query)
    if _is_remote(url) and "sslmode" not in url.query and "PGSSLMODE" not in os.environ:
        url = url.update_query_dict({"sslmode": "require"})
    return url, secrets


def _single(key: str, value: str | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    return ",".join(value) if key == "host" else value[-1]


def _is_remote(url: URL) -> bool:
    named = [url.host, *(url.query.get(key) for key in ("host", "hostaddr"))]
    if not any(named):
        named = [os.environ.get("PGHOST"), os.environ.get("PGHOSTADDR")]
    hosts = [host for names in named if isinstance(names, str) for host in names.split(",") if host]
    return not all(re.match(r"/|@|127\.|::1$|localhost(:|$)", host) for host in hosts)


def _check_pooled(url: URL, *, required: bool) -> None:
    if is_pooled(url) is not False:
        return
    text = (
        "this is Neon's direct host, which allows few connections; "
        "use the pooled one: the same name with -pooler after the endpoint's id"
    )
    if required:
        raise ValueError(text)
    warnings.warn(text, ContextkitWarning, stacklevel=3)


def _libpq_defaults(url: URL, settings: Settings) -> dict[str, Any]:
    defaults = {
        "connect_timeout": math.ceil(settings.connect_timeout),
        "fallback_application_name": "contextkit",
    }
    return {key: value for key, value in defaults.items() if key not in url.query} | dict(settings.secrets)


def _engine(url: URL, settings: Settings) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"prepare_threshold": None} | _libpq_defaults(url, settings),
        execution_options={"contextkit": settings},
        hide_parameters=True,
        max_overflow=0,
        pool_pre_ping=True,
        pool_size=settings.pool_size,
        pool_timeout=POOL_WAIT,
        pool_use_lifo=True,
        poolclass=_Pool,
        use_native_hstore=False,
    )
    _listen(engine, settings)
    return engine


def _listen(engine: Engine, settings: Settings) -> None:
    idle = _IdleCloser(engine, settings.idle_timeout)
    event.listen(engine, "checkin", idle.given_back)
    event.listen(engine, "engine_disposed", idle.stop)
    event.listen(engine, "handle_error", _explain_on_engine)

    @event.listens_for(engine, "do_connect")
    def open_connection(_dialect: Any, _record: Any, args: Any, params: Any) -> psycopg.Connection[Any]:
        return _opened(engine.url, settings.server, args, params)

    @event.listens_for(engine, "checkout")
    def start_afresh(connection: Any, _record: Any, _fairy: Any) -> None:
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


def _opened(url: URL, server: EmbeddedServer | None, args: Any, params: Any) -> psycopg.Connection[Any]:
    if server is not None and not server.held:
        server.join()
    try:
        return psycopg.connect(*args, **params)
    except psycopg.Error as error:
        if server is None:
            raise _unreachable(url, error) from None
    server.join()
    try:
        return psycopg.connect(*args, **params)
    except psycopg.Error as error:
        raise _unreachable(url, error) from None


def _unreachable(url: URL, error: psycopg.Error) -> DatabaseUnavailableError:
    # libpq gives no SQLSTATE here, only a text, which names host, role or database and never a password.
    reason = str(error).rpartition("failed: ")[2].partition("\n")[0].strip()
    if url.password:
        reason = reason.replace(str(url.password), "***")
    place = url.host or "the server"
    return DatabaseUnavailableError(f"cannot connect to {place}: {reason}; check the database URL")


def _explain_on_engine(context: ExceptionContext) -> None:
    """Translate a refused write and a lost connection; what else goes wrong on an engine is its user's."""
    error = context.original_exception
    if context.is_pre_ping or isinstance(error, ContextkitError) or not isinstance(error, Exception):
        return  # the last is a KeyboardInterrupt: SQLAlchemy gives up the connection, and that is all
    if context.is_disconnect:
        raise _lost(error)
    if _state(error) == "25006":
        raise explain(error)


def _refuse_unguarded(_target: Connection | Engine, options: dict[str, Any]) -> None:
    level = str(options.get("isolation_level", "")).upper()
    if level == "AUTOCOMMIT" or not options.get("postgresql_readonly", True):
        raise ReadOnlyError(READ_ONLY)


class _Pool(QueuePool):
    """A pool that, once disposed of, closes the connections that come back to it later."""

    _disposed = False

    def dispose(self) -> None:
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if self._disposed:
            super().dispose()


class _IdleCloser:
    """Closes the connections of an engine some seconds after the last one was given back."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self._due = 0.0
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()  # a collected connection may come back while one is
        _closers.add(self)

    def given_back(self, *_: object) -> None:
        with self._lock:
            self._due = time.monotonic() + self._seconds
            if self._timer is None:
                self._wait(self._seconds)

    def stop(self, *_: object) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None

    def forget(self) -> None:
        """Leave to the parent what a forked child got copies of."""
        self._lock, self._timer = threading.RLock(), None
        self._engine.pool = self._engine.pool.recreate()

    def _wait(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        with suppress(RuntimeError):  # no thread starts while the interpreter ends
            timer.start()
            self._timer = timer

    def _expire(self) -> None:
        with self._lock:
            self._timer = None
            remaining = self._due - time.monotonic()
            if remaining > 0:
                self._wait(remaining)
                return
            pool = self._engine.pool
            if pool.checkedout() > 0:  # type: ignore[attr-defined]
                return  # giving that one back starts the clock again
            self._engine.pool = pool.recreate()
            pool.dispose()


_closers: WeakSet[_IdleCloser] = WeakSet()


def _forget_all() -> None:
    for closer in list(_closers):
        closer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
