"""One embedded server for the whole run; each test has a database of its own on it.

With CONTEXTKIT_TEST_POOLER, a program such as pgbouncer, that runs in front of the server and tests go through it;
those marked `direct`, with a reason, do not.
"""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from contextkit import connect, upgrade
from contextkit.server import EmbeddedServer
from tests.pooler import Pooler, running_pooler

POOLERS: dict[str, Pooler] = {}
"""The pooler in front of a server, by the server's URL."""

SLOWEST = (
    "test_server",
    "test_answers",
    "test_hostile",
    "test_connection",
    "test_faults",
    "test_secrets",
    "test_foreign",
    "test_distributed",
    "test_migrate",
    "test_store",
    "test_history",
    "test_frames",
    "test_check",
    "test_export",
    "test_embed",
    "test_neighbors",
    "test_import_killed",
    "test_interrupted_kernel",
    "test_indexes",
    "test_injection",
    "test_import",
    "test_concurrency",
    "test_nearest",
    "test_fuzz",
    "test_explore",
    "test_additions",
    "test_plots",
    "test_readme",
    "test_show",
)
"""Files that take longest. They come first, so that no process is left alone with one at the end."""

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""
ROOM = 4 * 2**30  # bytes

collect_ignore = ["fuzz/one.py"]  # it needs the fuzzer, which `make fuzz` installs elsewhere

# Shells let what runs in the background ignore interrupts, and some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CONTEXTKIT_TEST_POOLER"):
        config.addinivalue_line("filterwarnings", "ignore:a pooler keeps no settings")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def new_folder() -> Path:
    """A folder for a server's home, in memory if it fits: a database is hundreds of files, made anew for each test."""
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    folder = Path(tempfile.mkdtemp(prefix="contextkit-tests-", dir=MEMORY if fits else None))
    folder.chmod(0o711)  # the server's account passes through
    return folder


@pytest.fixture(scope="session", autouse=True)
def home() -> Iterator[Path]:
    """A home that the run alone knows, so that no database of the user's is ever touched."""
    folder = new_folder()
    os.environ["CONTEXTKIT_HOME"] = str(folder)
    # Not unset: a .env above the working directory would take its place.
    os.environ["DATABASE_URL"] = ""
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url(home: Path) -> Iterator[str]:
    server = EmbeddedServer(home)
    server.join()
    with psycopg.connect(server.url, autocommit=True) as connection:  # nothing here outlives the run
        connection.execute("alter system set fsync = off")
        connection.execute("alter system set max_wal_size = '256MB'")
        connection.execute("select pg_reload_conf()")
    with ExitStack() as stack:
        if os.environ.get("CONTEXTKIT_TEST_POOLER"):
            POOLERS[server.url] = stack.enter_context(running_pooler(server.url))
        yield server.url
    server.leave()


@pytest.fixture(scope="session")
def migrated(server_url: str) -> str:
    """Name of a migrated database that others are copied from."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("create database migrated")
    # Past a pooler, whose idle connections would keep it from being copied.
    upgrade_once(database_at(server_url, "migrated", direct=True))
    return "migrated"


def upgrade_once(url: str) -> None:
    engine = connect(url, write=True)
    upgrade(engine)
    engine.dispose()


def database_at(server_url: str, name: str, *, direct: bool = False) -> str:
    """URL of a database, through the pooler if there is one."""
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    return url if direct or server_url not in POOLERS else POOLERS[server_url].url(url)


@pytest.fixture
def empty_url(server_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a database without tables."""
    yield from _fresh(server_url, "template1", direct=_is_direct(request))


@pytest.fixture
def database_url(server_url: str, migrated: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a migrated database without rows."""
    yield from _fresh(server_url, migrated, direct=_is_direct(request))


def _is_direct(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("direct") is not None


def _fresh(server_url: str, template: str, *, direct: bool = False) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {template} strategy file_copy")
        yield database_at(server_url, name, direct=direct)
        connection.execute(f"drop database {name} with (force)")


def fresh_engine(server_url: str, migrated: str) -> Iterator[Engine]:
    for url in _fresh(server_url, migrated):
        engine = connect(url, write=True)
        yield engine
        engine.dispose()


@pytest.fixture
def other(server_url: str, migrated: str) -> Iterator[Engine]:
    """A second database for writing."""
    yield from fresh_engine(server_url, migrated)


@pytest.fixture(scope="module")
def shared(server_url: str, migrated: str) -> Iterator[Engine]:
    """One database for the tests of a module that look only at contexts of their own, or find nothing written."""
    yield from fresh_engine(server_url, migrated)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url, write=True)
    yield engine
    engine.dispose()


@pytest.fixture
def reader(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()
