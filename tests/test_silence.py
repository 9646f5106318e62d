"""Who is waited for and who is not, by a clock that the tests set."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

import contextkit.connection.silence as silence_module
import contextkit.gathered as gathered_module
from contextkit import DatabaseUnavailableError, connect, read_df
from contextkit.bulk import SLOWEST, Bulk, Line
from contextkit.connection import watch_of
from contextkit.connection.silence import FIRST_WAIT, FrozenError, Partner, Silence, SilentError, WatchedConnection
from contextkit.server import SOCKET
from tests.faults.proxy import Plan, Proxy, running_proxy
from tests.test_connection import until

PATIENCE = 0.2
"""Short, as what says nothing is really waited for."""
CONNECT_TIMEOUT, STATEMENT_TIMEOUT = 20.0, 3.0
PATIENT = 20.0


class Clock:
    """A clock that goes on when told to, and by so much whenever it is looked at."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.step = 0.0
        self.at: Callable[[float], object] = lambda _now: None

    time = staticmethod(time.time)

    def monotonic(self) -> float:
        self.now += self.step
        self.at(self.now)
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(silence_module, "time", clock)
    return clock


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        yield listener


def silence_at(listener: socket.socket, clock: Clock) -> Silence:
    return Silence(listener.family, listener.getsockname(), PATIENCE, None, since=clock.now)


def seconds_until_given_up(check: Callable[[], None], clock: Clock) -> float:
    """Seconds that pass, an eighth of the patience at a time."""
    began = clock.now
    for _ in range(100):
        clock.now += PATIENCE / 8
        try:
            check()
        except SilentError:
            return clock.now - began
    return float("inf")


def answer(listener: socket.socket) -> None:
    """Answer every connection, until the listener is closed."""

    def run() -> None:
        while True:
            try:
                asking, _ = listener.accept()
            except OSError:
                return
            with asking:
                asking.recv(8)
                asking.sendall(b"N")

    threading.Thread(target=run, daemon=True).start()


def test_a_server_that_answers_new_connections_is_waited_for_however_long(
    listener: socket.socket, clock: Clock
) -> None:
    silence = silence_at(listener, clock)
    answer(listener)
    for _ in range(100):
        clock.now += PATIENCE / 3
        silence.check()
    assert silence.answered == clock.now


@pytest.mark.parametrize("refuses", [True, False])
def test_a_server_that_does_not_answer_is_given_up_after_the_patience_and_not_before(
    listener: socket.socket, clock: Clock, refuses: bool
) -> None:
    silence = silence_at(listener, clock)
    if refuses:
        listener.close()
    assert PATIENCE <= seconds_until_given_up(silence.check, clock) <= PATIENCE * 5 / 4


def test_asking_that_failed_is_forgotten_when_something_came_meanwhile(listener: socket.socket, clock: Clock) -> None:
    silence = silence_at(listener, clock)
    listener.close()
    for _ in range(10):
        clock.now += PATIENCE / 2
        silence.check()
        clock.now += PATIENCE
        silence.end()
        silence.check()
    assert silence.answered < silence.since


# With a server


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    """The server over TCP."""
    with running_proxy(str(Path(str(make_url(server_url).query["host"])) / SOCKET)) as proxy:
        yield proxy


@pytest.fixture
def engine(proxy: Proxy) -> Iterator[Engine]:
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    engine = connect(url, connect_timeout=CONNECT_TIMEOUT, statement_timeout=STATEMENT_TIMEOUT)
    yield engine
    engine.dispose()


def test_in_bulk_silence_counts_while_the_driver_is_waited_for(listener: socket.socket, clock: Clock) -> None:
    line = Line(silence_at(listener, clock), None)
    listener.close()
    assert seconds_until_given_up(line.check, clock) == float("inf")
    with line.waiting():
        assert PATIENCE <= seconds_until_given_up(line.check, clock) <= PATIENCE * 5 / 4
    assert seconds_until_given_up(line.check, clock) == float("inf")


def test_what_has_arrived_in_bulk_may_be_decoded_for_longer_than_a_statement_may_take(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = threading.Semaphore(0)

    def check(bulk: Bulk) -> None:
        unpatched(bulk)
        checks.release()

    def decode(*arguments: Any) -> Any:
        for _ in range(4):
            clock.now += 1000
            assert all(checks.acquire(timeout=60) for _ in range(3))
        return decoded(*arguments)

    unpatched, decoded = Bulk._check, gathered_module._Documents.add
    monkeypatch.setattr(Bulk, "_check", check)
    monkeypatch.setattr(gathered_module._Documents, "add", decode)
    frame = read_df(engine, text("select i, jsonb_build_array(i) as x from generate_series(1, 9000) i"))
    assert [len(frame), frame["x"].iloc[-1]] == [9000, [9000]]


def test_notifications_are_waited_for_longer_than_a_statement_may_take(
    engine: Engine, clock: Clock, server_url: str
) -> None:
    late = clock.now + 3 * (STATEMENT_TIMEOUT + CONNECT_TIMEOUT)

    def notify(now: float) -> None:
        if now > late:
            clock.at = lambda _now: None
            with psycopg.connect(server_url, autocommit=True) as other:
                other.execute("notify silence, 'heard'")

    with closing(engine.raw_connection()) as connection:
        driver: Any = connection.driver_connection
        driver.execute("listen silence")
        driver.commit()
        clock.step, clock.at = CONNECT_TIMEOUT / 5, notify
        assert next(driver.notifies(timeout=60)).payload == "heard"
        clock.step = 0


def test_a_statement_that_outlasts_its_limit_without_an_answer_is_given_up_and_says_so(
    engine: Engine, clock: Clock
) -> None:
    with engine.connect() as connection:
        connection.execute(text("set local statement_timeout = 0"))
        clock.step = CONNECT_TIMEOUT / 5
        with pytest.raises(DatabaseUnavailableError, match="within statement_timeout and connect_timeout together"):
            connection.execute(text("select pg_sleep(60)"))
        clock.step = 0


# One connection froze, and its server answers others


@pytest.fixture
def endless(proxy: Proxy, clock: Clock) -> Iterator[Engine]:
    """An engine that limits no statement, by a clock that runs fast."""
    engine = connect(f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres", write=True, connect_timeout=PATIENT)
    with engine.connect():
        clock.step = PATIENT / 5
        yield engine
        clock.step = 0
    engine.dispose()


@pytest.mark.parametrize("fault", ["freeze", "answer"])
def test_a_connection_is_given_up_whose_server_waits_for_it_and_holds_no_locks_any_more(
    endless: Engine, proxy: Proxy, server_url: str, fault: str
) -> None:
    with endless.connect() as connection, psycopg.connect(server_url, autocommit=True) as other:
        connection.execute(text("select pg_advisory_xact_lock(5)"))
        proxy.plan(Plan("freeze", 0) if fault == "freeze" else Plan("freeze", message=b"answered", arrives=True))
        with pytest.raises(DatabaseUnavailableError, match="lost; run it again"):
            connection.execute(text("select 'answered'"))
        assert until(lambda: other.execute("select pg_try_advisory_lock(5)").fetchone() == (True,))
    proxy.heal()


def test_a_connection_is_given_up_whose_process_was_seen_at_work_and_is_gone(
    endless: Engine, proxy: Proxy, clock: Clock, server_url: str
) -> None:
    with endless.connect() as connection, psycopg.connect(server_url, autocommit=True) as other:
        driver: Any = connection.connection.driver_connection

        def end(_now: float) -> None:
            if driver._partner.seen is not None:
                clock.at = lambda _now: None
                proxy.fail("freeze")
                other.execute("select pg_terminate_backend(%s)", [driver.info.backend_pid])

        clock.at = end
        with pytest.raises(DatabaseUnavailableError, match="lost; run it again"):
            connection.execute(text("select pg_sleep(60)"))
    proxy.heal()


def test_a_process_that_has_the_pid_by_now_is_neither_waited_for_nor_ended(endless: Engine, server_url: str) -> None:
    with endless.connect() as connection, psycopg.connect(server_url) as other:
        driver: Any = connection.connection.driver_connection
        driver._partner.pid = other.info.backend_pid
        driver._partner.opened -= 3600  # longer ago than that one began
        assert connection.scalar(text("select 7 from pg_sleep(1)")) == 7
        assert other.execute("select 7").fetchone() == (7,)


def test_a_statement_that_is_still_on_its_way_is_waited_for(
    endless: Engine, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    left = iter(range(10**6, 0, -1))
    monkeypatch.setattr(WatchedConnection, "unsent", property(lambda _connection: next(left)))
    monkeypatch.setattr(Partner, "_found", lambda _partner, _asking, connection: (connection.unsent,))
    began = clock.now
    with endless.connect() as connection:
        assert connection.scalar(text("select 7 from pg_sleep(1)")) == 7
    assert clock.now - began > 5 * PATIENT


def test_a_statement_that_the_server_works_at_is_waited_for_however_long(endless: Engine, clock: Clock) -> None:
    began = clock.now
    with endless.connect() as connection:
        assert connection.scalar(text("select 7 from pg_sleep(1)")) == 7
    assert clock.now - began > 5 * PATIENT


MANY = "select i, {} as x from generate_series(1, 9000) i"


def test_a_statement_that_the_server_works_at_in_bulk_is_waited_for_however_long(endless: Engine, clock: Clock) -> None:
    began = clock.now
    assert len(read_df(endless, text(MANY.format("case i when 9000 then pg_sleep(1)::text end")))) == 9000
    assert clock.now - began > 5 * PATIENT


@pytest.mark.parametrize("sent", ["transaction_read_only", "COPY ("])
def test_a_read_in_bulk_is_given_up_whose_server_waits_for_it_or_for_its_beginning(
    endless: Engine, proxy: Proxy, server_url: str, sent: str
) -> None:
    running = "select from pg_stat_activity where query like 'COPY%frozen here%' and pid <> pg_backend_pid()"
    with psycopg.connect(server_url, autocommit=True) as other:
        proxy.plan(Plan("freeze", message=sent.encode(), arrives=True))
        with pytest.raises(DatabaseUnavailableError, match="lost; run it again"):
            read_df(endless, text(MANY.format("'frozen here'")))
        assert until(lambda: other.execute(running).fetchone() is None)
    proxy.heal()


FROZEN = """
import contextkit.bulk, contextkit.connection.silence
from sqlalchemy import text
from contextkit import DatabaseUnavailableError, connect, read_df

contextkit.bulk.PATIENCE = contextkit.connection.silence.FIRST_WAIT = 0.1
try:
    read_df(connect({url!r}), text({sql!r}))
except DatabaseUnavailableError:
    print("given up")
"""


def test_a_program_ends_whose_read_in_bulk_was_given_up(proxy: Proxy) -> None:
    proxy.plan(Plan("freeze", message=b"COPY (", arrives=True))
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?connect_timeout=1"
    program = FROZEN.format(url=url, sql=MANY.format("'a'"))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "given up\n", "")
    proxy.heal()


# What may be lost is sent again first


class Quiet:
    """A connection of which no more is seen than that nothing comes."""

    unsent = 0

    def is_quiet(self) -> bool:
        return True


@pytest.fixture
def reading(engine: Engine, server_url: str) -> Iterator[tuple[Partner, psycopg.Connection[Any]]]:
    """A connection and its partner, which is asked over another."""
    with psycopg.connect(server_url, autocommit=True) as reading, engine.connect() as connection:
        watch, pid = watch_of(connection), reading.info.backend_pid
        waits = text(f"select from pg_stat_activity where pid = {pid} and wait_event = 'ClientRead'")
        assert until(lambda: connection.execute(waits).first() is not None)
        assert watch is not None
        yield Partner(pid, watch[1].open_, PATIENT), reading


@pytest.mark.parametrize("away", [0.0, 15.0])
def test_a_process_that_waits_is_asked_again_when_tcp_has_sent_anew_what_was_lost_until_it_was_asked(
    reading: tuple[Partner, Any], clock: Clock, away: float
) -> None:
    partner, _ = reading
    open_, began = partner.open_, clock.now

    def opened() -> WatchedConnection:
        clock.now += away
        return open_()

    partner.open_ = opened
    clock.now += PATIENT
    partner.check(began, Quiet())
    assert partner.found is not None
    clock.now += clock.now - began + FIRST_WAIT - 0.1
    partner.check(began, Quiet())
    clock.now += 0.2
    with pytest.raises(FrozenError):
        partner.check(began, Quiet())


def test_a_network_that_was_away_when_a_process_was_asked_again_begins_anew(
    reading: tuple[Partner, Any], clock: Clock
) -> None:
    partner, _ = reading
    open_, began = partner.open_, clock.now

    def fail() -> WatchedConnection:
        raise psycopg.OperationalError("away")

    for seconds, opened in ((PATIENT, open_), (PATIENT + FIRST_WAIT, fail), (PATIENT + FIRST_WAIT, open_)):
        partner.open_ = opened
        clock.now += seconds
        partner.check(began, Quiet())
    clock.now += clock.now - began + FIRST_WAIT - 0.1
    assert partner.found is not None
    partner.check(began, Quiet())
    clock.now += 0.2
    assert is_given_up(partner, began, clock)


def test_a_long_statement_in_bulk_has_time_to_be_sent(
    reading: tuple[Partner, Any], engine: Engine, clock: Clock
) -> None:
    partner, _ = reading
    with engine.connect() as connection:
        watch = watch_of(connection)
    assert watch is not None
    line = Line(replace(watch[0], longest=None), partner)
    with line.waiting(int(1000 * SLOWEST)):
        clock.now += 1000
        line.check()
        assert partner.asked == float("-inf")
        clock.now += 2 * PATIENT
        line.check()
        assert partner.found is not None


def test_rows_that_are_sent_over_a_slow_network_are_waited_for(reading: tuple[Partner, Any], clock: Clock) -> None:
    partner, connection = reading
    began = clock.now
    with connection.cursor().copy("copy (select repeat('x', 10000) from generate_series(1, 50000)) to stdout") as rows:
        for _ in range(4):
            assert all(rows.read() for _ in range(500))  # more than is on its way
            assert not is_given_up(partner, began, clock)
        assert any(is_given_up(partner, began, clock) for _ in range(4))
    connection.close()


def is_given_up(partner: Partner, since: float, clock: Clock) -> bool:
    clock.now += 1000
    try:
        partner.check(since, Quiet())
    except FrozenError:
        return True
    return False
