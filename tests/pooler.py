"""A PgBouncer in front of a server, in transaction mode and as Neon sets it up."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

# ignore_startup_parameters is Neon's; there is nothing in it that would let pass what Neon refuses.
SETTINGS = """
[databases]
* = host={host} port={port} auth_user={user}

[pgbouncer]
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 1000
max_prepared_statements = 1000
server_round_robin = 1
ignore_startup_parameters = extra_float_digits
listen_addr =
listen_port = 5432
unix_socket_dir = {folder}
unix_socket_mode = 0777
auth_type = trust
auth_file = {folder}/users
auth_query = select usename, passwd from pg_shadow where usename = $1
admin_users = {user}
log_connections = 0
log_disconnections = 0
"""


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer."""

    folder: Path

    def url(self, direct: str) -> str:
        """Give the URL that leads through it to what a server's own URL names."""
        query = {"host": str(self.folder), "port": "5432"}
        return make_url(direct).update_query_dict(query).render_as_string(hide_password=False)


def pgbouncer() -> str | None:
    """Give the path of the PgBouncer that CONTEXTKIT_TEST_POOLER names, by default of the installed one."""
    wanted = os.environ.get("CONTEXTKIT_TEST_POOLER", "pgbouncer")
    return shutil.which(wanted, path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


@contextmanager
def running_pooler(server_url: str, *, pool_size: int = 20) -> Iterator[Pooler]:
    """Run a PgBouncer, of this run alone, until the end."""
    program = pgbouncer()
    if program is None:
        raise RuntimeError("no pgbouncer is installed where CONTEXTKIT_TEST_POOLER says")
    server = make_url(server_url)
    sockets = Path(str(server.query["host"]))
    folder = Path(tempfile.mkdtemp(prefix="pooler-"))
    folder.chmod(0o711)
    values: dict[str, Any] = {"host": sockets, "port": server.query["port"], "user": server.username}
    settings = folder / "pgbouncer.ini"
    settings.write_text(_known(program, SETTINGS.format(folder=folder, pool_size=pool_size, **values)))
    (folder / "users").write_text(f'"{server.username}" ""\n')
    run_as: dict[str, Any] = {}
    if os.geteuid() == 0:  # as which PgBouncer does not run; and the server's sockets are for its account alone
        owner = sockets.stat()
        run_as = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, owner.st_uid, owner.st_gid)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(settings)], stdout=log, stderr=log, cwd=folder, **run_as)
    try:
        pooler = Pooler(folder)
        _await(process, pooler.url(server_url), folder / "log")
        yield pooler
    finally:
        process.kill()  # at once, which no signal says to all versions
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _known(program: str, settings: str) -> str:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if tuple(map(int, version.split(".")[:2])) < (1, 21):
        return settings.replace("max_prepared_statements = 1000\n", "")
    return settings


def _await(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end, pause = time.monotonic() + 30, threading.Event()
    while psycopg.pq.PGconn.ping(url.encode()) != psycopg.pq.Ping.OK:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"pgbouncer does not answer: {log.read_text()}")
        pause.wait(0.02)
