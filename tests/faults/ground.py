"""A server that may be killed, behind a proxy, and what happens to a call when the network fails."""

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import psycopg
from sqlalchemy import make_url

from contextkit import DatabaseUnavailableError, connect, load_sample, upgrade
from contextkit.server import SOCKET, EmbeddedServer
from contextkit.watcher import postmaster
from tests.faults.cases import CASES, Case, folder, state_of
from tests.faults.proxy import Plan, Proxy, running_proxy
from tests.test_connection import until

CONNECT_TIMEOUT = 2.0
HANGS = 120.0


@dataclass
class Outcome:
    """How a call ended."""

    value: Any
    error: BaseException | None
    seconds: float


class Ground:
    """A server of one's own and the proxy in front of it."""

    def __init__(self, server: EmbeddedServer, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy

    def direct(self, database: str) -> str:
        return make_url(self.server.url).set(database=database).render_as_string(hide_password=False)

    def proxied(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.proxy.port}/{database}"

    @contextmanager
    def database(self, case: Case, tablespace: str = "pg_default") -> Iterator[str]:
        """Name of a database as the case needs it."""
        name = f"fault_{uuid.uuid4().hex}"
        with psycopg.connect(self.server.url, autocommit=True) as admin:
            admin.execute(f"create database {name} template {case.template} tablespace {tablespace} strategy file_copy")
        with psycopg.connect(self.direct(name)) as connection:
            connection.execute(case.prepare)
        try:
            yield name
        finally:
            with psycopg.connect(self.server.url, autocommit=True) as admin:
                admin.execute(f"drop database {name} with (force)")

    def connections(self, database: str) -> int:
        query = "select count(*) from pg_stat_activity where datname = %s and application_name = 'contextkit'"
        with psycopg.connect(self.server.url, autocommit=True) as admin:
            row = admin.execute(query, [database]).fetchone()
        assert row is not None
        return int(row[0])

    def kill(self) -> None:
        """End the server and all of its processes, as a power cut does."""
        server = postmaster(self.server.home)
        assert server is not None
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def killed_when_struck(self) -> threading.Thread:
        """A thread that kills the server when the fault comes, and starts it again."""

        def kill() -> None:
            if self.proxy.struck.wait(HANGS):
                self.kill()
                self.proxy.fail("drop")
                self.server.join()

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        return thread


@contextmanager
def running_ground() -> Iterator[Ground]:
    place = Path(tempfile.mkdtemp(prefix="contextkit-tests-"))
    place.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        server = EmbeddedServer(place / "home")
        server.join()
        stack.callback(lambda: until(lambda: postmaster(server.home) is None))
        stack.callback(server.leave)
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("alter system set fsync = off")
            admin.execute("select pg_reload_conf()")
            admin.execute("create database filled")
        ground = Ground(server, stack.enter_context(running_proxy(str(_socket(server)))))
        engine = connect(ground.direct("filled"), write=True)
        upgrade(engine)
        load_sample(engine)
        engine.dispose()
        with psycopg.connect(ground.direct("filled"), autocommit=True) as connection:
            connection.execute("analyze")  # so that reads of many rows are expected to be such
        yield ground


def _socket(server: EmbeddedServer) -> Path:
    return Path(str(make_url(server.url).query["host"])) / SOCKET


def outcome(work: Callable[[], Any]) -> Outcome:
    """How a call ends, which has to within two minutes."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            future.set_exception(error)

    started = time.monotonic()
    threading.Thread(target=run, daemon=True).start()
    error = future.exception(HANGS)
    return Outcome(None if error else future.result(), error, time.monotonic() - started)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, pd.DataFrame):
        return left.equals(right)
    if isinstance(left, pd.Series):
        return left.astype(object).equals(right.astype(object))
    return bool(left == right)


@dataclass
class Undisturbed:
    """What a case does when nothing fails."""

    value: Any
    before: Any
    after: Any
    received: int
    seconds: float


def undisturbed(ground: Ground, name: str) -> Undisturbed:
    case = CASES[name]
    with ground.database(case) as database, folder() as place:
        before = state_of(ground.direct(database))
        engine = connect(ground.proxied(database), write=True)
        ground.proxy.plan(None)
        usual = outcome(lambda: case.call(engine, Path(place)))
        if usual.error is not None:
            raise usual.error
        received = ground.proxy.received
        engine.dispose()
        return Undisturbed(usual.value, before, state_of(ground.direct(database)), received, usual.seconds)


def struck(ground: Ground, name: str, plan: Plan, normal: Undisturbed, *, warm: bool = False) -> Outcome:
    """Let a case meet a fault, and hold what comes of it to the contract."""
    case = CASES[name]
    with ground.database(case) as database, folder() as place, ExitStack() as stack:
        stack.callback(ground.proxy.heal)
        url = ground.proxied(database)
        engine = connect(url, write=True, connect_timeout=CONNECT_TIMEOUT)
        stack.callback(engine.dispose)
        if warm:
            engine.connect().close()
        ground.proxy.plan(plan)
        killer = ground.killed_when_struck() if plan.fault == "kill" else None
        ended = outcome(lambda: case.call(engine, Path(place)))
        if killer is not None:
            ground.proxy.struck.set()  # also when it was not met
            killer.join(HANGS)
        ground.proxy.heal()
        engine.dispose()
        assert until(lambda: ground.connections(database) == 0), "a connection is left"
        assert until(lambda: not left_threads()), f"threads are left: {left_threads()}"
        state = state_of(ground.direct(database))
        check(case, ended, state, normal)
        if case.again or not case.writes:
            with folder() as another:
                value = case.call(engine, Path(another))
            assert case.writes or same(value, normal.value), "the next call gives something else"
            assert state_of(ground.direct(database)) == normal.after, "the next call ends elsewhere"
        engine.dispose()
    return ended


def left_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("contextkit")]


def check(case: Case, ended: Outcome, state: Any, normal: Undisturbed) -> None:
    """What may be: the whole result and its effect, or an error that says truly what there is."""
    if ended.error is None:
        assert same(ended.value, normal.value), "it succeeded with another result"
        assert state == normal.after, "it succeeded without its effect"
        return
    if not isinstance(ended.error, DatabaseUnavailableError):
        raise ended.error
    if case.batches:
        return
    unknown = "unknown" in str(ended.error)
    assert not unknown or case.writes, "it writes nothing, so nothing is unknown"
    allowed = [normal.before, normal.after] if unknown else [normal.before]
    assert state in allowed, f"it is not known to have written, and has: {ended.error}"
