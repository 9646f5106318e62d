import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pandas as pd
import psycopg
import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

import contextkit.arrow as arrow_module
import contextkit.connection.engines as engines_module
import contextkit.server as server_module
from contextkit import (
    ContextkitError,
    ContextkitWarning,
    DatabaseUnavailableError,
    Message,
    ReadOnlyError,
    SchemaError,
    add_context,
    append_messages,
    connect,
    contexts_df,
    delete_messages,
    fork_context,
    forks_df,
    history_df,
    info,
    messages_df,
    neighbors_df,
    read_df,
    schema_status,
    upgrade,
)
from contextkit.connection import (
    direct_engine,
    explain,
    is_pooled,
    libpq_uri,
    settings_of,
    translated_errors,
)
from contextkit.connection.pool import Pool
from contextkit.connection.silence import WatchedConnection
from contextkit.server import EmbeddedServer
from contextkit.watcher import postmaster
from tests.conftest import database_at

ODD_PASSWORD = "secret @:/?#[]%&=+'\"\\ é$x"
NEON = "ep-cool-name-123456.eu-central-1.aws.neon.tech"
POOLED = "ep-cool-name-123456-pooler.eu-central-1.aws.neon.tech"
MANY = "select i, {} as x from generate_series(1, 5000) i"
"""Rows enough that they are read in bulk."""


def until(condition: Callable[[], object], seconds: float = 15) -> bool:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


@pytest.fixture(scope="module")
def shared_url(server_url: str, migrated: str) -> str:
    """URL of a migrated database in which no test leaves anything."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"create database shared template {migrated}")
        url = database_at(server_url, "shared")
        with psycopg.connect(url) as inside:
            inside.execute("create sequence numbers")
            inside.execute("create table unique_texts (content text primary key)")
            inside.execute("insert into unique_texts values ('confidential')")
    return url


@pytest.fixture
def shared(shared_url: str) -> Iterator[Engine]:
    engine = connect(shared_url)
    yield engine
    engine.dispose()


class Admin:
    """What the server says about the connections to a database."""

    def __init__(self, server_url: str, database: str) -> None:
        self.connection = psycopg.connect(server_url, autocommit=True)
        self.database = database

    def ask(self, what: str, condition: str = "true") -> Any:
        query = f"select {what} from pg_stat_activity where datname = %s and {condition}"
        row = self.connection.execute(query.encode(), [self.database]).fetchone()
        assert row is not None
        return row[0]

    def backends(self, condition: str = "application_name = 'contextkit'") -> int:
        return int(self.ask("count(*)", condition))

    def running(self, marker: str) -> int:
        return self.backends(f"state = 'active' and query like '%%{marker}%%'")

    def terminate(self, condition: str = "true") -> int:
        """How many backends have ended; it waits until they have."""
        return int(self.ask("count(*) filter (where pg_terminate_backend(pid, 10000))", condition))


@pytest.fixture
def admin(server_url: str, database_url: str) -> Iterator[Admin]:
    admin = Admin(server_url, str(make_url(database_url).database))
    yield admin
    admin.connection.close()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Engines to dispose of at the end."""
    opened: list[Engine] = []
    yield opened
    for engine in opened:
        engine.dispose()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that the account of a server reaches, too, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="contextkit-tests-"))
    folder.chmod(0o711)
    yield folder
    assert until(lambda: not any(postmaster(home) for home in folder.iterdir()))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def asking_url(place: Path) -> Iterator[URL]:
    """URL of a server that asks for passwords, over TCP without TLS; its role odd has an odd one."""
    server = EmbeddedServer(place / "asking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "TCP", True)
        server.join()
        url = server.url
    with psycopg.connect(url, autocommit=True) as connection:
        literal = psycopg.sql.Literal(ODD_PASSWORD)
        connection.execute(psycopg.sql.SQL("create role odd login password {}").format(literal))
    yield make_url(url).set(username="odd", password=ODD_PASSWORD)
    server.leave()


def with_password(url: URL, scheme: str = "postgresql") -> str:
    return f"{scheme}://odd:{quote(ODD_PASSWORD, safe='')}@{url.host}:{url.port}/{url.database}"


def shown_of(error: BaseException) -> str:
    """What a traceback says of an error and of those that led to it, without lines of source."""
    led = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join([repr(error), *traceback.format_exception_only(error), shown_of(led) if led else ""])


def pid(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("select pg_backend_pid()")).scalar_one()


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("select count(*) from contexts")).scalar_one())


def timers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def script(code: str, *arguments: str) -> "subprocess.Popen[str]":
    start = (
        "import os, sys\nfrom sqlalchemy import text\nfrom contextkit import *\nfrom contextkit.arrow import fetch\n"
    )
    path = os.pathsep.join([str(Path(engines_module.__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", start + dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    found = process.stdout.readline()
    assert found, process.stderr.read()
    return found.strip()


# Which database


def test_the_argument_comes_first_then_the_environment_then_dotenv_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://u@of-dotenv/d\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@of-environment/d")
    assert connect("postgresql://u@given/d").url.host == "given"
    assert connect(make_url("postgresql://u@given/d")).url.host == "given"
    assert connect().url.host == "of-environment"
    monkeypatch.delenv("DATABASE_URL")
    assert connect().url.host == "of-dotenv"
    (tmp_path / "a" / ".env").write_text("DATABASE_URL=postgresql://u@nearer/d\n")
    assert connect().url.host == "nearer"


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_database_url_means_the_embedded_server_even_beside_a_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[Engine], server_url: str, empty: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", empty)
    (tmp_path / ".env").write_text("DATABASE_URL=postgresql://u@of-dotenv/d\n")
    engines.append(connect())
    settings = settings_of(engines[0])
    assert settings is not None
    assert settings.server is not None
    assert engines[0].url.query["host"] == make_url(server_url).query["host"]


@pytest.mark.parametrize("content", ["", "DATABASE_URL=\n", "DATABASE_URL\n", "OTHER=1\n"])
def test_no_url_anywhere_means_the_embedded_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: list[Engine], server_url: str, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL")
    (tmp_path / ".env").write_text(content)
    engines.append(connect())
    assert engines[0].url.query["host"] == make_url(server_url).query["host"]
    with engines[0].connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1


def test_a_dotenv_is_read_literally_and_with_the_mark_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("HOME", "/home/me")
    for encoding in ("utf-8", "utf-8-sig"):
        content = 'DATABASE_URL="postgresql://u:a${HOME}b$HOME@host/d"\r\n'
        (tmp_path / ".env").write_text(content, encoding=encoding)
        assert connect().url.password == "a${HOME}b$HOME"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_each_way_of_writing_postgresql_opens_the_database(shared_url: str, engines: list[Engine], scheme: str) -> None:
    engines.append(connect(f"  {scheme}{shared_url.removeprefix('postgresql')}\n"))
    assert len(contexts_df(engines[0])) == 0


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@host/d",
        "postgresql+psycopg2://u:secret@host/d",
        "postgresql+asyncpg://u:secret@host/d",
        "sqlite:///secret",
        "secret",
        "psql 'postgresql://u:secret@host/d'",
        "'postgresql://u:secret@host/d'",
        "postgresql:u:secret@host/d",
        "postgresql://u:secret@host:secret/d",
        "postgresql://u:sec@secret@host/d",
        "postgresql://u:sec@secret/secret@host/d",
        "postgresql://u:sec@secret:1/secret@host/d",
        "postgresql://u:sec@secret?secret@host/d",
        "postgresql://u:sec@secret?secret=secret@host/d",
        "postgresql://u:sec@secret#secret@host/d",
        "postgresql://u/v:secret@host/d",
        "postgresql://u:secret%00@host/d",
        "postgresql://u:secret@host1:1,host2:secret/d",
        "postgresql://u:secret@host/d?nonsense=secret",
    ],
)
def test_a_url_that_is_not_postgresqls_or_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with warnings.catch_warnings(record=True) as shown, pytest.raises(ValueError, match="the database URL") as error:
        connect(url)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is error.value.__context__ is None
    assert shown == []


@pytest.mark.parametrize("url", [b"postgresql://u:secret@host/d", 1, Path("secret")])
def test_what_is_no_text_is_refused_as_a_url(url: Any) -> None:
    with pytest.raises(ValueError, match="the database URL") as error:
        connect(url)
    assert "secret" not in str(error.value)


def test_parameters_of_node_tools_are_dropped_with_a_warning_and_those_of_libpq_kept(
    shared_url: str, engines: list[Engine]
) -> None:
    url = f"{shared_url}&pgbouncer=true&schema=public&connection_limit=1&application_name=mine"
    with pytest.warns(ContextkitWarning, match="dropped .*: connection_limit, pgbouncer, schema$") as shown:
        engines.append(connect(url))
    assert shown[0].filename == __file__
    with engines[0].connect() as connection:
        assert connection.execute(text("show application_name")).scalar_one() == "mine"
    with pytest.raises(ValueError, match=r"parameters that PostgreSQL lacks: verbose$"):
        connect(f"{shared_url}&verbose=1")


# Secrets


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{quote(ODD_PASSWORD, safe='')}@host/d",
        f"postgresql://u@host/d?password={quote(ODD_PASSWORD, safe='')}",
        f"postgresql://u:x@host/d?password=y&password={quote(ODD_PASSWORD, safe='')}",
        URL.create("postgresql", "u", ODD_PASSWORD, "host", database="d"),
    ],
)
def test_an_engine_shows_no_password_wherever_the_url_had_it(url: str | URL) -> None:
    engine = connect(url)
    assert engine.url.password == ODD_PASSWORD
    shown = f"{engine!r} {engine} {engine.url} {engine.url!r} {settings_of(engine)!r}"
    assert "secret" not in shown
    assert "password=" not in shown
    assert parse_qs(urlsplit(libpq_uri(engine)).query)["password"] == [ODD_PASSWORD]


def test_other_secrets_of_a_url_are_out_of_sight_and_still_used(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = connect("postgresql://u@host/d?sslpassword=secret&sslkey=/k&oauth_client_secret=secret")
    assert "secret=" not in f"{engine!r}{engine.url}{settings_of(engine)!r}"
    assert "secret" not in f"{engine.url.query}{settings_of(engine)!r}"
    assert parse_qs(urlsplit(libpq_uri(engine)).query)["sslpassword"] == ["secret"]
    handed: dict[str, Any] = {}

    def refuse(**arguments: Any) -> None:
        handed.update(arguments)
        raise psycopg.OperationalError("connection failed: no")

    monkeypatch.setattr(WatchedConnection, "connect", refuse)
    with pytest.raises(DatabaseUnavailableError):
        engine.connect()
    assert handed["sslpassword"] == handed["oauth_client_secret"] == "secret"


def test_an_odd_password_opens_the_database_on_the_pool_and_in_bulk(asking_url: URL, engines: list[Engine]) -> None:
    plain = f"postgresql://odd@{asking_url.host}:{asking_url.port}/postgres"
    for url in (
        asking_url,
        with_password(asking_url),
        with_password(asking_url, "postgres"),
        f"{plain}?password={quote(ODD_PASSWORD, safe='')}&application_name=a%20b%2Bc",
    ):
        engines.append(connect(url))
        assert read_df(engines[-1], text("select current_user::text as x"))["x"][0] == "odd"
        frame = read_df(engines[-1], text(MANY.format("current_setting('application_name')")))
        assert set(frame["x"]) == {"a b+c" if "a%20b%2Bc" in str(url) else "contextkit"}


def test_a_refusal_says_at_once_what_is_wrong_and_no_password(asking_url: URL, engines: list[Engine]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        free = closed.getsockname()[1]
    for url, reason in (
        (asking_url.set(password="secret-but-wrong"), "password authentication failed"),
        (URL.create("postgresql", "odd", None, asking_url.host, asking_url.port, "postgres"), "no password supplied"),
        (asking_url.set(username="nobody-known"), "nobody-known"),
        (asking_url.set(database="no-such-database"), "no-such-database"),
        (asking_url.set(port=free), "refused"),
        (asking_url.set(host="127.0.0.2"), "refused"),
        (asking_url.update_query_dict({"sslmode": "require"}), "SSL"),
        (asking_url.update_query_dict({"sslmode": "no-verify"}), "sslmode"),
        (asking_url.update_query_dict({"connect_timeout": "soon"}), "connect_timeout"),
    ):
        engines.append(connect(url))
        for use in (Engine.connect, contexts_df, lambda engine: pd.read_sql("select 1", engine)):
            started = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match=r"cannot connect to 127\.0\.0.*check") as error:
                use(engines[-1])
            assert time.monotonic() - started < 1
            assert reason in str(error.value)
            assert "secret" not in shown_of(error.value)


def test_a_host_that_does_not_exist_is_named() -> None:
    engine = connect("postgresql://u:secret@no-such-host.invalid/d")
    with pytest.raises(DatabaseUnavailableError, match=r"no-such-host\.invalid") as error:
        contexts_df(engine)
    assert "secret" not in shown_of(error.value)


def test_a_host_that_does_not_answer_is_waited_for_no_longer_than_connect_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        engine = connect(f"postgresql://u:secret@127.0.0.1:{silent.getsockname()[1]}/d", connect_timeout=0.5)
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailableError, match="timeout"):
            contexts_df(engine)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("url", "sslmode"),
    [
        ("postgresql://u@db.example.org/d", "require"),
        ("postgresql://u@db.example.org/d?sslmode=verify-full", "verify-full"),
        ("postgresql://u@db.example.org/d?sslmode=disable", "disable"),
        ("postgresql://u@/d?host=db.example.org", "require"),
        ("postgresql://u@/d?host=/tmp,db.example.org", "require"),
        ("postgresql://u@/d?host=localhost:1&host=db.example.org:2", "require"),
        ("postgresql://u@localhost/d?hostaddr=192.0.2.1", "require"),
        ("postgresql://u@localhost.example.org/d", "require"),
        ("postgresql://u@localhost/d", None),
        ("postgresql://u@127.0.0.1/d", None),
        ("postgresql://u@[::1]/d", None),
        ("postgresql://u@/d", None),
        ("postgresql://u@/d?host=/tmp", None),
    ],
)
def test_remote_hosts_are_asked_for_tls_unless_the_url_says_otherwise(url: str, sslmode: str | None) -> None:
    engine = connect(url)
    assert engine.url.query.get("sslmode") == sslmode
    assert parse_qs(urlsplit(libpq_uri(engine)).query).get("sslmode") == (sslmode and [sslmode])


def test_the_environment_of_libpq_says_whether_the_host_is_remote_and_what_tls_it_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGHOST", "db.example.org")
    assert connect("postgresql:///d").url.query["sslmode"] == "require"
    monkeypatch.setenv("PGSSLMODE", "prefer")
    assert "sslmode" not in connect("postgresql:///d").url.query
    assert "sslmode" not in connect("postgresql://u@db.example.org/d").url.query


# Neon's pooler


@pytest.mark.parametrize("url", [f"postgresql://u@{NEON}/d", f"postgresql://u@{NEON.upper()}/d?sslmode=require"])
def test_neons_direct_host_is_warned_about_or_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(ContextkitWarning, match="-pooler") as shown:
        connect(url)
    assert shown[0].filename == __file__
    with pytest.raises(ValueError, match="-pooler"):
        connect(url, require_pooled=True)
    monkeypatch.setenv("VERCEL", "1")
    with pytest.raises(ValueError, match="-pooler"):
        connect(url)


def test_a_host_among_the_parameters_is_checked_too() -> None:
    with pytest.raises(ValueError, match="-pooler"):
        connect(f"postgresql://u@/d?host={NEON}", require_pooled=True)


@pytest.mark.parametrize("host", [POOLED, "db.example.org", "neon.tech.example.org", "localhost", ""])
def test_the_pooled_host_and_hosts_of_others_pass(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERCEL", "1")
    with warnings.catch_warnings(action="error"):
        engine = connect(f"postgresql://u@{host}/d", require_pooled=True)
    assert is_pooled(engine.url) is (True if host == POOLED else None)


def test_the_direct_engine_leaves_the_pooler_out_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERCEL", "1")  # there a direct host is refused, but not to what asks for it
    for host in (POOLED, POOLED.upper()):
        url = f"postgresql://u:secret@{host}/d?channel_binding=require&sslpassword=hidden"
        pooled = connect(url, write=True, statement_timeout=7, connect_timeout=3)
        with warnings.catch_warnings(action="error"), direct_engine(pooled) as direct:
            assert direct is not pooled
            assert direct.url == pooled.url.set(host=NEON)
            settings = settings_of(direct)
            assert settings is not None
            assert settings.pool_size == 1
            assert (settings.write, settings.statement_timeout) == (True, 7)
            differing = {"host"}
            uris = [parse_qs(urlsplit(libpq_uri(engine)).query) for engine in (pooled, direct)]
            assert {key for key in uris[0] | uris[1] if uris[0].get(key) != uris[1].get(key)} == differing


def test_elsewhere_the_direct_engine_is_the_engine(shared: Engine, shared_url: str) -> None:
    foreign = create_engine(shared_url)
    for engine in (shared, foreign):
        with direct_engine(engine) as direct:
            assert direct is engine


# Reading only


def insert(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("insert into contexts default values"))


def insert_autocommit(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("insert into contexts default values"))


def insert_autocommit_engine(engine: Engine) -> None:
    insert(engine.execution_options(isolation_level="autocommit"))


def insert_autocommit_updated(engine: Engine) -> None:
    engine.update_execution_options(isolation_level="AUTOCOMMIT")
    insert(engine)


def insert_autocommit_session(engine: Engine) -> None:
    with Session(engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        session.execute(text("insert into contexts default values"))


def insert_not_read_only(engine: Engine) -> None:
    with engine.connect().execution_options(postgresql_readonly=0) as connection:
        connection.execute(text("insert into contexts default values"))
        connection.commit()


def insert_serializable(engine: Engine) -> None:
    insert(engine.execution_options(isolation_level="SERIALIZABLE"))


def insert_after_read_only(engine: Engine) -> None:
    with engine.connect().execution_options(postgresql_readonly=True) as connection:
        connection.execute(text("select 1"))
    insert(engine)


def insert_after_raw_autocommit(engine: Engine) -> None:
    raw = engine.raw_connection()
    raw.driver_connection.autocommit = True  # type: ignore[union-attr]
    raw.driver_connection.read_only = False  # type: ignore[union-attr]
    raw.close()
    insert(engine)


WRITES: list[Callable[[Engine], object]] = [
    add_context,
    upgrade,
    lambda engine: read_df(engine, text("insert into contexts default values returning name")),
    lambda engine: read_df(engine, text("select nextval('numbers')")),
    lambda engine: read_df(engine, text(MANY.format("nextval('numbers')"))),
    lambda engine: read_df(engine.execution_options(unrelated=1), text(MANY.format("nextval('numbers')"))),
    lambda engine: pd.read_sql("insert into contexts default values returning name", engine),
    lambda engine: pd.DataFrame({"a": [1]}).to_sql("a_table", engine),
    lambda engine: pd.DataFrame({"name": ["x"]}).to_sql("contexts", engine, if_exists="append", index=False),
    insert,
    insert_autocommit,
    insert_autocommit_engine,
    insert_autocommit_updated,
    insert_autocommit_session,
    insert_not_read_only,
    insert_serializable,
    insert_after_read_only,
    insert_after_raw_autocommit,
]


def written(url: str) -> int:
    query = (
        "select (select count(*) from contexts) + (select is_called::int from numbers) "
        "+ (select count(*) from pg_class where relname = 'a_table')"
    )
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("write", WRITES)
def test_an_engine_for_reading_refuses_every_write_and_says_what_to_do(
    shared: Engine, shared_url: str, write: Callable[[Engine], object]
) -> None:
    with pytest.raises(ReadOnlyError, match=r"connect\(write=True\)"):
        write(shared)
    assert written(shared_url) == 0


def test_a_raw_connection_of_an_engine_for_reading_reads_only(shared: Engine, shared_url: str) -> None:
    raw = shared.raw_connection()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        raw.cursor().execute("insert into contexts default values")
    raw.close()
    assert written(shared_url) == 0


def test_a_refused_write_of_a_function_shows_nothing_of_the_driver(shared: Engine) -> None:
    with pytest.raises(ReadOnlyError) as error:
        add_context(shared, "confidential")
    assert "psycopg" not in shown_of(error.value)
    assert "confidential" not in shown_of(error.value)


def test_an_engine_for_writing_writes_in_the_same_ways(engine: Engine, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create sequence numbers")
    for count, write in enumerate(
        [
            WRITES[7],
            WRITES[8],
            insert,
            insert_autocommit,
            insert_autocommit_engine,
            insert_autocommit_session,
        ],
        1,
    ):
        write(engine)
        assert written(database_url) == count
    for read in WRITES[2:6]:  # read_df only reads, on any engine
        with pytest.raises(ReadOnlyError, match=r"engine\.begin\(\)"):
            read(engine)
    assert written(database_url) == count


# The pool


def test_twenty_threads_share_no_more_than_pool_size_connections(
    database_url: str, admin: Admin, engines: list[Engine]
) -> None:
    engines.append(connect(database_url, pool_size=3))
    query = text(
        "select count(*) from pg_stat_activity, pg_sleep(0.02) "
        "where datname = current_database() and application_name = 'contextkit'"
    )

    def count(_: int) -> int:
        with engines[0].connect() as connection:
            return int(connection.execute(query).scalar_one())

    with ThreadPoolExecutor(20) as threads:
        counts = list(threads.map(count, range(60)))
    assert len(counts) == 60
    assert max(counts) == 3


def test_a_lent_place_goes_to_who_waits_for_one(
    database_url: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.append(connect(database_url, pool_size=2))
    pool = engines[0].pool
    assert isinstance(pool, Pool)
    waits = threading.Event()
    wait = pool._pool.not_empty.wait
    monkeypatch.setattr(pool._pool.not_empty, "wait", lambda timeout: waits.set() or wait(timeout))
    monkeypatch.setattr(pool, "checkedout", lambda: 0)  # as for two who ask at the same moment, and wait out of turn
    with engines[0].connect(), ThreadPoolExecutor(1) as threads:
        place = pool.lend()
        assert place is not None
        assert pool.lend() is None
        waiting = threads.submit(pid, engines[0])
        assert waits.wait(timeout=5)
        pool.take_back(place)
        assert waiting.result(timeout=5) != 0


def test_a_connection_is_taken_before_a_place_without_one(database_url: str, engines: list[Engine]) -> None:
    engines.append(connect(database_url, pool_size=3))
    pool = engines[0].pool
    assert isinstance(pool, Pool)
    first = pid(engines[0])
    lent = [pool.lend(), pool.lend()]
    for place in lent:
        assert place is not None
        pool.take_back(place)
    assert pid(engines[0]) == first


@pytest.mark.direct("a pooler has its own list of roles")
def test_a_read_in_bulk_makes_room_where_the_role_has_one_connection(
    database_url: str, admin: Admin, engines: list[Engine]
) -> None:
    role = f"one_{os.urandom(8).hex()}"
    admin.connection.execute(f"create role {role} login connection limit 1".encode())
    try:
        engines.append(connect(make_url(database_url).set(username=role), pool_size=3))
        assert len(read_df(engines[0], text(MANY.format("i")))) == 5000
    finally:
        engines[0].dispose()
        admin.connection.execute(f"drop role {role}".encode())


@pytest.mark.parametrize(("pool_size", "closed"), [(1, WatchedConnection), (2, WatchedConnection), (3, Connection)])
def test_an_interrupt_before_a_read_in_bulk_leaves_every_place(
    database_url: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch, pool_size: int, closed: type
) -> None:
    engines.append(connect(database_url, pool_size=pool_size))
    with engines[0].connect(), engines[0].connect() if pool_size > 1 else nullcontext():
        pass  # two that are idle

    def interrupt(_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(closed, "close", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_df(engines[0], text(MANY.format("i")))
    assert engines[0].pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.direct("a pooler ends its own connections")
def test_a_connection_lost_outside_a_transaction_does_not_stay_out_of_the_pool(
    database_url: str, admin: Admin, engines: list[Engine]
) -> None:
    engines.append(connect(database_url, pool_size=1))
    with engines[0].connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")  # which is taken back at the end
        driver: Any = connection.connection.driver_connection
        driver.autocommit = True
        admin.terminate()
        with pytest.raises(psycopg.OperationalError):
            driver.execute("select 1")
    assert engines[0].pool.checkedout() == 0  # type: ignore[attr-defined]
    assert pid(engines[0]) > 0


@pytest.mark.parametrize("ends", [True, False])
def test_two_statements_in_one_round_trip_only_read_on_one_snapshot(
    database_url: str, engines: list[Engine], ends: bool
) -> None:
    engines.append(connect(database_url, write=True))
    settings = text("select current_setting('transaction_read_only'), current_setting('transaction_isolation') as x")
    with engines[0].connect() as connection:
        first, columns = arrow_module.columns_after(connection, text("select 1"), settings, ends=ends)
    assert first == (1,)
    assert [column.values.to_pylist() for column in columns] == [["on"], ["repeatable read"]]


def test_a_connection_more_is_waited_for_and_then_refused(
    database_url: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engines_module.POOL_WAIT == 10
    monkeypatch.setattr(engines_module, "POOL_WAIT", 0.3)
    engines.append(connect(database_url, pool_size=1))
    with engines[0].connect(), pytest.raises(DatabaseUnavailableError, match=r"in use.*pool_size"):
        contexts_df(engines[0])
    assert len(contexts_df(engines[0])) == 0
    held = engines[0].connect()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(contexts_df, engines[0])
        held.close()
        assert len(waiting.result()) == 0


def test_a_place_goes_to_who_waits_for_it_and_not_to_who_gave_it_back(database_url: str, engines: list[Engine]) -> None:
    engines.append(connect(database_url, pool_size=1))
    order: list[str] = []
    pool: Any = engines[0].pool

    def use(name: str) -> None:
        with engines[0].connect():
            order.append(name)

    held = engines[0].connect()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(use, "who waits")
        while not pool._turn.locked():
            pass
        held.close()
        use("who gave it back")
        waiting.result()
    assert order == ["who waits", "who gave it back"]
    assert pool.checkedout() == 0


@pytest.mark.direct("counts the server's connections")
def test_all_connections_are_closed_some_time_after_the_last_was_given_back(
    database_url: str, admin: Admin, engines: list[Engine]
) -> None:
    engines.append(connect(database_url, idle_timeout=0.3))
    for _ in range(2):
        with engines[0].connect() as one, engines[0].connect() as two, engines[0].connect() as three:
            for connection in (one, two, three):
                connection.execute(text("select 1"))
        assert admin.backends() == 3
        read_df(engines[0], text(MANY.format("1")))
        assert until(lambda: admin.backends() == 0)
        assert until(lambda: timers() == [])


@pytest.mark.direct("counts the server's connections")
def test_no_connection_is_closed_while_one_is_in_use(database_url: str, admin: Admin, engines: list[Engine]) -> None:
    engines.append(connect(database_url, idle_timeout=0.1))
    with engines[0].connect() as connection:
        before = connection.execute(text("select pg_backend_pid()")).scalar_one()
        pid(engines[0])
        assert until(lambda: timers() == [])
        assert connection.execute(text("select pg_backend_pid()")).scalar_one() == before
        assert admin.backends() == 2
    assert until(lambda: admin.backends() == 0)


def test_an_engine_with_a_long_idle_timeout_keeps_its_connection(database_url: str, engines: list[Engine]) -> None:
    engines.append(connect(database_url, idle_timeout=600))
    assert len({pid(engines[0]) for _ in range(5)}) == 1


@pytest.mark.parametrize(("fresh", "asked"), [(60, 0), (0, 2)])
def test_a_connection_is_asked_whether_it_works_unless_it_was_used_a_moment_ago(
    reader: Engine, monkeypatch: pytest.MonkeyPatch, fresh: float, asked: int
) -> None:
    answers, calls = WatchedConnection.answers, list[WatchedConnection]()
    monkeypatch.setattr(WatchedConnection, "answers", lambda one: calls.append(one) or answers(one))
    monkeypatch.setattr(engines_module, "FRESH", fresh)
    for _ in range(3):
        assert pid(reader)
    assert len(calls) == asked


def test_a_connection_that_broke_between_two_uses_is_replaced_unseen(reader: Engine, admin: Admin) -> None:
    with reader.connect() as one, reader.connect() as two:
        assert one.connection.is_valid
        assert two.connection.is_valid
    for use in (contexts_df, lambda engine: pd.read_sql("select 1", engine), rows):
        assert admin.terminate() > 0
        use(reader)


def test_no_transaction_is_left_open(engine: Engine, admin: Admin) -> None:
    context = add_context(engine)
    history_df(engine, context)
    info(engine)
    pd.read_sql("select 1", engine)
    read_df(engine, text(MANY.format("1")))
    with pytest.raises(ContextkitError):
        read_df(engine, text("select 1/0"))
    with pytest.raises(ContextkitError):
        read_df(engine, text(MANY.format("1/(i-3000)")))
    assert until(lambda: admin.backends("state <> 'idle'") == 0)
    history_df(engine, context)
    assert admin.backends("true") == admin.backends("state = 'idle'") == 1


def test_an_idle_notebook_is_called_contextkit_and_opens_nothing_before_use(
    database_url: str, admin: Admin, engines: list[Engine]
) -> None:
    engines.append(connect(database_url))
    connect("postgresql://u@127.0.0.1:1/d")
    assert admin.backends("true") == 0
    contexts_df(engines[0])
    assert admin.backends("application_name <> 'contextkit'") == 0
    assert admin.backends() == 1


def test_connections_start_without_options_and_without_prepared_statements(engine: Engine) -> None:
    with engine.connect() as connection:
        for _ in range(10):
            connection.execute(text("select 1"))
            connection.commit()
        assert connection.execute(text("select count(*) from pg_prepared_statements")).scalar_one() == 0
        raw: Any = connection.connection.driver_connection
        assert raw.prepare_threshold is None
        assert "options" not in raw.info.get_parameters()
    assert "options" not in parse_qs(urlsplit(libpq_uri(engine)).query)


def test_connections_that_nobody_closed_come_back_when_they_are_collected(
    database_url: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "POOL_WAIT", 0.1)
    engines.append(connect(database_url, pool_size=1))
    for _ in range(2):
        result = engines[0].connect().execute(text("select generate_series(1, 10)"))
        assert next(iter(result)) == (1,)
        del result
        gc.collect()
    assert len(contexts_df(engines[0])) == 0


def test_a_connection_can_be_given_back_while_the_interpreter_ends(
    database_url: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    engines.append(connect(database_url, idle_timeout=0.1))
    monkeypatch.setattr(threading.Timer, "start", refuse)
    assert pid(engines[0]) == pid(engines[0])
    monkeypatch.undo()
    pid(engines[0])
    assert until(lambda: engines[0].pool.checkedin() == 0)  # type: ignore[attr-defined]


@pytest.mark.direct("counts the server's connections")
def test_a_cursor_left_open_holds_its_connection_until_it_is_closed(
    database_url: str, admin: Admin, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "POOL_WAIT", 0.1)
    engines.append(connect(database_url, pool_size=1, idle_timeout=0.2))
    query = "select generate_series(1, 10)"
    frames: Any = pd.read_sql(query, engines[0].execution_options(stream_results=True), chunksize=1)
    assert len(next(frames)) == 1
    with pytest.raises(DatabaseUnavailableError, match="end what uses them"):
        contexts_df(engines[0])
    frames.close()
    gc.collect()
    assert len(contexts_df(engines[0])) == 0
    assert until(lambda: admin.backends() == 0)


def test_disposing_ends_connections_threads_and_the_hold_on_the_server(home: Path, server_url: str) -> None:
    before = set((home / "holders").iterdir())
    engine = connect(idle_timeout=600)
    settings = settings_of(engine)
    assert settings is not None
    assert settings.server is not None
    pids = []
    for _ in range(2):
        pids.append(pid(engine))
        assert settings.server.held
        assert timers()
        engine.dispose()
        assert until(lambda: timers() == [])
        assert not settings.server.held
        assert set((home / "holders").iterdir()) == before
    with psycopg.connect(server_url) as connection:
        query = "select count(*) from pg_stat_activity where pid = any(%s)"
        assert until(lambda: connection.execute(query, [pids]).fetchone() == (0,))


@pytest.mark.direct("counts the server's connections")
def test_a_connection_in_use_while_its_engine_is_disposed_of_works_on_and_closes_when_given_back(
    database_url: str, admin: Admin, engines: list[Engine]
) -> None:
    engines.append(connect(database_url, idle_timeout=600))
    with engines[0].connect() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1
        engines[0].dispose()
        assert connection.execute(text("select 1")).scalar_one() == 1
        assert admin.backends() == 1
    assert until(lambda: admin.backends() == 0)
    assert len(contexts_df(engines[0])) == 0


def test_an_engine_that_nobody_has_any_more_leaves_the_server(home: Path, server_url: str) -> None:
    before = set((home / "holders").iterdir())
    engine = connect(idle_timeout=0.1)
    pid(engine)
    del engine
    assert until(lambda: gc.collect() >= 0 and set((home / "holders").iterdir()) == before)


def test_an_embedded_server_that_was_killed_is_started_again_by_the_next_use(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place / "killed"
    monkeypatch.setenv("CONTEXTKIT_HOME", str(home))
    engine = connect()
    before = pid(engine)
    server = postmaster(home)
    assert server
    backends = server.children()
    server.kill()
    assert until(lambda: postmaster(home) is None and not any(backend.is_running() for backend in backends))
    assert pid(engine) != before
    engine.dispose()


@pytest.mark.direct("counts the server's connections")
def test_a_forked_child_has_connections_of_its_own(database_url: str, admin: Admin) -> None:
    code = """
        import threading
        engine = connect(sys.argv[1], idle_timeout=600)
        pid = lambda: pd.read_sql("select pg_backend_pid()", engine).iloc[0, 0]
        import pandas as pd
        before = pid()
        child = os.fork()
        if child == 0:
            own = pid()
            print(own != before, len(contexts_df(engine)), flush=True)
            engine.dispose()
            sys.exit()
        os.waitpid(child, 0)
        print(pid() == before, flush=True)
        child = os.fork()
        if child == 0:
            sys.exit()  # whatever it collects at its end, it leaves our connection alone
        os.waitpid(child, 0)
        print(pid() == before, flush=True)
        engine = connect(sys.argv[1], idle_timeout=0.1)
        held = engine.connect()
        if os.fork() == 0:
            del held
            pid()
            sys.stdin.read()
            os._exit(0)
        held.close()
        print("waiting", flush=True)
        sys.stdin.read()
    """
    process = script(code, database_url)
    assert [line(process) for _ in range(4)] == ["True 0", "True", "True", "waiting"]
    # Only the first engine of the parent, with its long timeout, holds one: the child closes its own, too.
    assert until(lambda: admin.backends() == 1)
    process.communicate()
    assert process.returncode == 0


def test_both_drivers_give_up_a_network_that_is_gone() -> None:
    engine = connect("postgresql://u@host/d?tcp_user_timeout=7", connect_timeout=2.5)
    given = parse_qs(urlsplit(libpq_uri(engine)).query)
    assert given["keepalives_idle"] == given["keepalives_interval"] == ["3"]
    assert given["tcp_user_timeout"] == ["7"]


@pytest.mark.parametrize(
    "numbers",
    [
        {"pool_size": 0},
        {"pool_size": 2.5},
        {"pool_size": True},
        {"idle_timeout": 0},
        {"connect_timeout": "5"},
        {"connect_timeout": -1.0},
        {"statement_timeout": 3e6},
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any]) -> None:
    (name,) = numbers
    with pytest.raises(ValueError, match=name):
        connect("postgresql://u@host/d", **numbers)
    for value in (float("nan"), float("inf"), 0):
        with pytest.raises(ValueError, match="statement_timeout"):
            connect("postgresql://u@host/d", statement_timeout=value)


# Interrupting and limiting


@pytest.mark.direct("counts the server's connections")
def test_an_interrupt_ends_a_read_here_and_on_the_server(database_url: str, admin: Admin) -> None:
    code = """
        import pandas as pd
        engine = connect(sys.argv[1], idle_timeout=0.2)
        numbers = "from generate_series(1, 100000000) i /* marker */"
        for read in (
            lambda: pd.read_sql("select pg_sleep(60) /* marker */", engine),
            lambda: read_df(engine, text("select pg_sleep(60)::text /* marker */")),
            lambda: fetch(engine, text("select pg_sleep(60)::text /* marker */"), bulk=True),
            lambda: fetch(engine, text(f"select pg_sleep(0.001)::text {numbers}"), bulk=True),
            lambda: fetch(engine, text(f"select i {numbers}"), bulk=True),
        ):
            print("reading", flush=True)
            try:
                read()
            except BaseException as error:
                print(type(error).__name__, flush=True)
            print(len(contexts_df(engine)), len(read_df(engine, text(sys.argv[2]))), flush=True)
            sys.stdin.readline()
    """
    process = script(code, database_url, MANY.format("1"))
    assert process.stdin is not None
    for _ in range(5):
        assert line(process) == "reading"
        assert until(lambda: admin.running("marker"))
        process.send_signal(signal.SIGINT)
        assert until(lambda: not admin.running("marker"), seconds=1)
        assert line(process) == "KeyboardInterrupt"
        assert line(process) == "0 5000"
        assert until(lambda: admin.backends() == 0)
        process.stdin.write("\n")
        process.stdin.flush()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    "statement",
    [
        "select pg_sleep(60)::text",
        "select pg_sleep(60)::text from generate_series(1, 5000)",
        "select i, pg_sleep(0.000001)::text from generate_series(1, 100000000) i",
    ],
)
def test_statement_timeout_ends_reads_on_the_pool_and_in_bulk(
    database_url: str, admin: Admin, engines: list[Engine], statement: str
) -> None:
    engines.append(connect(database_url, statement_timeout=0.3))
    with pytest.raises(ContextkitError, match="statement_timeout") as error:
        read_df(engines[0], text(statement))
    assert type(error.value) is ContextkitError
    assert "pg_sleep" not in str(error.value)
    assert until(lambda: admin.running("pg_sleep") == 0, seconds=1)
    assert len(contexts_df(engines[0])) == 0


def test_statement_timeout_is_of_the_transaction_and_not_of_the_session(
    database_url: str, engines: list[Engine]
) -> None:
    engines.append(connect(database_url, write=True, statement_timeout=1.5, pool_size=1))
    for _ in range(2):
        with engines[0].connect() as connection:
            assert connection.execute(text("show statement_timeout")).scalar_one() == "1500ms"
            connection.commit()
            assert connection.execute(text("show statement_timeout")).scalar_one() == "1500ms"
        setting = MANY.format("current_setting('statement_timeout')")
        assert set(read_df(engines[0], text(setting))["x"]) == {"1500ms"}
        raw = engines[0].raw_connection()
        cursor = raw.cursor()
        cursor.execute("show statement_timeout")
        assert cursor.fetchone() == ("0",)
        raw.close()


def test_nothing_that_a_raw_connection_set_reaches_the_next_use(engine: Engine) -> None:
    raw: Any = engine.raw_connection()
    raw.driver_connection.read_only = True
    raw.driver_connection.autocommit = True
    raw.close()
    with engine.connect() as connection:
        connection.execute(text("insert into contexts default values"))
        connection.rollback()
    assert rows(engine) == 0
    insert(engine)
    assert rows(engine) == 1


# Errors


@pytest.mark.parametrize("open_engine", [lambda url: connect(url, write=True), create_engine])
def test_missing_tables_are_a_schema_error_that_says_upgrade(
    empty_url: str, engines: list[Engine], open_engine: Callable[[str], Engine]
) -> None:
    engines.append(open_engine(empty_url))
    for use in (contexts_df, add_context, messages_df, forks_df, lambda engine: history_df(engine, "0" * 32)):
        with pytest.raises(SchemaError, match=r"upgrade\(engine\)"):
            use(engines[0])


def test_a_missing_column_is_a_schema_error(engine: Engine, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table messages drop column model")
    with pytest.raises(SchemaError, match="column is missing"):
        messages_df(engine)


def test_a_role_that_the_enum_lacks_is_a_value_error(engine: Engine, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create type speaker as enum ('user', 'assistant')")
        connection.execute("alter table messages alter column role type speaker using role::speaker")
    context = add_context(engine)
    append_messages(engine, context, [{"role": "user", "content": "hello"}])
    with pytest.raises(ValueError, match="the enum lacks"):
        append_messages(engine, context, [{"role": "tool", "content": "confidential"}])
    with pytest.raises(ValueError, match="the enum lacks"):
        messages_df(engine, Message.role == "tool")
    assert list(messages_df(engine)["content"]) == ["hello"]


@pytest.mark.parametrize(
    "statement",
    [
        "insert into unique_texts values ('confidential')",
        "select cast('confidential' as int)",
        "select 'confidential' from nowhere",
        "do $$ begin raise exception 'confidential'; end $$",
    ],
)
@pytest.mark.parametrize("open_engine", [lambda url: connect(url, write=True), create_engine])
def test_errors_repeat_neither_content_nor_the_drivers_text(
    shared_url: str, engines: list[Engine], open_engine: Callable[[str], Engine], statement: str
) -> None:
    engines.append(open_engine(shared_url))
    with (
        pytest.raises((ContextkitError, ValueError), match="SQLSTATE") as error,
        translated_errors(),
        engines[0].begin() as connection,
    ):
        connection.execute(text(statement))
    assert "psycopg" not in shown_of(error.value)
    assert "confidential" not in shown_of(error.value)


@pytest.mark.parametrize(
    "expression",
    ["(array['confidential'])[1 + i / 6000]::int", "case when i = 4999 then 'confidential' else '1' end::int"],
)
def test_errors_of_bulk_reads_repeat_no_content_wherever_they_come_up(shared: Engine, expression: str) -> None:
    with pytest.raises((ContextkitError, ValueError)) as error:
        read_df(shared, text(MANY.format(expression)))
    assert "confidential" not in shown_of(error.value)
    assert "SQLSTATE" in str(error.value)
    assert not isinstance(error.value, DatabaseUnavailableError)


def test_a_typo_on_the_engine_stays_sqlalchemys_error(shared: Engine) -> None:
    with pytest.raises(pd.errors.DatabaseError, match="nowhere") as error:
        pd.read_sql("select * from nowhere", shared)
    assert isinstance(error.value.__cause__, ProgrammingError)
    with shared.connect() as connection, pytest.raises(ProgrammingError, match="syntax"):
        connection.execute(text("selct 1"))


@pytest.mark.parametrize(
    "read",
    [
        lambda engine: read_df(engine, text("select pg_sleep(60)::text")),
        lambda engine: read_df(engine, text("select pg_sleep(60)::text from generate_series(1, 5000)")),
        lambda engine: read_df(engine, text("select i, pg_sleep(0.000001)::text from generate_series(1, 100000000) i")),
        lambda engine: pd.read_sql("select pg_sleep(60)", engine),
    ],
)
def test_a_connection_lost_during_a_read_is_unavailable_and_the_next_read_works(
    reader: Engine, admin: Admin, read: Callable[[Engine], object]
) -> None:
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read, reader)
        assert until(lambda: admin.terminate("state = 'active' and query like '%%pg_sleep%%'"))
        with pytest.raises(DatabaseUnavailableError, match="run it again"):
            reading.result()
    assert len(contexts_df(reader)) == 0


def test_a_connection_lost_while_a_read_is_planned_does_not_stay_out_of_the_pool(
    database_url: str, engines: list[Engine], admin: Admin
) -> None:
    with psycopg.connect(database_url) as connection:
        # What is immutable the planner itself calls.
        body = "begin perform pg_sleep(60); return 1; end"
        connection.execute(f"create function slowly() returns int immutable language plpgsql as '{body}'")
    engines.append(connect(database_url, write=True))
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_df, engines[0], text("select slowly() as one"))
        assert until(lambda: admin.terminate("state = 'active' and query like 'explain%%slowly%%'"))
        with pytest.raises(DatabaseUnavailableError, match="run it again"):
            reading.result()
    assert engines[0].pool.checkedout() == 0


@pytest.mark.parametrize("state", ["08P01", "08006", "25P03", "25P04", "53300", "57P01", "57P03", "57P05"])
def test_a_state_that_ends_the_connection_is_unavailable(state: str) -> None:
    error = explain(psycopg.errors.lookup(state)("confidential"))
    assert isinstance(error, DatabaseUnavailableError)
    assert state in str(error)
    assert "confidential" not in str(error)


def test_an_unknown_state_is_named() -> None:
    class Strange(Exception):  # noqa: N818
        sqlstate = "XY123"

    assert str(explain(Strange("confidential"))) == "the database refused the statement (SQLSTATE XY123)"


def test_a_value_that_the_driver_cannot_carry_is_a_value_error_and_no_lost_connection(shared: Engine) -> None:
    for value in ("a\0confidential", object()):
        with (
            pytest.raises(ValueError, match="a value cannot be sent") as error,
            translated_errors(),
            shared.connect() as connection,
        ):
            connection.execute(text("select :value"), {"value": value})
        assert "confidential" not in str(error.value)


# Engines of others


def test_a_plain_engine_works_with_every_function(database_url: str, engines: list[Engine]) -> None:
    engine = create_engine(database_url)
    engines.append(engine)
    assert settings_of(engine) is None
    with pytest.raises(ValueError, match="not opened by contextkit"):
        libpq_uri(engine)
    assert upgrade(engine) == schema_status(engine)["head"]
    context = add_context(engine, "plain")
    vector = [1.0] + [0.0] * 1535
    written = append_messages(
        engine,
        context,
        [{"role": "user", "content": "one", "embedding": vector}, {"role": "assistant", "content": "two"}],
    )
    fork = fork_context(engine, context, 1)
    assert len(contexts_df(engine)) == len(forks_df(engine)) == 2
    assert list(history_df(engine, [context, fork])["content"]) == ["one", "two", "one"]
    assert neighbors_df(engine, vector, k=1)["message_id"][0] == written["message_id"][0]
    assert delete_messages(engine, written["message_id"]) == 2
    assert len(messages_df(engine)) == 0
    assert len(read_df(engine, text(MANY.format("1")))) == 5000
    assert info(engine)["embedded"] is False


def test_a_plain_engine_that_reaches_nothing_is_unavailable_and_shows_no_password() -> None:
    with pytest.raises(DatabaseUnavailableError) as error:
        contexts_df(create_engine("postgresql+psycopg://u:secret@127.0.0.1:1/d"))
    assert "secret" not in str(error.value)
