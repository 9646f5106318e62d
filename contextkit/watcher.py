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
from typing import Any


def postmaster(home: Path) -> int | None:
    """Give the pid of the home's live server; a reused pid and a zombie are none."""
    with suppress(OSError, ValueError):
        pid = int((home / "data" / "postmaster.pid").read_text().partition("\n")[0])
        return pid if serves(pid, home) else None
    return None


def serves(pid: int, home: Path) -> bool:
    """Tell whether a process is the home's server: the server's working directory is its data."""
    import psutil

    with suppress(psutil.NoSuchProcess, ValueError):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        try:
            return os.path.realpath(process.cwd()) == os.path.realpath(home / "data")
        except psutil.AccessDenied:  # root without ptrace, in a container: rather wait than start a second one
            return bool(process.name().startswith("postgres"))
    return False


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
    if pid := postmaster(home):  # pg_ctl itself would signal a reused pid
        with suppress(OSError):
            command = [pg_ctl, "stop", "-s", "-D", "data", "-m", "fast", "-t", "300"]
            subprocess.run(command, cwd=home, check=False, **run_as)  # noqa: S603  # our own binary, no shell
        kill(pid, home)


def kill(pid: int, home: Path) -> None:
    """End a server that cannot be stopped the usual way, because its files are gone or pg_ctl is."""
    if serves(pid, home):
        with suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, "SIGQUIT", signal.SIGTERM))


def watch(home: Path, pg_ctl: str, account: list[str]) -> None:
    """Wait until nobody holds the home, or until it is gone, and leave no server running."""
    from filelock import FileLock, Timeout

    pid, idle, born = None, 0, home.stat()
    with suppress(Timeout), FileLock(home / "watcher.lock", timeout=2, mode=0o600) as only:
        while home.is_dir() and os.path.samestat(home.stat(), born):
            with suppress(OSError):  # the home may vanish at any moment
                pid = postmaster(home) or pid
                idle = 0 if is_held(home) else idle + 1
                if idle > 1:  # twice: a server whose starter was killed needs a moment to show
                    with FileLock(home / "lock", mode=0o600):
                        if not is_held(home):
                            stop(home, pg_ctl, account)
                            for left in (home / "holders").glob("*.lock"):
                                left.unlink()
                            only.release()  # before the home's lock: who joins next has to start a watcher
                            return
            time.sleep(0.4 if pid or idle else 0.05)  # while it starts, look often: the home may be short-lived
        if pid:
            kill(pid, home)


if __name__ == "__main__":
    import filelock  # noqa: F401  # a missing one has to show in the exit code, before going to the background
    import psutil  # noqa: F401

    if hasattr(os, "fork") and os.fork():
        os._exit(0)  # a child of no one: no zombie in a long notebook session
    watch(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
