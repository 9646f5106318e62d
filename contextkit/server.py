"""The embedded PostgreSQL of a home, a folder with the data of one user: start it or join it, get a URL.

Each holder of the server locks a file of its own in `holders/`. The kernel drops a lock however a process
ends, so nobody counts pids; a watcher (`watcher.py`) stops the server once no lock is held. Whatever starts
or stops the server happens under the home's `lock`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from contextkit import watcher
from contextkit.errors import DatabaseUnavailableError
from contextkit.programs import VERSION, Programs, environment, installed, is_root, unusable
from contextkit.secret import Secret

if TYPE_CHECKING:
    from filelock import BaseFileLock

TCP = os.name == "nt"  # no unix sockets that a folder's mode protects: a password does
SOCKET = ".s.PGSQL.5432"
PATIENCE = 600.0  # seconds for a server that is alive; a recovery replays gigabytes
RETRIES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)  # pauses after a failed start; backends of a killed server end meanwhile
SETTINGS = {
    "jit": "off",
    "random_page_cost": "1.1",  # as on any solid-state disk; else ordered reads sort what an index has in order
    "shared_buffers": "128MB",
    "work_mem": "64MB",
    "maintenance_work_mem": "256MB",
    # The log never holds content: errors, statements and details quote it.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "checkpoint_warning": "0",
}
_logger = logging.getLogger("contextkit")


def default_home() -> Path:
    """Give the folder of the embedded server: CONTEXTKIT_HOME, else ~/.contextkit."""
    if named := os.environ.get("CONTEXTKIT_HOME"):
        return Path(named).expanduser().absolute()
    # PostgreSQL does not run as root, and no other account reaches root's home.
    return Path("/var/lib/contextkit") if is_root() else Path.home() / ".contextkit"


class EmbeddedServer:
    """A PostgreSQL server that runs as long as anyone holds it."""

    def __init__(self, home: Path | None = None) -> None:
        """Name the home; nothing is written or started before `join`."""
        self.home = Path(os.path.realpath((home or default_home()).expanduser()))
        self._programs = Programs(self.home)
        self._guard = threading.RLock()
        self._holder: Path | None = None
        self._hold: weakref.finalize[[BaseFileLock, Path, int], EmbeddedServer] | None = None
        self._pid = 0

    def __repr__(self) -> str:
        """Name the home."""
        return f"EmbeddedServer({str(self.home)!r})"

    @property
    def held(self) -> bool:
        """Whether this object holds the server; a forked child does not hold what its parent holds."""
        return self._hold is not None and self._hold.alive and self._pid == os.getpid()

    @property
    def url(self) -> str:
        """The URL of the running server."""
        if not TCP:
            return f"postgresql://postgres@/postgres?host={quote(str(self._sockets), safe='')}&port=5432"
        try:
            password, port = ((self.home / name).read_text() for name in ("password", "port"))
        except OSError:
            raise DatabaseUnavailableError(f"no server was started in {self.home} yet; join it first") from None
        return f"postgresql://postgres:{quote(password, safe='')}@127.0.0.1:{port}/postgres"

    def join(self) -> None:
        """Hold the server and make sure that it answers."""
        installed()
        patience = threading.Timer(
            5, _logger.warning, ["the embedded server is still starting (recovering after a crash?); waiting"]
        )
        patience.daemon = True
        patience.start()
        try:
            with self._guard:
                self._make_home()
                with _lock(self.home / "lock"):
                    self._register()
                    self._start_watcher()
                    self._make_answer()
        except OSError as error:
            self.leave()
            raise unusable(self.home, f"cannot be used ({error})") from None
        except BaseException:
            self.leave()
            raise
        finally:
            patience.cancel()

    def leave(self) -> None:
        """Stop holding the server; the last to leave stops it."""
        with self._guard:
            if self._hold is not None and self.held:
                self._hold()

    def _make_home(self) -> None:
        if not self.home.is_dir():
            mode = 0o711 if is_root() else 0o700  # the server's account passes through root's
            self.home.mkdir(mode, parents=True, exist_ok=True)
            self.home.chmod(mode)
        if hasattr(os, "geteuid") and self.home.stat().st_uid != os.geteuid():
            raise unusable(self.home, "belongs to another user")
        (self.home / "holders").mkdir(0o700, exist_ok=True)

    def _register(self) -> None:
        if self.held and self._holder is not None and self._holder.exists():
            return
        self.leave()
        self._holder = self.home / "holders" / f"{secrets.token_hex(8)}.lock"
        lock = _lock(self._holder)
        lock.acquire()
        self._pid = os.getpid()
        self._hold = weakref.finalize(self, _drop, lock, self._holder, self._pid)

    def _start_watcher(self) -> None:
        from filelock import Timeout

        try:
            _lock(self.home / "watcher.lock").acquire(blocking=False).lock.release()
        except Timeout:
            return
        command = [sys.executable, "-P", watcher.__file__, str(self.home), str(self._programs.folder() / "pg_ctl")]
        if self._programs.account is not None:
            command += [str(self._programs.account.pw_uid), str(self._programs.account.pw_gid)]
        options: dict[str, Any] = {"cwd": self.home.anchor, "env": environment(), "close_fds": True}
        options |= dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        if sys.platform == "win32":
            flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
            subprocess.Popen(command, creationflags=flags, **options)  # noqa: S603  # our own script
        elif subprocess.run(command, start_new_session=True, check=False, **options).returncode:  # noqa: S603  # ours
            raise DatabaseUnavailableError(
                f"{sys.executable} cannot run the watcher of the embedded server; use another interpreter"
            )

    def _make_answer(self) -> None:
        pauses, deadline = iter(RETRIES), time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline:
                raise self._failed("does not answer")
            if watcher.postmaster(self.home):
                time.sleep(0.1)  # it recovers, or it shuts down
            elif not self._start():
                pause = next(pauses, None)
                if pause is None:
                    raise self._failed("does not start")
                time.sleep(pause)

    def _answers(self) -> bool:
        from psycopg import pq

        if TCP and not watcher.postmaster(self.home):  # somebody else may have got the port
            return False
        # A ping tells a full server, which is alive, from a recovering one; a failed connect has no SQLSTATE.
        # The empty hostaddr keeps PGHOSTADDR from leading to another server.
        address = Secret(f"{self.url}{'?' if TCP else '&'}hostaddr=&connect_timeout=5")
        ping = pq.Ping(pq.PGconn.ping(address.encode()))
        if ping is pq.Ping.NO_ATTEMPT:
            raise DatabaseUnavailableError("a PG variable of the environment prevents any connection; unset it")
        return ping is pq.Ping.OK

    def _start(self) -> bool:
        data = self.home / "data"
        if not data.exists():
            self._create_data()
        found = (data / "PG_VERSION").read_text().strip()
        if found != VERSION:
            raise unusable(
                self.home,
                f"holds data of PostgreSQL {found}, and the embedded server is PostgreSQL {VERSION}",
                f"install PostgreSQL {found} to dump the data, or ",
            )
        # No server is alive: a pid in these files is a zombie's or an unrelated process's.
        (data / "postmaster.pid").unlink(missing_ok=True)
        if TCP:
            options = f"-h 127.0.0.1 -p {self._choose_port()} -c unix_socket_directories="
        else:
            self._make_private(self._sockets)
            (self._sockets / SOCKET).unlink(missing_ok=True)
            (self._sockets / f"{SOCKET}.lock").unlink(missing_ok=True)
            # On the command line, so that neither PGPORT nor postgresql.conf can move the socket.
            options = f"-c listen_addresses= -p 5432 -c unix_socket_permissions=0700 -k {self._sockets}"
        # A shell reads the path of -D: a relative one needs no quotes, whatever the home is called.
        where = ("-D", "data", "-l", "server.log", "-o", options)
        return self._programs.run("pg_ctl", "start", "-s", "-w", "-t", f"{PATIENCE:.0f}", *where)

    def _create_data(self) -> None:
        for left in self.home.glob("initdb-*"):  # of one that was killed
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.home))
        self._programs.give(scratch)
        arguments = ["-D", scratch.name, "-U", "postgres", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += [f"--set={name}={value}" for name, value in SETTINGS.items()]
        if TCP:
            self._programs.write("password", secrets.token_urlsafe(24))
            arguments += ["--auth=scram-sha-256", "--pwfile=password"]
        else:
            arguments += ["--auth=trust"]  # the socket's folder is private
        if not self._programs.run("initdb", *arguments):
            shutil.rmtree(scratch, ignore_errors=True)
            raise self._failed("cannot be set up")
        scratch.rename(self.home / "data")

    @cached_property
    def _sockets(self) -> Path:
        run = self.home / "run"
        if re.fullmatch(r"[\w./-]+", str(run), re.ASCII) and len(str(run / SOCKET)) <= 100:
            return run
        # Not the TMPDIR of this process: another one has to find the same folder.
        name = f"contextkit-{os.getuid()}-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:10]}"
        return Path("/tmp") / name  # noqa: S108  # private, see _make_private

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(0o700, exist_ok=True)
        self._programs.give(folder)
        found, owner = folder.lstat(), self._programs.account.pw_uid if self._programs.account else os.getuid()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o777 != 0o700:
            raise unusable(self.home, f"needs {folder} to be a folder that only its server opens", "remove that, or ")

    def _choose_port(self) -> int:
        remembered = self.home / "port"
        wanted = int(remembered.read_text()) if remembered.exists() else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:  # taken meanwhile
                probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self._programs.write("port", str(port))
        return port

    def _failed(self, reason: str) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(f"the embedded server {reason}; see {self.home / 'server.log'}")


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(path, mode=0o600, thread_local=False)  # whoever could open it could block us


def _drop(lock: BaseFileLock, holder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not the copy in a forked child
        lock.release()
        holder.unlink(missing_ok=True)
