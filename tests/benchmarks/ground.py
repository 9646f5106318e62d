"""The embedded server that is measured on, and its databases, each made when it is first asked for."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg
from sqlalchemy import Engine, make_url

from contextkit import connect, upgrade
from contextkit.server import EmbeddedServer
from tests.benchmarks.data import write_chain, write_forest, write_lengths, write_sample

LENGTHS = (10, 1_000, 10_000)
DEPTH = 100


@dataclass(frozen=True)
class Database:
    url: str
    engine: Engine


class Ground:
    """Databases on one server; `folder` is for files."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.folder = folder
        self._server = server
        self._made: dict[str, Database] = {}

    def sample(self, messages: int) -> Database:
        """Conversations of 20 embedded messages each, a third of them forks, written in all three ways."""
        return self._database(f"sample{messages}", lambda url: write_sample(url, messages=messages))

    def forest(self, contexts: int) -> Database:
        """Contexts of three messages without embeddings, half of them forks by reference."""
        return self._database(f"forest{contexts}", lambda url: write_forest(url, contexts=contexts))

    def chain(self, contexts: int) -> Database:
        """Contexts of two messages, each a fork of the one before."""
        return self._database(f"chain{contexts}", lambda url: write_chain(url, contexts=contexts))

    @cached_property
    def lengths(self) -> tuple[Database, list[str]]:
        """Histories of LENGTHS, the last one twice: flat, and as a chain of forks; with the ids of their contexts."""
        ids: list[str] = []
        database = self._database("lengths", lambda url: ids.extend(write_lengths(url, lengths=LENGTHS, depth=DEPTH)))
        return database, ids

    def empty(self, name: str) -> Database:
        return self._database(name, lambda url: None)

    def close(self) -> None:
        for database in self._made.values():
            database.engine.dispose()

    def _database(self, name: str, fill: Callable[[str], object]) -> Database:
        if name not in self._made:
            with psycopg.connect(self._server.url, autocommit=True) as connection:
                connection.execute(f"create database {name}")
            url = make_url(self._server.url).set(database=name).render_as_string(hide_password=False)
            self._made[name] = Database(url, connect(url, write=True))
            upgrade(self._made[name].engine)
            fill(url)
        return self._made[name]


@contextmanager
def opened_ground() -> Iterator[Ground]:
    """A server in a temporary folder, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="contextkit-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # where root runs this, an account without privileges runs PostgreSQL
        server = EmbeddedServer(folder / "home")
        server.join()
        ground = Ground(server, folder)
        try:
            yield ground
        finally:
            ground.close()
            server.leave()
            _wait_for_end(server.home)


def _wait_for_end(home: Path) -> None:
    """Its watcher stops the server a moment after the last user; files that it writes then would stay."""
    end = time.monotonic() + 60
    while (home / "data" / "postmaster.pid").exists() and time.monotonic() < end:
        time.sleep(0.1)
