"""Connections of ADBC's for reading in bulk: closed however that ends, and never waited for in vain."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import adbc_driver_postgresql
import pyarrow as pa
from adbc_driver_manager import AdbcConnection
from adbc_driver_manager import Error as BulkError
from adbc_driver_manager.dbapi import Connection as BulkConnection
from sqlalchemy import Connection, Engine

from contextkit.connection import again_while_full, explain, libpq_uri, settings_of, silence_of, unreachable
from contextkit.connection.silence import SilentError
from contextkit.interrupts import interruptible

_Result = TypeVar("_Result")

PATIENCE = 2.0
"""Seconds that a cancelled read may take to end; it closes its connection whenever it does."""


def bulk_in_place_of(*connections: Connection) -> "Bulk":
    """Reading in bulk where connections of the pool lead, which are closed: there are never more than its size."""
    bulk = Bulk(connections[0])
    for connection in connections:
        connection.rollback()  # a pooler closes the server's connection of whoever leaves within a transaction
        connection.invalidate()
    return bulk


class Bulk:
    """Cursors of one read, what cancels them, and how long its server says nothing."""

    def __init__(self, connection: Connection) -> None:
        """Read where a connection of the pool leads."""
        self.engine = connection.engine
        self._silence = silence_of(connection)
        self._running: list[Any] = []
        self._waits: list[None] = []
        self._over = False
        self._lock = threading.Lock()

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Result of what opens cursors here; ends it when the user interrupts it or the server is lost.

        ADBC shows no socket, so what waits for a lost server cannot be ended from here: its threads and its connection
        stay until the server or the operating system ends that one.
        """
        return interruptible(work, self.cancel, self._check, PATIENCE)

    def cancel(self) -> None:
        """Cancel all statements that run, and let none begin."""
        with self._lock:  # so that none is closed meanwhile
            self._over = True
            for cursor in self._running:
                cursor.adbc_cancel()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the driver is waited for: only then is a silence the server's."""
        self._heard()
        self._waits.append(None)
        try:
            yield
        finally:
            self._waits.pop()
            self._heard()

    def _heard(self) -> None:
        if self._silence is not None:
            self._silence.end()

    def _check(self) -> None:
        try:
            if self._silence is not None and self._waits:
                self._silence.check()
        except SilentError:
            self._over = True
            raise

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """A cursor in one read-only transaction on a connection of its own, closed however it ends.

        Explicitly in a transaction: in autocommit, behind a transaction pooler, ADBC reads other clients' rows.
        """
        settings = settings_of(self.engine)
        assert settings is not None  # noqa: S101 - fetch asks for engines of connect only
        try:
            with self.waiting():
                connection = again_while_full(self._opened)
        except BulkError as error:
            raise unreachable(self.engine.url, error) from None
        try:
            try:
                with connection.cursor() as cursor, self._cancelled_with_others(cursor):
                    with self.waiting():
                        cursor.execute("set transaction read only")
                        if settings.limit_statements:
                            cursor.execute(settings.limit_statements)
                    try:
                        yield cursor
                    except (OSError, pa.ArrowException) as error:
                        # Of a row that fails pyarrow has the server's text only; ADBC has kept the SQLSTATE.
                        if str(error).startswith("[libpq]"):
                            cast(Any, cursor)._results.reader._helper.check_error(error)
                        raise
                with self.waiting():
                    connection.rollback()  # as in `bulk_in_place_of`
            finally:
                connection.close()
        except BulkError as error:
            raise explain(error) from None

    def _opened(self) -> BulkConnection:
        database = _database(self.engine)
        return BulkConnection(cast(Any, database), AdbcConnection(database.handle))

    @contextmanager
    def _cancelled_with_others(self, cursor: Any) -> Iterator[None]:
        with self._lock:
            if self._over:
                raise InterruptedError("the reading was cancelled")
            self._running.append(cursor)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(cursor)


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
