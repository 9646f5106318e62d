"""Connections of ADBC's for reading in bulk: closed however that ends, and never waited for in vain."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import adbc_driver_postgresql
import pyarrow as pa
from adbc_driver_manager import AdbcConnection
from adbc_driver_manager import Error as BulkError
from adbc_driver_manager.dbapi import Connection as BulkConnection
from sqlalchemy import Connection, Engine

from contextkit.connection import again_while_full, explain, libpq_uri, settings_of, unreachable, watch_of
from contextkit.connection.driver import StuckError
from contextkit.connection.pool import Pool
from contextkit.connection.silence import FrozenError, Partner, Silence, SilentError
from contextkit.interrupts import interruptible

_Result = TypeVar("_Result")

PATIENCE = 2.0
"""Seconds that a cancelled read may take to end; it closes its connection whenever it does."""

SLOWEST = 2.0**15
"""Bytes a second, below which the sending of a long statement is taken for a lost connection."""

READ_ONLY = "select pg_catalog.set_config('transaction_read_only', 'on', true), pg_backend_pid()"
COPY = adbc_driver_postgresql.StatementOptions.USE_COPY.value


@contextmanager
def bulk_in_place_of(*connections: Connection) -> Iterator["Bulk"]:
    """Reading in bulk where connections of the pool lead, which are given back.

    Those that it opens take places of the pool: there are never more than its size.
    """
    bulk = Bulk(connections[0])
    with ExitStack() as places:
        for connection in connections:
            places.enter_context(_place_of(connection))
        yield bulk


@contextmanager
def _place_of(connection: Connection) -> Iterator[None]:
    """A place of the pool beside this connection, which goes back to it; where none is free, this one's."""
    connection.rollback()  # a pooler closes the server's connection of whoever leaves within a transaction
    pool = cast(Pool, connection.engine.pool)
    place = None
    try:
        place = pool.lend()
        if place is None:
            cast(Any, connection.connection.driver_connection).close()
        else:
            connection.close()
        yield
    finally:
        if place is None:
            connection.invalidate()
        else:
            pool.take_back(place)


@dataclass(eq=False)
class Line:
    """One connection of a read, and how long its server has been waited for."""

    silence: Silence | None
    """None, as is the partner, where nothing tells whether the server is lost."""
    partner: Partner | None
    cursor: Any = None
    waits: bool = False
    is_lost: bool = False
    _sending: float = 0.0
    _since: float = 0.0

    unsent = 0  # ADBC does not tell

    def execute(self, sql: str) -> None:
        """Begin a statement, waiting for the server."""
        with self.waiting(len(sql)):
            self.cursor.execute(sql)

    @contextmanager
    def waiting(self, sent: int = 0) -> Iterator[None]:
        """While the driver is waited for: only then is a silence the server's."""
        self.heard()
        self._sending, self.waits = sent / SLOWEST, True
        try:
            yield
        finally:
            self.waits = False
            self.heard()

    def check(self) -> None:
        """Raise a SilentError, StuckError or FrozenError if the server is waited for in vain."""
        if self.silence is None or not self.waits:
            return
        try:
            self._check(self.silence)
        except (SilentError, StuckError, FrozenError):
            self.is_lost = True
            raise

    def is_quiet(self) -> bool:
        """Whether nothing has come since it was checked."""
        return self.waits and self.silence is not None and self.silence.since == self._since

    def heard(self) -> None:
        """Something came."""
        if self.silence is not None:
            self.silence.end()

    def _check(self, silence: Silence) -> None:
        self._since = silence.since
        silence.check()
        if self.partner is not None:
            self.partner.check(self._since + self._sending, self)


class Bulk:
    """Connections of one read, and what cancels them."""

    def __init__(self, connection: Connection) -> None:
        """Read where a connection of the pool leads."""
        self.engine = connection.engine
        self._watch = watch_of(connection)
        self._lines: list[Line] = []
        self._over = False
        self._lock = threading.Lock()

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Result of what opens cursors here; ends it when the user interrupts it, or its server or connection is lost.

        ADBC shows no socket, so what waits for a lost one cannot be ended from here: its threads and its connection
        stay until the server or the operating system ends that one. No end of the interpreter waits for them.
        """
        return interruptible(work, self.cancel, self._check, PATIENCE)

    def cancel(self) -> None:
        """Cancel all statements that run, and let none begin; none hears that whose connection is lost."""
        with self._lock:  # so that none is closed meanwhile
            self._over = True
            for line in self._lines:
                if line.cursor is not None and not line.is_lost:
                    line.cursor.adbc_cancel()

    def _check(self) -> None:
        try:
            for line in tuple(self._lines):
                line.check()
        except SilentError:
            self._over = True
            raise

    @contextmanager
    def cursor(self, *first: str) -> Iterator[Line]:
        """A cursor in one read-only transaction on a connection of its own, closed however it ends.

        Explicitly in a transaction: in autocommit, behind a transaction pooler, ADBC reads other clients' rows.

        Args:
            first: statements that a transaction begins with.
        """
        try:
            with self._line() as line, closing(self._opened(line)) as connection:
                with connection.cursor() as cursor, self._cancelled_with_others(line, cursor):
                    self._begin(line, first)
                    try:
                        yield line
                    except (OSError, pa.ArrowException) as error:
                        # Of a row that fails pyarrow has the server's text only; ADBC has kept the SQLSTATE.
                        if str(error).startswith("[libpq]"):
                            cast(Any, cursor)._results.reader._helper.check_error(error)
                        raise
                with line.waiting():
                    connection.rollback()  # as in `bulk_in_place_of`
        except BulkError as error:
            raise explain(error) from None

    def _opened(self, line: Line) -> BulkConnection:
        try:
            with line.waiting():
                return again_while_full(partial(self._open, line), cast(Pool, self.engine.pool).close_idle)
        except BulkError as error:
            raise unreachable(self.engine.url, error) from None

    def _open(self, line: Line) -> BulkConnection:
        database = _database(self.engine)
        line.heard()  # of a first connection, for the types
        return BulkConnection(cast(Any, database), AdbcConnection(database.handle))

    def _begin(self, line: Line, first: tuple[str, ...]) -> None:
        opened, settings = time.time(), settings_of(self.engine)
        assert settings is not None  # noqa: S101 - fetch asks for engines of connect only
        limit = settings.limit_statements
        statement = line.cursor.adbc_statement
        statement.set_options(**{COPY: "false"})  # which takes three round trips for one
        for sql in (*first, *([limit] if limit else []), READ_ONLY):
            line.execute(sql)
        with line.waiting():
            ((_, pid),) = line.cursor.fetchall()
        statement.set_options(**{COPY: "true"})
        line.partner = line.partner and replace(line.partner, pid=pid, opened=opened)

    @contextmanager
    def _line(self) -> Iterator[Line]:
        silence, partner = self._watch or (None, None)
        line = Line(silence and replace(silence), partner and replace(partner, pid=None))
        self._lines.append(line)
        try:
            yield line
        finally:
            self._lines.remove(line)

    @contextmanager
    def _cancelled_with_others(self, line: Line, cursor: Any) -> Iterator[None]:
        with self._lock:
            if self._over:
                raise InterruptedError("the reading was cancelled")
            line.cursor = cursor
        try:
            yield
        finally:
            with self._lock:
                line.cursor = None


class _KeptDatabase:
    """ADBC's handle on a database: keeps no connection, but took 35 ms to learn the server's types.

    ADBC's connections close the handle that they are given, so this one is opened anew only when asked.
    """

    def __init__(self, uri: str) -> None:
        """Connect once, for the types."""
        self.handle = adbc_driver_postgresql.connect(uri)

    def close(self) -> None:
        """Stay open: the next connection uses it."""


_databases: WeakKeyDictionary[Engine, _KeptDatabase] = WeakKeyDictionary()
_databases_lock = threading.Lock()


def forget_types(engine: Engine) -> None:
    """Learn the server's types anew when reading next, as some were made since."""
    _databases.pop(engine, None)


def _database(engine: Engine) -> _KeptDatabase:
    kept = _databases.get(engine)
    if kept is None:
        made = _KeptDatabase(libpq_uri(engine))  # not under the lock: a lost server may keep it waiting
        with _databases_lock:
            kept = _databases.setdefault(engine, made)
    return kept
