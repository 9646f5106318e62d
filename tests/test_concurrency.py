"""Writers at once: nothing lost, nothing doubled, no error but those that are documented."""

import os
import threading
from typing import Any

import pytest
from sqlalchemy import create_engine, event

from contextkit import (
    ContextkitError,
    add_context,
    append_messages,
    check_df,
    connect,
    contexts_df,
    delete_messages,
    embed_missing,
    embedding_matrix,
    messages_df,
    restore_context,
)
from tests.concurrency import at_once, embedder, findings

SECONDS = float(os.environ.get("CONTEXTKIT_SECONDS", "0"))
"""How long the processes write; by default each calls a few times."""
CALLS = 8


def test_processes_that_write_to_the_same_contexts_lose_and_double_nothing(
    empty_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = at_once(empty_url, seconds=SECONDS) if SECONDS else at_once(empty_url, calls=CALLS)
    if SECONDS:
        with capsys.disabled():
            print(f"\ncalls {dict(told.calls)}\nerrors {dict(told.errors)}\nrows {dict(told.rows)}")
    engine = connect(empty_url, write=True)
    assert told.errors.keys() <= {"NotFoundError"}
    assert findings(engine) == {}
    contexts = contexts_df(engine, include_deleted=True)
    messages = messages_df(engine, include_deleted=True)
    assert (len(contexts), len(messages)) == (told.rows["contexts"], told.rows["messages"])
    gone = told.rows["deletions"] - told.rows["restorations"]
    assert messages["deleted_at"].notna().sum() == gone
    assert contexts["message_count"].sum() == len(messages) - gone
    for context in contexts.loc[contexts["deleted_at"].notna(), "context_id"]:
        restore_context(engine, context)
    told.rows["embeddings"] += len(embed_missing(engine, embedder, progress=False))
    assert check_df(engine).empty
    live = messages_df(engine, embeddings=True)
    assert live["embedding"].notna().all()
    embedded = messages_df(engine, embeddings=True, include_deleted=True)["embedding"].notna().sum()
    assert embedded == told.rows["embeddings"]  # each once
    assert (embedding_matrix(live) == embedder(live["content"].tolist())).all()
    engine.dispose()


def test_a_writer_overtaken_in_a_strict_isolation_level_is_told_to_run_it_again(database_url: str) -> None:
    engine = connect(database_url, write=True)
    context = add_context(engine)
    strict = create_engine(engine.url, isolation_level="SERIALIZABLE")
    overtaken = threading.Event()

    @event.listens_for(strict, "after_cursor_execute")
    def overtake(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("SELECT") and "FOR UPDATE" not in statement and not overtaken.is_set():
            overtaken.set()
            append_messages(engine, context, [{"role": "user", "content": "first"}])

    message = append_messages(engine, context, [{"role": "user", "content": "zeroth"}])["message_id"]
    with pytest.raises(ContextkitError, match=r"another writer changed the same rows first.*run it again.*40001"):
        delete_messages(strict, message)
    assert delete_messages(strict, message) == 1
    strict.dispose()
    engine.dispose()
