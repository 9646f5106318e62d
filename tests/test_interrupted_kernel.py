"""Interrupting a notebook's kernel in each long call ends the statement on the server, and the next cell works."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from sqlalchemy import make_url

from contextkit import connect, load_sample
from contextkit.formats.importing import ONE_IMPORT_AT_A_TIME
from tests.conftest import _fresh
from tests.test_connection import until

SLEEPS = "wait_event = 'PgSleep'"
WAITS = "wait_event_type = 'Lock'"
HOLDS = "state = 'idle in transaction'"
COPIES = "wait_event = 'PgSleep' and query like 'COPY%'"
SENDS = "state = 'active' and query like 'COPY%generate_series%'"

SLOW_VIEWS = """
    create schema slow;
    create view slow.messages as select * from public.messages where pg_sleep(0.1) is not null;
    create view slow.contexts as select * from public.contexts where pg_sleep(0.3) is not null;
"""
START = """
    import time
    import numpy as np
    from sqlalchemy import text
    from contextkit import *
    engine = connect({url!r}, write=True)
    slow = connect({slow!r})
    ids = contexts_df(engine)["context_id"]
    vector = np.eye(1, 1536, dtype="float32")[0]
    embedder = lambda texts: np.tile(vector, (len(texts), 1))
    late = lambda texts: time.sleep(60)
    rows = [{{"role": "user", "content": "one"}}]
"""
TABLES = "lock table contexts, messages in access exclusive mode"
ROWS = "select from contexts for update"
WRITER = "update messages set model = model"


@dataclass(frozen=True)
class Call:
    """A cell, what another transaction holds meanwhile, and how the server tells that the call is in the midst."""

    code: str
    held: str = ""
    midst: str = SLEEPS


CALLS = [
    Call("contexts_df(slow)"),
    Call("forks_df(slow)", midst=COPIES),
    Call("messages_df(slow)"),
    Call("messages_df(slow, embeddings=True)", midst=COPIES),
    Call("messages_df(slow, embeddings=True, connections=2)", midst=COPIES),
    Call("list(messages_batches(slow, batch_rows=100, embeddings=True))", midst=COPIES),
    Call("history_df(slow, ids[0])"),
    Call("history_df(slow, ids, embeddings=True)", midst=COPIES),
    Call("read_df(slow, text('select pg_sleep(60)::text'))"),
    Call("read_df(slow, text('select i from generate_series(1, 100000000) i'))", midst=SENDS),
    Call("tool_calls_df(slow, ids)"),
    Call("window_df(slow, ids[0], 100)"),
    Call("diff_df(slow, ids[0], ids[1])"),
    Call("show_diff(slow, ids[0], ids[1])"),
    Call("preferences_df(slow)"),
    Call("neighbors_df(slow, vector, mode='exact')"),
    Call("search_df(slow, 'git')"),
    Call("search_df(slow, 'git', mode='semantic', embedder=embedder)"),
    Call("info(slow)"),
    Call("explore(slow)"),
    Call("export_file(slow, '{folder}/out.jsonl')"),
    Call("export_file(slow, '{folder}/out.parquet')"),
    Call("export_file(slow, '{folder}/out', partitions=2)"),
    Call("recall_df(engine)", TABLES, WAITS),
    Call("import_file(engine, '{folder}/given.jsonl')", f"select pg_advisory_xact_lock({ONE_IMPORT_AT_A_TIME})", WAITS),
    Call("import_file(engine, '{folder}/given.jsonl')", TABLES, WAITS),
    Call("embed_missing(engine, late)", midst=HOLDS),
    Call("embed_missing(engine, embedder)", TABLES, WAITS),
    Call("append_messages(engine, ids[0], rows)", ROWS, WAITS),
    Call("fork_context(engine, ids[0])", ROWS, WAITS),
    Call("add_context(engine)", TABLES, WAITS),
    Call("delete_context(engine, ids[0])", ROWS, WAITS),
    Call("restore_context(engine, ids[0])", ROWS, WAITS),
    Call("delete_messages(engine, messages_df(engine)['message_id'])", ROWS, WAITS),
    Call("load_sample(engine)", TABLES, WAITS),
    Call("create_index(engine)", WRITER, WAITS),
    Call("create_text_index(engine)", WRITER, WAITS),
    Call("upgrade(engine)", "select pg_advisory_xact_lock(7235094618)", WAITS),
    Call("schema_status(engine), push(engine, force=True)", "select pg_advisory_xact_lock(7235094618)", WAITS),
]


class Notebook:
    """A kernel, the folder that its cells write to, and the database that they read."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient, url: str, folder: Path) -> None:
        self.manager = manager
        self.client = client
        self.url = url
        self.folder = folder

    def begin(self, code: str) -> str:
        # With stop_on_error the kernel would refuse what is sent right after an error.
        code = code.replace("{folder}", str(self.folder))
        return self.client.execute(code, store_history=False, stop_on_error=False)

    def reply(self, message: str) -> Any:
        deadline = time.monotonic() + 60
        while (reply := self.client.get_shell_msg(timeout=deadline - time.monotonic()))["parent_header"][
            "msg_id"
        ] != message:
            pass
        return reply["content"]

    def run(self, code: str) -> Any:
        return self.reply(self.begin(code))

    def backends(self, condition: str) -> int:
        query = f"""
            select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'contextkit' and {condition}
        """
        with psycopg.connect(self.url, autocommit=True) as admin:
            row = admin.execute(query).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture(scope="module")
def notebook(server_url: str, migrated: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("notebook")
    lines = [{"messages": [{"role": "user", "content": f"{n}"}]} for n in range(100)]
    (folder / "given.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with ExitStack() as stack:
        (url,) = stack.enter_context(_database(server_url, migrated))
        engine = connect(url, write=True)
        load_sample(engine)
        engine.dispose()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SLOW_VIEWS)
            connection.execute("update messages set embedding = null where version = 1")
            connection.execute("create index contextkit_l2_idx on messages using hnsw (embedding vector_l2_ops)")
            connection.execute("analyze")
        slow = make_url(url).update_query_dict({"options": "-csearch_path=slow,public"})
        manager = KernelManager()
        manager._kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
        manager.start_kernel()
        stack.callback(manager.shutdown_kernel, now=True)
        client = manager.blocking_client()
        client.start_channels()
        stack.callback(client.stop_channels)
        client.wait_for_ready(timeout=60)
        notebook = Notebook(manager, client, url, folder)
        started = notebook.run(
            "\n".join(START.format(url=url, slow=slow.render_as_string(hide_password=False)).split("\n    "))
        )
        assert started["status"] == "ok", started
        yield notebook


@contextmanager
def _database(server_url: str, migrated: str) -> Iterator[list[str]]:
    databases = _fresh(server_url, migrated, direct=True)  # the search_path of a URL passes no pooler
    yield [next(databases)]
    next(databases, None)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.code} {call.held}".strip())
def test_an_interrupt_ends_the_statement_and_the_next_cell_works(notebook: Notebook, call: Call) -> None:
    with psycopg.connect(notebook.url) as other:
        other.execute(call.held or "select 1")
        cell = notebook.begin(call.code)
        assert until(lambda: notebook.backends(call.midst)), notebook.reply(cell)
        begun = time.monotonic()
        notebook.manager.interrupt_kernel()
        # What is left of an index is removed next, which may have to wait like its build.
        busy = f"({call.midst} or state = 'active') and query not like 'drop index%'"
        assert until(lambda: not notebook.backends(busy), seconds=10)
        print(f"ended after {time.monotonic() - begun:.2f} s")
        other.rollback()
        reply = notebook.reply(cell)
    assert (reply["status"], reply.get("ename")) == ("error", "KeyboardInterrupt")
    following = notebook.run(
        "assert len(contexts_df(engine)) == len(ids) and len(messages_df(engine, embeddings=True))"
    )
    assert following["status"] == "ok", following
    assert {path.name for path in notebook.folder.iterdir()} == {"given.jsonl"}


def test_afterwards_nothing_is_left(notebook: Notebook) -> None:
    assert notebook.run("engine.dispose(), slow.dispose()")["status"] == "ok"
    assert until(lambda: notebook.backends("true") == 0)
    names = "[thread.name for thread in __import__('threading').enumerate() if thread.name == 'contextkit']"
    assert notebook.run(f"assert not {names}")["status"] == "ok"
    with psycopg.connect(notebook.url) as connection:
        assert connection.execute("select count(*) from pg_index where not indisvalid").fetchone() == (0,)
