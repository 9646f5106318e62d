"""Each public function that takes an engine, as one call whose outcome can be compared."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from sqlalchemy import Engine, text

import contextkit as ck
from contextkit.sample import sample_id

PARENT, FORK = sample_id("rebase"), sample_id("rebase-fork")
VECTOR = np.eye(1, 1536, dtype=np.float32)[0]
TURNS = [{"role": role, "content": f"{role} {place}"} for place in range(40) for role in ("user", "assistant")]


@dataclass(frozen=True)
class Case:
    """A call, what it needs to find, and whether it writes."""

    group: str
    call: Callable[[Engine, Path], Any]
    prepare: str = ""
    writes: bool = False
    again: bool = False
    """Whether a second call ends where one undisturbed call does."""
    batches: bool = False
    """Whether it commits more than once or by itself, so that a part may be there, and to repeat it is right."""
    template: str = "filled"


def texts(texts: list[str], /) -> Any:
    return np.tile(VECTOR, (len(texts), 1))


def first_context(engine: Engine) -> str:
    return str(ck.contexts_df(engine, ck.Context.parent_id.is_(None))["context_id"][0])


def some_messages(engine: Engine) -> Any:
    return ck.messages_df(engine, ck.Message.embedding.is_not(None))["message_id"][:4]


def explored(engine: Engine, _folder: Path) -> Any:
    """The first page; what the widget shows in its place is raised here."""
    _, _, error, found = ck.explore(engine).children
    if error.value:
        raise ck.DatabaseUnavailableError(error.value)
    return found.children[0].children[1].options


def exported(engine: Engine, folder: Path, name: str, **asked: Any) -> Any:
    try:
        written = ck.export_file(engine, folder / name, progress=False, **asked)
    except BaseException:
        assert not list(folder.iterdir()), "a part of a file is left"
        raise
    assert [path.name for path in folder.iterdir()] == [name]
    return written


def imported(engine: Engine, folder: Path) -> Any:
    path = folder / "conversation.jsonl"
    lines = [{"id": f"c{number}", "messages": TURNS} for number in range(20)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return ck.import_file(engine, path, progress=False)["context_id"]


def generated(engine: Engine, _folder: Path) -> str:
    try:
        return str(ck.generate(engine, "none"))
    except ValueError as error:  # it read the whole schema, and the models do not differ
        return str(error)


def informed(engine: Engine, _folder: Path) -> Any:
    return ck.info(engine).drop(["latency_ms", "host", "database"])


def recalled(engine: Engine, _folder: Path) -> Any:
    return ck.recall_df(engine, sample=3, ef_search=[40])[["index", "recall"]]


NO_EMBEDDINGS = "update messages set embedding = null"
HNSW = "create index contextkit_cosine_idx on messages using hnsw (embedding vector_cosine_ops)"
CASES: dict[str, Case] = {
    # reading
    "contexts_df": Case("frames", lambda e, _: ck.contexts_df(e)),
    "forks_df": Case("frames in bulk", lambda e, _: ck.forks_df(e)),
    "messages_df": Case("frames", lambda e, _: ck.messages_df(e)),
    "messages_df embeddings": Case("frames in bulk", lambda e, _: ck.messages_df(e, embeddings=True)),
    "messages_df connections": Case("frames in bulk", lambda e, _: ck.messages_df(e, embeddings=True, connections=2)),
    "messages_batches": Case(
        "frames in bulk",
        lambda e, _: pd.concat(list(ck.messages_batches(e, batch_rows=150, embeddings=True)), ignore_index=True),
    ),
    "history_df": Case("frames", lambda e, _: ck.history_df(e, first_context(e))),
    "history_df many": Case(
        "frames in bulk", lambda e, _: ck.history_df(e, ck.contexts_df(e)["context_id"], embeddings=True)
    ),
    "read_df": Case("frames", lambda e, _: ck.read_df(e, text("select i from generate_series(1, 9000) i"))),
    "tool_calls_df": Case("frames", lambda e, _: ck.tool_calls_df(e, ck.contexts_df(e)["context_id"])),
    "window_df": Case("frames", lambda e, _: ck.window_df(e, first_context(e), 500)),
    "diff_df": Case("frames", lambda e, _: ck.diff_df(e, *ck.contexts_df(e)["context_id"][:2])),
    "show_diff": Case("frames", lambda e, _: str(ck.show_diff(e, *ck.contexts_df(e)["context_id"][:2]))),
    "preferences_df": Case("frames", lambda e, _: ck.preferences_df(e)),
    "explore": Case("explore", explored),
    "info": Case("schema", informed),
    "schema_status": Case("schema", lambda e, _: ck.schema_status(e)),
    "check_df": Case("schema", lambda e, _: ck.check_df(e)),
    "upgrade_sql": Case("schema", lambda e, _: ck.upgrade_sql(e), template="template1"),
    "generate": Case("schema", generated),
    # searching
    "neighbors_df": Case("searches", lambda e, _: ck.neighbors_df(e, VECTOR)),
    "neighbors_df many": Case("searches", lambda e, _: ck.neighbors_df(e, some_messages(e), mode="exact")),
    "neighbors_df index": Case("searches", lambda e, _: ck.neighbors_df(e, VECTOR, mode="index"), HNSW),
    "search_df": Case("searches", lambda e, _: ck.search_df(e, "git", embedder=texts)),
    "indexes_df": Case("searches", lambda e, _: ck.indexes_df(e), HNSW),
    "recall_df": Case("searches", recalled, HNSW),
    # writing
    "add_context": Case("writes", lambda e, _: len(ck.add_context(e, "new")), writes=True),
    "fork_context": Case("writes", lambda e, _: len(ck.fork_context(e, first_context(e))), writes=True),
    "append_messages": Case(
        "writes", lambda e, _: ck.append_messages(e, first_context(e), TURNS)["content"], writes=True
    ),
    "delete_context": Case("writes", lambda e, _: ck.delete_context(e, first_context(e)), writes=True),
    "restore_context": Case(
        "writes",
        lambda e, _: ck.restore_context(e, ck.contexts_df(e, include_deleted=True)["context_id"][0]),
        "update contexts set deleted_at = now()",
        writes=True,
    ),
    "delete_messages": Case(
        "writes", lambda e, _: ck.delete_messages(e, ck.messages_df(e)["message_id"][:50]), writes=True
    ),
    "restore_messages": Case(
        "writes",
        lambda e, _: ck.restore_messages(e, ck.messages_df(e, include_deleted=True)["message_id"][:50]),
        "update messages set deleted_at = now()",
        writes=True,
    ),
    "load_sample": Case(
        "writes", lambda e, _: ck.load_sample(e), "truncate messages, contexts", writes=True, again=True
    ),
    "embed_missing": Case(
        "embed",
        lambda e, _: ck.embed_missing(e, texts, batch_size=100, progress=False).attrs["left"],
        NO_EMBEDDINGS,
        writes=True,
        again=True,
        batches=True,
    ),
    "import_file": Case("files", imported, writes=True, again=True),
    "export_file": Case("files", lambda e, folder: exported(e, folder, "out.jsonl")),
    "export_file parquet": Case("files", lambda e, folder: exported(e, folder, "out.parquet")),
    "export_file partitions": Case("files", lambda e, folder: exported(e, folder, "out", partitions=3)),
    # indexes and tables
    "create_index": Case(
        "indexes", lambda e, _: ck.create_index(e, progress=False)["name"], writes=True, again=True, batches=True
    ),
    "drop_index": Case("indexes", lambda e, _: ck.drop_index(e), HNSW, writes=True, again=True, batches=True),
    "create_text_index": Case(
        "indexes", lambda e, _: ck.create_text_index(e, progress=False)["name"], writes=True, again=True, batches=True
    ),
    "upgrade": Case("schema", lambda e, _: ck.upgrade(e), writes=True, again=True, template="template1"),
    "push": Case(
        "schema", lambda e, _: ck.push(e, force=True), "drop index messages_deleted_at_idx", writes=True, again=True
    ),
}

ROWS = """
    select (select string_agg(format('%s %s %s', name, message_count, deleted_at is null), ',' order by created_at, id)
            from contexts where name is distinct from 'new'),
           (select count(*) from contexts),
           (select md5(string_agg(format('%s %s %s', content, deleted_at is null, embedding is null), ','
                                  order by context_id, version)) from messages),
           (select count(*) from messages)
"""


def state_of(url: str) -> Any:
    """What a call may have changed: tables, indexes and rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        indexes = connection.execute(
            "select relname, indisvalid from pg_index join pg_class on oid = indexrelid "
            "where relnamespace = 'public'::regnamespace order by 1"
        ).fetchall()
        there = connection.execute("select to_regclass('messages') is not null").fetchone() == (True,)
        return indexes, connection.execute(ROWS).fetchall() if there else []


def folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="contextkit-tests-")
