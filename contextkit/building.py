"""Building and dropping indexes: on connections of one's own, one build at a time, shown and interruptible."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from sqlalchemy import Connection, Engine, Row, func, select

from contextkit.connection import check_writable, is_pooled, separate_engine, translated_errors
from contextkit.interrupts import interruptible
from contextkit.queries import KEEP_TRANSACTION, TRY_LOCK, select_building

QUIET_SECONDS = 2.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Work:
    """A connection that builds, one whose transaction holds the lock, and one that watches."""

    connection: Connection
    locking: Connection
    watching: Connection
    progress: bool

    @cached_property
    def keeps_settings(self) -> bool:
        """Whether the connection has a session of its own, and no pooler between that gives it any server's."""
        if is_pooled(self.connection.engine.url) is False:  # Neon's proxy tells pids of its own there, too
            return True
        driver: Any = self.connection.connection.driver_connection
        return bool(driver.info.backend_pid == self.connection.scalar(select(func.pg_backend_pid())))

    def lock(self, unless: Callable[[], Row[Any] | None]) -> Row[Any] | None:
        """Wait for the lock of all builds, or for what makes it needless.

        The lock is a transaction's, as a pooler loses a session's, and that transaction rests while it has it: a
        build waits for the end of any that it sees holding a snapshot. Polled for the same reason.
        """
        locked = False
        with self._bar(None) as bar:
            while not (found := unless()) and not locked:
                locked = bool(self.locking.scalar(TRY_LOCK))
                if locked:
                    self.locking.execute(KEEP_TRANSACTION)
                else:
                    self.locking.rollback()
                    self._show(bar)
                    time.sleep(POLL_SECONDS)
        return found

    def run(self, sql: str, rows: int | None = None) -> None:
        """Run what takes long."""
        cancel = cast(Any, self.connection.connection.driver_connection).cancel_safe
        with self._bar(rows) as bar:
            plain = sql.replace("%", "%%")  # names may have one, and the driver takes it for a parameter
            interruptible(lambda: self.connection.exec_driver_sql(plain), cancel, meanwhile=lambda: self._show(bar))
            bar.update((rows or bar.n) - bar.n)

    @contextmanager
    def undone_by(self, undo: Callable[[], None]) -> Iterator[None]:
        """Undo what fails or is interrupted, while the connection still is there."""
        try:
            yield
        except BaseException:
            if not self.connection.invalidated:
                undo()
            raise

    def set(self, name: str, value: object) -> None:
        """Set a parameter of the connection, if it keeps any."""
        if self.keeps_settings:
            self.connection.exec_driver_sql(f"set {name} = '{value}'")

    def _bar(self, rows: int | None) -> Any:
        # Without ipywidgets tqdm.auto warns that it has no bar of its own for notebooks.
        make = import_module("tqdm.auto" if find_spec("ipywidgets") else "tqdm").tqdm
        return make(total=rows, unit=" messages", delay=QUIET_SECONDS, disable=not self.progress)

    def _show(self, bar: Any) -> None:
        if bar.disable:
            return
        building = self.watching.execute(select_building()).first()  # others may build, too
        if building is None:
            return
        bar.set_description(building.phase, refresh=False)
        if building.phase.startswith("building index"):
            bar.update(building.tuples_done - bar.n)
        if bar.format_dict["elapsed"] >= QUIET_SECONDS:
            bar.refresh()  # the phase may be all that changes


@contextmanager
def opened(engine: Engine, *, progress: bool) -> Iterator[Work]:
    """Open three connections of one's own, past Neon's pooler; what the work holds or sets ends with it."""
    check_writable(engine)
    with (
        translated_errors(),
        separate_engine(engine, pool_size=3) as separate,
        separate.connect() as connection,
        separate.connect() as locking,
        separate.connect() as watching,
    ):
        # Concurrent builds run in no transaction, and whoever watches must not keep a snapshot.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        watching.execution_options(isolation_level="AUTOCOMMIT")
        # In any other level it would keep its snapshot.
        locking.execution_options(isolation_level="READ COMMITTED")
        work = Work(connection, locking, watching, progress)
        work.set("statement_timeout", 0)
        work.set("lock_timeout", 0)
        try:
            yield work
        finally:
            connection.invalidate()  # the settings end with it
