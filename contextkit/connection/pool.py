"""A pool that lets go: of idle connections, of disposed ones, and of a parent process's."""

import os
import threading
import time
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from sqlalchemy import Engine, QueuePool
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.queue import Empty, Queue


class _Places(Queue[ConnectionPoolEntry]):
    """Places that nobody uses; those with a connection are taken first."""

    def _put(self, item: ConnectionPoolEntry) -> None:
        if item.dbapi_connection is None:
            self.queue.appendleft(item)
        else:
            super()._put(item)


class Pool(QueuePool):
    """A pool that gives its places in turn and, once disposed of, closes the connections that come back later.

    The last one that was given back is the first to be taken.
    """

    _queue_class = _Places
    _disposed = False
    _next: int | None = None
    """The thread that the next place is for, where there is none."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Make a pool as SQLAlchemy does."""
        super().__init__(*arguments, **options)
        self._turn = threading.Lock()

    def _do_get(self) -> ConnectionPoolEntry:
        # One that was given back goes to who gave it back, if that one asks at once, as others have to wake up first.
        thread, taken = threading.get_ident(), self.checkedout() >= self.size()
        if self._next == thread or not (taken or self._turn.locked()):
            return super()._do_get()
        if not self._turn.acquire(timeout=self.timeout()):
            raise PoolTimeoutError("no place of the pool became free")
        self._next = thread
        try:
            return super()._do_get()
        finally:
            self._next = None
            self._turn.release()

    def lend(self) -> ConnectionPoolEntry | None:
        """Give a place, if one without a connection is free, for one that the pool does not see."""
        if self._inc_overflow():
            return _ConnectionRecord(self, connect=False)
        place = self._idle()
        if place is None or place.dbapi_connection is None:
            return place
        self._do_return_conn(place)
        return None

    def take_back(self, place: ConnectionPoolEntry) -> None:
        """Take a lent place back."""
        self._do_return_conn(place)
        self.dispatch.checkin(None, place)  # as of a connection that was invalidated

    def close_idle(self) -> None:
        """Close the connections that nobody uses; their places stay."""
        for place in list(iter(self._idle, None)):
            place.close()
            self._do_return_conn(place)

    def _idle(self) -> ConnectionPoolEntry | None:
        with suppress(Empty):
            return self._pool.get(block=False)
        return None

    def dispose(self) -> None:
        """Close what is idle now, and the rest when it is given back."""
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if self._disposed:
            super().dispose()


class IdleCloser:
    """Closes the connections of an engine some seconds after the last one was given back."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        """Watch an engine."""
        self._engine = engine
        self._seconds = seconds
        self._due = 0.0
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()  # a collected connection may come back while one is
        _closers.add(self)

    def given_back(self, *_: object) -> None:
        """Start the clock anew."""
        with self._lock:
            self._due = time.monotonic() + self._seconds
            if self._timer is None:
                self._wait(self._seconds)

    def stop(self, *_: object) -> None:
        """Stop the clock."""
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


_closers: WeakSet[IdleCloser] = WeakSet()


def _forget_all() -> None:
    for closer in list(_closers):
        closer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
