"""No password shows anywhere, whatever is called, however the database was named and whatever goes wrong."""

import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import nbformat
import psutil
import pytest
import typer
from distributed import Client, LocalCluster, wait
from nbclient import NotebookClient
from sqlalchemy import URL, Engine, make_url, text
from typer.testing import CliRunner

import contextkit as ck
from contextkit.cli import app
from contextkit.distributed import messages_dask
from contextkit.server import EmbeddedServer
from contextkit.watcher import postmaster
from tests.secret_calls import ALONE, CALLS, COMMANDS, FAILING, NEVER_NEAR, ON_FRAMES, PER_DRIVER
from tests.secret_server import Guarded, cut_after, guarded_server
from tests.secret_texts import CONTENT, CONTENT_SHOWN, PASSWORD, PASSWORD_SHOWN, Search, shown_by_tools, tried
from tests.test_connection import until


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with guarded_server() as guarded:
        yield guarded


FAULTS: dict[str, Callable[[Guarded], URL]] = {
    "none": lambda guarded: guarded.url,
    "wrong password": lambda guarded: guarded.url.set(password=f"{PASSWORD}x"),
    "unknown database": lambda guarded: guarded.url.set(database="nowhere"),
    "unknown role": lambda guarded: guarded.url.set(username="nobody"),
    "refused": lambda guarded: guarded.url.set(port=guarded.free_port),
    "no TLS": lambda guarded: guarded.url.update_query_dict({"sslmode": "require"}),
    "role is full": lambda guarded: guarded.url.set(username="crowded"),
    "permission denied": lambda guarded: guarded.url.set(username="stranger"),
    "no tables": lambda guarded: guarded.url.set(database="postgres"),
    "too slow": lambda guarded: guarded.url,
    "reading only": lambda guarded: guarded.url,
}
ASKED: dict[str, dict[str, Any]] = {"too slow": {"statement_timeout": 0.001}, "reading only": {"write": False}}
CUTS = {"cut while it authenticates": 100, "cut while it reads": 4_000}


def search_calls(search: Search, fault: str, url: URL | str | None, names: Any, **asked: Any) -> None:
    """Try calls on an engine, of the first error all ways to show it."""
    engines: list[Engine] = []
    if tried(search, fault, lambda: engines.append(ck.connect(url, **{"write": True, "connect_timeout": 2} | asked))):
        return
    kinds = set()
    for name in names:
        error = tried(search, f"{fault}, {name}", partial(CALLS[name], engines[0]))
        assert error is None or fault != "none" or name in FAILING, f"{name}: {error!r}"
        if error is not None and (type(error), name in PER_DRIVER) not in kinds:
            kinds.add((type(error), name in PER_DRIVER))
            for shown in shown_by_tools(error):
                search.look(f"{fault}, {name}", "shown by tools", shown)
    search.objects(fault, engines[0])
    engines[0].dispose()


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    """What looks through texts, at the end through files left in the folders for temporary ones, too."""
    for name in ("TMPDIR", "HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "TMPDIR"))
    monkeypatch.chdir(tmp_path)
    search = Search()
    yield search
    for name in ("TMPDIR", "HOME"):
        search.files("after it all", tmp_path / name)
    print(f"\n{sum(search.texts.values())} texts searched: {dict(search.texts)}; {len(search.finds)} finds")
    for find in search.finds[:40]:
        print(find)
    assert not search.finds


def test_every_public_name_and_every_command_is_tried_or_has_no_database_to_show() -> None:
    classes = {name for name in ck.__all__ if isinstance(getattr(ck, name), type)}
    errors = {name for name in classes if issubclass(getattr(ck, name), Exception)}
    called = {name.partition(" ")[0] for name in CALLS} - {"engine.connect", "raw_connection"}
    assert called | set(ON_FRAMES) | NEVER_NEAR | errors == set(ck.__all__)
    group = typer.main.get_command(app)
    commands = {
        f"{name} {inner}".strip()
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", [""])
    }
    assert set(COMMANDS) | ALONE == commands


def test_the_search_finds_a_password_however_it_is_written() -> None:
    import base64
    import html
    import json

    for written in (
        PASSWORD,
        quote(PASSWORD, safe=""),
        repr(PASSWORD),
        json.dumps(PASSWORD),
        html.escape(PASSWORD),
        base64.b64encode(f"odd:{PASSWORD}".encode()).decode(),
        base64.b64encode(f"x{PASSWORD}".encode()).decode(),
        PASSWORD.encode().hex(),
        *PASSWORD.split("/"),
        *PASSWORD.split("@"),
        PASSWORD[:6],
        PASSWORD[-6:],
    ):
        assert PASSWORD_SHOWN.search(written), written


@pytest.mark.parametrize("fault", FAULTS)
def test_no_function_shows_it_whatever_goes_wrong(guarded: Guarded, search: Search, fault: str) -> None:
    names = PER_DRIVER if fault == "role is full" else CALLS  # each waits a moment for a free connection
    search_calls(search, fault, FAULTS[fault](guarded), names, **ASKED.get(fault, {}))


@pytest.mark.parametrize("fault", CUTS)
def test_no_function_shows_it_when_the_connection_is_cut(guarded: Guarded, search: Search, fault: str) -> None:
    with cut_after(guarded.url.port or 0, CUTS[fault]) as port:
        search_calls(search, fault, guarded.url.set(port=port), CALLS)


def test_no_step_picture_or_partition_of_a_frame_shows_it(guarded: Guarded, search: Search) -> None:
    engine = ck.connect(guarded.url)
    frame = ck.messages_df(engine, embeddings=True)
    for name, call in ON_FRAMES.items():
        one = frame[frame["context_id"] == frame["context_id"][0]]
        search.look(name, "value", str(call(one if name == "to_openai" else frame)))
    search.look("plot_forks", "value", str(ck.plot_forks(ck.forks_df(engine)).to_dict()))
    lazy = messages_dask(engine, 3)
    graph = lazy.__dask_graph__()
    search.look("dask", "repr", f"{lazy!r}{lazy}{graph}{lazy._repr_html_()}")
    search.objects("dask", dict(graph))
    guarded.admin.execute("alter role odd nologin")
    try:
        assert tried(search, "dask", lambda: lazy.compute(scheduler="synchronous"))
    finally:
        guarded.admin.execute("alter role odd login")
    engine.dispose()


# How the database is named


def encoded(url: URL) -> str:
    return f"{url.username}:{quote(str(url.password), safe='')}@{url.host}:{url.port}/{url.database}"


def bare(url: URL) -> str:
    return f"postgresql://{url.username}@{url.host}:{url.port}/{url.database}"


def in_query(url: URL, patch: pytest.MonkeyPatch) -> str:
    return f"{bare(url)}?sslpassword={quote(PASSWORD)}&password={quote(str(url.password), safe='')}"


def as_object(url: URL, patch: pytest.MonkeyPatch) -> URL:
    return make_url(bare(url)).update_query_dict({"password": str(url.password), "sslpassword": PASSWORD})


def in_environment(url: URL, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("DATABASE_URL", f"postgres://{encoded(url)}")


def in_dotenv(url: URL, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("DATABASE_URL", raising=False)
    Path(".env").write_text(f"DATABASE_URL='postgresql://{encoded(url)}?pgbouncer=true'\n")


def in_pgpassword(url: URL, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("PGPASSWORD", str(url.password))
    return bare(url)


def in_passfile(url: URL, patch: pytest.MonkeyPatch) -> str:
    password = str(url.password).replace("\\", "\\\\").replace(":", "\\:")
    Path("passwords").write_text(f"*:*:*:*:{password}\n")
    Path("passwords").chmod(0o600)
    patch.setenv("PGPASSFILE", str(Path("passwords").absolute()))
    return bare(url)


def in_service(url: URL, patch: pytest.MonkeyPatch) -> str:
    said = {"host": url.host, "port": url.port, "dbname": url.database, "user": url.username, "password": url.password}
    Path("services").write_text("[odd]\n" + "".join(f"{key}={value}\n" for key, value in said.items()))
    patch.setenv("PGSERVICEFILE", str(Path("services").absolute()))
    return "postgresql:///?service=odd"


WAYS = (in_query, as_object, in_environment, in_dotenv, in_pgpassword, in_passfile, in_service)


@pytest.mark.parametrize("way", WAYS)
def test_it_stays_out_of_sight_wherever_it_stands(
    guarded: Guarded, search: Search, monkeypatch: pytest.MonkeyPatch, way: Callable[..., Any]
) -> None:
    for fault in ("none", "wrong password", "refused"):
        with pytest.MonkeyPatch.context() as patch:
            given = way(FAULTS[fault](guarded), patch)
            search_calls(search, f"{way.__name__}, {fault}", given, PER_DRIVER, write=False)
            assert fault != "none" or len(ck.contexts_df(ck.connect(given))) > 0
            tried(search, f"{way.__name__}, pooled", partial(ck.connect, given, require_pooled=True))
            tried(search, f"{way.__name__}, out of range", partial(ck.connect, given, pool_size=0))


ENCODED = quote(PASSWORD, safe="")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://odd:{PASSWORD}@host/guarded",
        f"mysql://odd:{ENCODED}@host/guarded",
        f"mysql://odd@host/guarded?password={ENCODED}",
        f"postgresql:odd:{ENCODED}@host/guarded",
        f"psql 'postgresql://odd:{ENCODED}@host/guarded'",
        f"postgresql://odd:{ENCODED}@host:port/guarded",
        f"postgresql://odd:{ENCODED}@host/guarded?nonsense=1",
        f"postgresql://odd@host/guarded?nonsense=1&password={ENCODED}&sslpassword={ENCODED}",
        f"postgresql://odd:{ENCODED}@host/guarded?connect_timeout=soon",
        f"postgresql://odd:{ENCODED}@host/guarded?sslmode=none",
        f"postgresql://odd:{ENCODED}@[host/guarded",
        f"postgresql://odd:{ENCODED}%00@host/guarded",
        f"postgresql://odd:{ENCODED}\ud8ff@host/guarded",
        f"postgresql://odd:{ENCODED}@ho\udcfft/guarded",
        f"host=h user=odd password='{PASSWORD}'",
        f"{ENCODED}",
        f"//{ENCODED}@host",
        URL.create("mysql", "odd", PASSWORD, "host"),
        URL.create("postgresql", "odd", PASSWORD, "host", query={"nonsense": "1", "password": PASSWORD}),
        f"postgresql://odd:{ENCODED}@host/guarded".encode(),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_it(search: Search, url: Any) -> None:
    def use() -> None:
        with warnings.catch_warnings(action="error"):
            ck.contexts_df(ck.connect(url))

    error = tried(search, "malformed", use)
    assert isinstance(error, ValueError | ck.DatabaseUnavailableError)
    for shown in shown_by_tools(error):
        search.look("malformed", "shown by tools", shown)


# Interrupts, and a server that dies


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


SLEEPING = "from pg_stat_activity where usename = 'odd' and query like '%pg_sleep%' and state = 'active'"


def when_it_sleeps(guarded: Guarded, end: Callable[[], object]) -> None:
    assert until(lambda: guarded.admin.execute(f"select 1 {SLEEPING}".encode()).fetchone())
    end()


@pytest.mark.parametrize("name", ["engine.connect", "contexts_df", "messages_df bulk"])
def test_an_interrupt_while_it_connects_shows_nothing(guarded: Guarded, search: Search, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        engine = ck.connect(guarded.url.set(port=mute.getsockname()[1]), connect_timeout=3)
        timer = threading.Timer(0.3, interrupt)
        timer.start()
        error = tried(search, name, lambda: CALLS[name](engine))
        timer.join()
    assert isinstance(error, KeyboardInterrupt)
    for shown in shown_by_tools(error):
        search.look(name, "shown by tools", shown)


@pytest.mark.parametrize("sql", ["select pg_sleep(20)", "select pg_sleep(20) from generate_series(1, 9000)"])
@pytest.mark.parametrize("way", ["interrupted", "terminated"])
def test_what_ends_a_running_statement_shows_nothing(guarded: Guarded, search: Search, sql: str, way: str) -> None:
    def terminate() -> None:
        guarded.admin.execute(f"select pg_terminate_backend(pid) {SLEEPING}".encode())

    engine = ck.connect(guarded.url)
    ending = threading.Thread(target=when_it_sleeps, args=(guarded, interrupt if way == "interrupted" else terminate))
    ending.start()
    error = tried(search, way, lambda: ck.read_df(engine, text(sql)))
    ending.join()
    engine.dispose()
    assert isinstance(error, KeyboardInterrupt if way == "interrupted" else ck.DatabaseUnavailableError)
    for shown in shown_by_tools(error):
        search.look(way, "shown by tools", shown)


def kill(server: EmbeddedServer) -> None:
    """End a server and all of its processes, as a power cut does."""
    found = postmaster(server.home)
    assert found is not None
    ended = list(processes_below(found))
    for process in ended:
        process.kill()
    psutil.wait_procs(ended, timeout=10)


def test_a_server_killed_in_the_midst_of_a_call_shows_nothing(guarded: Guarded, search: Search) -> None:
    for sql in ("select pg_sleep(20)", "select pg_sleep(20) from generate_series(1, 9000)"):
        engine = ck.connect(guarded.url)
        ending = threading.Thread(target=when_it_sleeps, args=(guarded, partial(kill, guarded.server)))
        ending.start()
        error = tried(search, "killed", partial(ck.read_df, engine, text(sql)))
        ending.join()
        engine.dispose()
        assert isinstance(error, ck.DatabaseUnavailableError)
        for shown in shown_by_tools(error):
            search.look("killed", "shown by tools", shown)
        guarded.restart()
    search.look("killed", "file", (guarded.server.home / "server.log").read_text())


# Commands and processes


@pytest.mark.parametrize("fault", ["none", "wrong password", "refused", "permission denied"])
def test_no_command_shows_it(guarded: Guarded, search: Search, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    in_environment(FAULTS[fault](guarded), monkeypatch)
    for command, arguments in COMMANDS.items():
        result = CliRunner().invoke(app, [*command.split(), *arguments])
        search.look(f"{fault}, {command}", "printed", result.output)
        if result.exception is not None:
            search.error(f"{fault}, {command}", result.exception)
    if fault == "refused":
        result = CliRunner().invoke(app, ["db", "studio"])
        search.look("refused, db studio", "printed", result.output)
        search.error("refused, db studio", result.exception or AssertionError())


def test_the_demo_shows_nothing_of_another_database(
    guarded: Guarded, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_environment(guarded.url, monkeypatch)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    for name, home in {"shown": os.environ["CONTEXTKIT_HOME"], "failed": "/dev/null/home"}.items():
        monkeypatch.setenv("CONTEXTKIT_HOME", home)
        result = CliRunner().invoke(app, ["demo"])
        search.look(f"demo, {name}", "printed", result.output)
        assert (result.exception is None) == (name == "shown")
        if result.exception is not None:
            search.error(f"demo, {name}", result.exception)


def page(port: int, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
        return str(answer.read().decode())


@pytest.mark.soak
def test_no_worker_process_of_dask_is_told_and_no_log_or_page_shows_it(guarded: Guarded, search: Search) -> None:
    engine = ck.connect(guarded.url)
    working, failing = (messages_dask(engine, 4, ck.Message.content != CONTENT) for _ in range(2))
    places = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=2, host="127.0.0.1", **places) as local, Client(local) as client:
        kept = working.persist()
        wait(kept)
        guarded.admin.execute("alter role odd nologin")
        try:
            guarded.admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'odd'")
            assert tried(search, "dask", failing.compute)
        finally:
            guarded.admin.execute("alter role odd login")
        for process in psutil.Process().children(recursive=True):
            search.look("dask", "command line", " ".join(_command(process)))
            search.look("dask", "environment", str(process.environ()))
        port = local.scheduler.http_server.port
        tasks = list(local.scheduler.tasks)
        assert tasks
        workers = [quote(address, safe="") for address in local.scheduler.workers]
        paths = [f"info/{name}/{worker}.html" for name in ("worker", "logs", "call-stacks") for worker in workers]
        for path in ("info/main/workers.html", "info/main/exceptions.html", "info/main/logs.html", *paths):
            search.look("dask", "page", page(port, path))
            search.look("dask", "page", page(port, path), CONTENT_SHOWN)
        for said in (client.get_scheduler_logs(), client.get_worker_logs(), client.get_events(), tasks):
            search.look("dask", "logged", str(said))
            search.look("dask", "logged of a content", str(said), CONTENT_SHOWN)
        search.objects("dask", dict(local.scheduler.tasks))
    engine.dispose()


def processes_below(root: psutil.Process) -> Iterator[psutil.Process]:
    yield root
    yield from root.children(recursive=True)


def test_neither_the_embedded_server_nor_its_watcher_is_told_of_another_database(
    guarded: Guarded, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_environment(guarded.url, monkeypatch)
    for name in ("PGPASSWORD", "OPENAI_API_KEY", "SOME_PASSWORD"):
        monkeypatch.setenv(name, PASSWORD)
    place = Path(tempfile.mkdtemp(prefix="contextkit-tests-", dir="/tmp"))
    place.chmod(0o711)
    server = EmbeddedServer(place / "home")
    server.join()
    try:
        home = str(server.home)
        watchers = [each for each in psutil.process_iter() if home in " ".join(_command(each))]
        found = postmaster(server.home)
        assert found is not None
        assert watchers
        for each in [*watchers, *processes_below(found)]:
            search.look("embedded", "command line", " ".join(_command(each)))
            search.look("embedded", "environment", str(each.environ()))
        search.files("embedded", server.home / "run")
        search.look("embedded", "file", (server.home / "server.log").read_text())
    finally:
        server.leave()
        assert until(lambda: postmaster(server.home) is None)
        shutil.rmtree(place, ignore_errors=True)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_no_notebook_keeps_it(guarded: Guarded, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    in_environment(guarded.url, monkeypatch)
    monkeypatch.setenv("WRONG", f"postgresql://{encoded(guarded.url)}x?password={ENCODED}x&nonsense=1")
    monkeypatch.setenv("CLOSED", f"postgresql://{encoded(guarded.url.set(port=guarded.free_port))}")
    cells = [
        "%xmode Verbose",
        "import os\nimport pandas as pd\nfrom contextkit import *",
        "engine = connect()\nengine",
        "engine.url, vars(engine), engine.pool, engine.dialect",
        "contexts_df(engine).head(2)",
        "contexts_df(engine).attrs, info(engine)",
        "pd.read_sql('select nothing', engine)",
        "add_context(engine)",
        "1 / 0",
        "os.environ['DATABASE_URL'] = os.environ.pop('CLOSED')\nclosed = connect()",
        "closed.connect()",
        "contexts_df(closed)",
        "pd.read_sql('select 1', closed)",
        "import rich.traceback\n_ = rich.traceback.install(show_locals=True)",
        "closed.connect()",
        "os.environ['DATABASE_URL'] = os.environ.pop('WRONG')\nNone",
        "connect()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert sum(output.output_type == "error" for output in outputs) >= 6
    search.look("notebook", "notebook", nbformat.writes(notebook))
