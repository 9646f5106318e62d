"""Every public function on a database, as a call that gets as far as it can; and every command."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, text

import contextkit as ck
from contextkit.sample import sample_id
from tests.secret_texts import CONTENT

CONTEXT, FORK = sample_id("docker/oom"), sample_id("docker/oom-leak")
DELETED, MESSAGE = sample_id("api/limits-burst"), sample_id("api/limits/1")
VECTOR = np.eye(1, 1536, dtype=np.float32)[0]
Call = Callable[[Engine], Any]


def texts(given: list[str], /) -> Any:
    return np.tile(VECTOR, (len(given), 1))


def imported(engine: Engine) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "conversations.jsonl")
        path.write_text(json.dumps({"messages": [{"role": "user", "content": CONTENT}]}))
        return ck.import_file(engine, path, progress=False)


def imported_broken(engine: Engine) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "conversations.jsonl")
        path.write_text('{"messages": [{"role": "user", "content": "' + CONTENT + '"}, {"role": 1}]}\n{"' + CONTENT)
        return ck.import_file(engine, path, progress=False)


def exported(engine: Engine, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        ck.export_file(engine, Path(folder, name), progress=False)
        return [path.read_bytes().decode("latin-1") for path in Path(folder).iterdir()]


CALLS: dict[str, Call] = {
    "add_context": lambda e: ck.add_context(e, CONTENT),
    "append_messages": lambda e: ck.append_messages(e, CONTEXT, [{"role": "user", "content": CONTENT}]),
    "append_messages refused": lambda e: ck.append_messages(
        e, CONTEXT, [{"role": "user", "content": CONTENT}, {"role": CONTENT, "content": CONTENT}]
    ),
    "check_df": ck.check_df,
    "contexts_df": lambda e: ck.contexts_df(e, ck.Context.name != CONTENT),
    "create_index": lambda e: ck.create_index(e, progress=False),
    "create_text_index": lambda e: ck.create_text_index(e, progress=False),
    "delete_context": lambda e: ck.delete_context(e, DELETED),
    "delete_messages": lambda e: ck.delete_messages(e, MESSAGE),
    "diff_df": lambda e: ck.diff_df(e, CONTEXT, FORK),
    "embed_missing": lambda e: ck.embed_missing(e, texts, progress=False),
    "explore": lambda e: ck.explore(e).children,
    "export_file": lambda e: exported(e, "out.jsonl"),
    "export_file parquet": lambda e: exported(e, "out.parquet"),
    "fork_context": lambda e: ck.fork_context(e, CONTEXT),
    "forks_df": ck.forks_df,
    "generate": lambda e: ck.generate(e, "none"),
    "history_df": lambda e: ck.history_df(e, CONTEXT),
    "history_df many": lambda e: ck.history_df(e, [CONTEXT, FORK], embeddings=True),
    "import_file": imported,
    "import_file broken": imported_broken,
    "indexes_df": ck.indexes_df,
    "info": ck.info,
    "load_sample": ck.load_sample,
    "messages_batches": lambda e: [frame.attrs for frame in ck.messages_batches(e, batch_rows=150, embeddings=True)],
    "messages_df": ck.messages_df,
    "messages_df bulk": lambda e: ck.messages_df(e, ck.Message.content != CONTENT, embeddings=True),
    "messages_df connections": lambda e: ck.messages_df(e, embeddings=True, connections=2),
    "neighbors_df": lambda e: ck.neighbors_df(e, VECTOR),
    "preferences_df": ck.preferences_df,
    "push": lambda e: ck.push(e, force=True),
    "read_df": lambda e: ck.read_df(e, text("select i from generate_series(1, 9000) i")),
    "read_df refused": lambda e: ck.read_df(e, text(f"select '{CONTENT}'::int from messages")),
    "recall_df": lambda e: ck.recall_df(e, sample=3, ef_search=[40]),
    "drop_index": ck.drop_index,
    "restore_context": lambda e: ck.restore_context(e, DELETED),
    "restore_messages": lambda e: ck.restore_messages(e, MESSAGE),
    "schema_status": ck.schema_status,
    "search_df": lambda e: ck.search_df(e, CONTENT, embedder=texts),
    "show_diff": lambda e: str(ck.show_diff(e, CONTEXT, FORK)),
    "tool_calls_df": lambda e: ck.tool_calls_df(e, CONTEXT),
    "upgrade": ck.upgrade,
    "upgrade_sql": ck.upgrade_sql,
    "window_df": lambda e: ck.window_df(e, CONTEXT, 500),
    # of others' objects
    "engine.connect": lambda e: e.connect().close(),
    "raw_connection": lambda e: e.raw_connection().close(),
}
FAILING = {"append_messages refused", "import_file broken", "read_df refused", "generate"}
"""What fails of itself: for what it is given, or as the models do not differ from the tables."""
PER_DRIVER = ("contexts_df", "messages_df bulk", "messages_df connections", "add_context", "upgrade", "engine.connect")
"""The ways to open a connection: on the pool, in bulk, over several, for writing, for Alembic, by the user."""
ON_FRAMES: dict[str, Callable[[Any], Any]] = {
    "embedding_matrix": ck.embedding_matrix,
    "nearest": lambda frame: ck.nearest(frame, None, k=2),
    "plot_activity": lambda frame: ck.plot_activity(frame).to_dict(),
    "plot_embeddings": lambda frame: ck.plot_embeddings(frame).to_dict(),
    "plot_tokens": lambda frame: ck.plot_tokens(frame, over="time").to_dict(),
    "show": lambda frame: ck.show(frame)._repr_html_(),
    "to_openai": ck.to_openai,
    "with_projection": ck.with_projection,
    "with_turn": ck.with_turn,
}
NEVER_NEAR = {
    "connect",  # gives the engines for all of this
    "plot_forks",  # of forks_df, beside ON_FRAMES
    *("EMBEDDING_DIMENSIONS", "Context", "Message", "Embedder"),
    *("hashing_embedder", "openai_embedder", "sentence_embedder"),
    *("select_contexts", "select_forks", "select_history", "select_messages", "select_neighbors"),
}
"""What neither takes an engine nor what came of one."""
COMMANDS: dict[str, list[str]] = {
    "info": [],
    "contexts": [],
    "show": [CONTEXT],
    "import": ["no-such-file"],
    "export": ["out.jsonl"],
    "db check": [],
    "db migrate": [],
    "db upgrade": ["--sql"],
    "db status": [],
    "db push": ["--force"],
    "db generate": ["none"],
}
ALONE = {"demo", "db studio"}
"""Commands that are tried as processes."""
