"""Servers of a test's own: a read replica, and one with an older pgvector."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contextkit.programs import Programs, environment

OLD_SERVER = "CONTEXTKIT_PGVECTOR_06"
"""Names the folder `pginstall` of pgserver 0.1.4, which carries PostgreSQL 16 with pgvector 0.6.

It stands in the way of newer ones, so it is installed aside: `python3.11 -m venv OLD`, then
`OLD/bin/pip install pgserver==0.1.4`; the folder is OLD/lib/python3.11/site-packages/pgserver/pginstall.
"""


class Cluster:
    """The data of a server, in a folder that ends with the test."""

    def __init__(self, home: Path, binaries: Path) -> None:
        self._programs = Programs(home)
        self._binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="ck-", dir="/tmp"))  # a socket's path has to be short
        self._programs.give(self.folder)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.folder), safe='')}"

    def run(self, program: str, *arguments: str) -> None:
        options: dict[str, Any] = {"cwd": self.folder, "env": environment(), **self._programs.run_as}
        command = [str(self._binaries / program), *arguments]
        with (self.folder / "output").open("ab") as output:  # of a file: a server that stays keeps a pipe open
            done = subprocess.run(command, stdout=output, stderr=output, umask=0o077, check=False, **options)
        assert done.returncode == 0, (self.folder / "output").read_text()

    def start(self) -> None:
        options = f"-c listen_addresses= -c fsync=off -c shared_buffers=16MB -k {self.folder}"
        self.run("pg_ctl", "start", "-s", "-w", "-D", "data", "-l", "log", "-o", options)

    @contextmanager
    def running(self) -> Iterator[str]:
        """URL of its server, which stops at the end."""
        try:
            self.start()
            yield self.url
        finally:
            if (self.folder / "data" / "postmaster.pid").exists():
                self.run("pg_ctl", "stop", "-s", "-m", "immediate", "-D", "data")
            shutil.rmtree(self.folder)


def new_cluster(home: Path, binaries: Path | None = None) -> Cluster:
    cluster = Cluster(home, binaries or Programs(home).folder())
    cluster.run("initdb", "-D", "data", "-U", "postgres", "-E", "UTF8", "--locale=C", "-A", "trust", "--no-sync")
    return cluster


def replica_of(cluster: Cluster, home: Path) -> Cluster:
    """A streaming replica of a server that runs, with all that it has now."""
    replica = Cluster(home, cluster._binaries)
    replica.run("pg_basebackup", "-D", "data", "-R", "-c", "fast", "--no-sync", "-d", cluster.url)
    return replica


def old_binaries() -> Path | None:
    """Where the server with pgvector 0.6 is, if the environment names one."""
    named = os.environ.get(OLD_SERVER)
    return Path(named) / "bin" if named else None
