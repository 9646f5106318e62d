"""A connection that asks, while it waits, whether the server still answers: nobody waits for a lost one for ever."""

import math
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from contextkit.connection.driver import CommitLostError, StuckError, is_lost, state_of
from contextkit.interrupts import HopelessError
from contextkit.secret import without_history

_Result = TypeVar("_Result")

SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])
"""What every server and pooler answers with one byte, whoever asks: the request for TLS of PostgreSQL's protocol."""


ASKED = """
    select pg_backend_pid(), pg_postmaster_start_time(), backend_start,
        extract(epoch from clock_timestamp() - backend_start)::float,
        coalesce(wait_event in ('ClientRead', 'ClientWrite'), false), bytes_processed
    from (select %s::int as pid) as one
    left join pg_stat_activity using (pid) left join pg_stat_progress_copy using (pid)
"""

END = "select pg_terminate_backend(pid) from pg_stat_activity where pid = %s and backend_start = %s"

FIRST_WAIT, LONGEST_WAIT = 3.0, 120.0
"""Seconds after which TCP sends again what may be lost: at first at most, and at most at all."""


class SilentError(psycopg.OperationalError, HopelessError):
    """A connection says nothing, and its server does not answer new ones either."""


class FrozenError(psycopg.OperationalError):
    """A connection says nothing, and the server that answers others waits for it in turn."""


class Seen(Protocol):
    """What is seen of a connection from this side."""

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet, where that is known."""
        ...

    def is_quiet(self) -> bool:
        """Whether nothing has come over it meanwhile."""
        ...


@dataclass
class Silence:
    """How long nothing has been heard from a server."""

    family: int
    address: Any
    patience: float
    """Seconds until it is lost: a quarter of them in silence, the others asking on new connections."""
    longest: float | None
    """Seconds that its longest statement may take, if that is limited."""
    since: float = field(default_factory=time.monotonic)
    answered: float = -math.inf
    """When a new connection was answered last."""
    asking: float = -math.inf
    """Since when new ones are asked for an answer; over when something came later."""

    def end(self) -> None:
        """Something was heard."""
        self.since = time.monotonic()

    def check(self, *, running: bool = True) -> None:
        """Raise a StuckError if a statement that runs is waited for in vain, a SilentError if anything is."""
        now = time.monotonic()
        if running and self.longest is not None and now - self.since > self.longest + self.patience:
            raise StuckError("no answer within statement_timeout")
        came = max(self.since, self.answered)
        if now - came <= self.patience / 4:
            return
        if self.asking <= came:
            self.asking = now
        deadline = self.asking + self.patience * 3 / 4
        # Not as soon as asking has failed: meanwhile the connection itself may have got something.
        if now >= deadline:
            raise SilentError("no answer")
        if self._answers(deadline):
            self.answered = time.monotonic()

    def _answers(self, deadline: float) -> bool:
        try:
            with socket.socket(self.family) as asking:
                asking.settimeout(max(0.0, deadline - time.monotonic()))
                asking.connect(self.address)
                asking.sendall(SSL_REQUEST)
                asking.settimeout(max(0.0, deadline - time.monotonic()))
                return bool(asking.recv(1))
        except OSError:
            return False


@dataclass
class Partner:
    """The server's process of a connection, about which a server that answers is asked.

    Where it waits for the connection, which waits for it, one of them sent what has not arrived. It may have been lost
    for good, or on a network that was away and is back: then TCP sends it again, each time after twice as long. As the
    network was there for the first question, what is sent again has come by the second one, which is asked when it
    waited as long again and a little longer.
    """

    pid: int | None
    """None until the connection is open, which is no work."""
    open_: "Callable[[], WatchedConnection]" = field(repr=False)
    """Opens another connection to the same server."""
    patience: float
    opened: float = field(default_factory=lambda: time.time())
    asked: float = field(default=-math.inf, init=False)
    worked: float = field(default=-math.inf, init=False)
    """When it was found at work last, so that nothing was lost before."""
    found: tuple[Any, ...] | None = field(default=None, init=False)
    """How it was found waiting, with the bytes on their way in either direction; None if it was not."""
    pause: float = field(default=0.0, init=False)
    """Seconds until it may be asked whether it still waits."""
    seen: tuple[Any, Any] | None = field(default=None, init=False)
    """When the server started that it was seen on, of several behind one address, and when it did itself."""

    def check(self, since: float, connection: Seen) -> None:
        """Raise a FrozenError if it was found waiting twice alike, with nothing heard since that time."""
        now = time.monotonic()
        if since > self.asked:
            self.found, self.pause = None, 0.0
        # The longer a statement takes, the rarer.
        if now - max(since, self.asked) < max(self.patience, self.pause, (now - since) / 10):
            return
        self.asked = now
        try:
            with closing(self.open_()) as asking:
                found = self._found(asking, connection)
                lost = found is not None and found == self.found and connection.is_quiet()
                if lost and self.seen is not None:
                    asking.execute(END, [self.pid, self.seen[1]])  # or its locks may stay for hours
        except psycopg.Error:  # no connection is free, say, so nothing is known
            self.found = None
            return
        if lost:
            raise FrozenError("the server waits, too")
        self.asked, self.found = max(self.asked, time.monotonic()), found
        if found is None:
            self.worked, self.pause = self.asked, 0.0
        else:
            self.pause = min(self.asked - max(since, self.worked), LONGEST_WAIT) + FIRST_WAIT

    def _found(self, asking: "WatchedConnection", connection: Seen) -> tuple[Any, ...] | None:
        own, server, start, age, waits, copied = asking.execute(ASKED, [self.pid]).fetchall()[0]
        if own != asking.info.backend_pid:  # a pooler gives pids of its own, and any server's process
            self.asked = math.inf
            return None
        if self.pid is None:
            return ("opening",)
        if start is None:  # it is gone, unless this is another server
            return ("gone",) if self.seen is not None and self.seen[0] == server else None
        # A pid is soon given anew: only one as old as this connection, to open which took a while, is its.
        if not -1 < age - (time.time() - self.opened) < self.patience + 1:
            return None
        self.seen = server, start
        return (connection.unsent, copied) if waits else None


def _asking(patience: float, parameters: dict[str, Any]) -> "WatchedConnection":
    """Open a connection for questions, which waits no longer than that for any answer."""
    try:
        asking = WatchedConnection.connect(**parameters, autocommit=True)
    except BaseException as error:  # noqa: BLE001 - raised below
        failed = error
    else:
        asking.watch(patience, None, {})
        asking._asking = True
        return asking
    raise without_history(failed)


class WatchedConnection(psycopg.Connection[Any]):
    """A connection of psycopg's that does not wait for a lost server."""

    _peer: tuple[int, Any] | None = None
    _partner: Partner | None = None
    _patience = 0.0
    _longest: float | None = None
    _asking = False

    def watch(self, patience: float, longest: float | None, parameters: dict[str, Any]) -> None:
        """Wait so many seconds for a server that does not answer, and statements no longer than they may take.

        The server is asked about its process on connections that are opened with the parameters of this one.
        """
        self._patience, self._longest = patience, longest
        connected = socket.socket(fileno=self.pgconn.socket)
        try:
            if connected.family in (socket.AF_INET, socket.AF_INET6):
                self._peer = connected.family, connected.getpeername()
                address, port, *_ = connected.getpeername()
                place = {"host": self.info.host, "hostaddr": address, "port": port}
                self._partner = Partner(self.info.backend_pid, partial(_asking, patience, parameters | place), patience)
        except OSError:  # it is lost already, as the next use finds
            self._peer = None
        finally:
            connected.detach()

    def silence(self) -> Silence | None:
        """Silence from now on; None on a unix socket, which no network can lose."""
        if self._peer is None:
            return None
        # What commits by itself, such as the build of an index, has no limit that ends with a transaction.
        longest = 0.0 if self._asking else None if self.autocommit else self._longest
        return Silence(*self._peer, self._patience, longest)

    def watched(self) -> tuple[Silence, Partner] | None:
        """What to watch another connection to this server with; None as of `silence`."""
        silence = self.silence()
        return None if silence is None or self._partner is None else (silence, self._partner)

    def is_quiet(self) -> bool:
        """Whether nothing has come over this connection since its last answer, such as its end."""
        if self.closed:
            return False
        try:
            return not select.select([self.fileno()], [], [], 0)[0]
        except ValueError:  # it cannot tell of more than a thousand files
            return False

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet, where the system tells."""
        with suppress(ImportError, OSError):
            import fcntl
            import termios

            return int.from_bytes(fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return 0

    def answers(self) -> bool:
        """Whether this connection still works; asked outside of any transaction.

        Raises:
            SilentError: nor does the server answer new ones.
        """
        self._asking = True
        try:
            self.autocommit = True
            self.execute("select 1")
        except SilentError:
            raise
        except psycopg.OperationalError:
            return False
        finally:
            self._asking = False
        return True

    def wait(self, gen: PQGen[_Result], interval: float = 0.1, timeout: float | None = None) -> _Result:
        """Wait for the server as long as it answers."""
        if silence := self.silence():
            gen = self._heard(gen, silence)
        return super().wait(gen, interval, timeout)

    def commit(self) -> None:
        """Commit; if the answer is lost that is an error of its own, as nobody knows what the server did."""
        try:
            super().commit()
        except psycopg.OperationalError as error:
            if self.read_only or not is_lost(state_of(error)):
                raise
            self.pgconn.finish()  # or what gives it back would roll back in vain
            raise CommitLostError("the connection was lost during a commit") from error

    def rollback(self) -> None:
        """Roll back, of which a lost connection has no need."""
        if not self.closed:
            super().rollback()

    def set_autocommit(self, value: bool) -> None:
        """Set it, as SQLAlchemy does on the way back to the pool, where a lost connection must not stay out."""
        if not self.closed:
            super().set_autocommit(value)

    def set_isolation_level(self, value: IsolationLevel | None) -> None:
        """Set it, as of `set_autocommit`."""
        if not self.closed:
            super().set_isolation_level(value)

    def _heard(self, gen: PQGen[_Result], silence: Silence) -> PQGen[_Result]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    silence.end()
                else:
                    # One that waits for notifications may do so for as long as it likes.
                    running = self.pgconn.transaction_status == TransactionStatus.ACTIVE
                    silence.check(running=running)
                    if running and self._partner is not None and not self._asking:
                        self._partner.check(silence.since, self)
                wanted = gen.send(ready)
        except StopIteration as end:
            result: _Result = end.value
            return result
        except (StuckError, SilentError, FrozenError):
            self.pgconn.finish()
            raise
