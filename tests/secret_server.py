"""A server that asks for passwords, and connections to it that break."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, make_url

import contextkit as ck
import contextkit.server as server_module
from contextkit.server import EmbeddedServer
from contextkit.watcher import postmaster
from tests.secret_texts import PASSWORD
from tests.test_connection import until


@dataclass
class Guarded:
    """A server that asks for passwords, and a role with the odd one that owns a database with the sample."""

    server: EmbeddedServer
    url: URL
    admin: psycopg.Connection[Any]
    free_port: int

    def restart(self) -> None:
        """Start it again after it was killed, perhaps at another port."""
        self.admin.close()
        owner = joined(self.server)
        self.url = self.url.set(port=owner.port)
        self.admin = psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True)


def joined(server: EmbeddedServer) -> URL:
    """The URL of a server's owner, over TCP, where it now runs if it did not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "TCP", True)
        server.join()
        return make_url(server.url)


@contextmanager
def guarded_server() -> Iterator[Guarded]:
    """Serve until the end of the block."""
    place = Path(tempfile.mkdtemp(prefix="contextkit-tests-"))
    place.chmod(0o711)
    server = EmbeddedServer(place / "home")
    owner = joined(server)
    admin = psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True)
    for role in ("odd", "crowded connection limit 0", "stranger"):
        name, _, limits = role.partition(" ")
        literal = psycopg.sql.Literal(PASSWORD)
        admin.execute(psycopg.sql.SQL(f"create role {name} login {limits} password {{}}").format(literal))
    admin.execute("alter system set fsync = off")
    admin.execute("select pg_reload_conf()")
    admin.execute("create database guarded owner odd")
    with psycopg.connect(owner.set(database="guarded").render_as_string(hide_password=False)) as inside:
        inside.execute("create extension vector")
    url = owner.set(username="odd", password=PASSWORD, database="guarded")
    engine = ck.connect(url, write=True)
    ck.upgrade(engine)
    ck.load_sample(engine)
    engine.dispose()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        guarded = Guarded(server, url, admin, closed.getsockname()[1])
        yield guarded
    guarded.admin.close()
    server.leave()
    assert until(lambda: postmaster(server.home) is None)
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def cut_after(port: int, received: int) -> Iterator[int]:
    """Port that leads to another, until so many bytes came from there; every connection anew."""
    listening = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = [listening]

    def pump(source: socket.socket, target: socket.socket, room: float) -> None:
        try:
            while room > 0 and (data := source.recv(4096)):
                target.sendall(data[: int(min(room, 4096))])
                room -= len(data)
        except OSError:
            pass
        for side in (source, target):
            side.close() if room > 0 else side.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            sockets.extend([client, server])
            for task in ((client, server, float("inf")), (server, client, received)):
                threading.Thread(target=pump, args=task, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        for each in sockets:
            each.close()
