"""Stop the embedded server of a home once nobody holds it: `python watcher.py HOME PG_CTL [UID GID]`.

A process of its own, because a holder that is killed cannot stop anything. It imports nothing of contextkit:
it has to start fast and to outlive an upgrade of the package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil


def postmaster(home: Path) -> psutil.Process | None:
    """Give the home's live server; a process that has its pid by now is none, nor is a zombie."""
    import psutil

    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int((home / "data" / "postmaster.pid").read_text().partition("\n")[0]))
        try:  # a zombie has no working directory, a server's is its data
            return process if (home / "data").samefile(process.cwd()) else None
        except psutil.AccessDenied:  # a container's root without ptrace: rather wait than start a second one
            alive = process.name().startswith("postgres") and process.status() != psutil.STATUS_ZOMBIE
            return process if alive else None
    return None


def is_held(home: Path) -> bool:
    """Tell whether any process still holds the home."""
    from filelock import FileLock, Timeout

    for holder in (home / "holders").glob("*.lock"):
        try:
            FileLock(holder, mode=0o600).acquire(blocking=False).lock.release()
        except Timeout:
            return True
    return False


def stop(home: Path, pg_ctl: str, account: list[str]) -> None:
    """Stop the server of a home that is still there."""
    run_as: dict[str, Any] = {}
    if account:
        run_as = {"user": int(account[0]), "group": int(account[1]), "extra_groups": []}
    if server := postmaster(home):  # pg_ctl itself would signal a reused pid
        with suppress(OSError):
            command = [pg_ctl, "stop", "-s", "-D", "data", "-m", "fast", "-t", "300"]
            subprocess.run(command, cwd=home, check=False, **run_as)  # noqa: S603  # our own binary, no shell
        kill(server)


def kill(server: psutil.Process) -> None:
    """End a server that cannot be stopped the usual way, because its files are gone or pg_ctl is."""
    import psutil

    with suppress(psutil.NoSuchProcess):  # psutil knows a reused pid from the process that it met
        server.send_signal(getattr(signal, "SIGQUIT", signal.SIGTERM))


def watch(home: Path, pg_ctl: str, account: list[str]) -> None:
    """Wait until nobody holds the home, or until it is gone, and leave no server running."""
    from filelock import FileLock, Timeout

    server, idle, born = None, 0, home.stat()
    with suppress(Timeout), FileLock(home / "watcher.lock", timeout=2, mode=0o600) as only:
        while home.is_dir() and os.path.samestat(home.stat(), born):
            with suppress(OSError):  # the home may vanish at any moment
                server = postmaster(home) or server
                idle = 0 if is_held(home) else idle + 1
                if idle > 1:  # twice: a server whose starter was killed needs a moment to show
                    with FileLock(home / "lock", mode=0o600):
                        if not is_held(home):
                            stop(home, pg_ctl, account)
                            for left in (home / "holders").glob("*.lock"):
                                left.unlink()
                            only.release()  # before the home's lock: who joins next has to start a watcher
                            return
            time.sleep(0.4 if server or idle else 0.05)  # while it starts, look often: the home may be short-lived
        if server:
            kill(server)


if __name__ == "__main__":
    import filelock  # noqa: F401  # a missing one has to show in the exit code, before going to the background
    import psutil

    if hasattr(os, "fork") and os.fork():
        os._exit(0)  # a child of no one: no zombie in a long notebook session
    watch(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
