"""How users call the public functions, and the types that they get; read by type checkers, never run."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import Engine, Select, func, select

import contextkit
from contextkit import Context, Embedder, Message
from contextkit.show.rendered import Rendered

CONTEXT_ID = "00000000-0000-4000-8000-000000000000"


def opening() -> None:
    engine = contextkit.connect("postgresql://localhost/app", write=True, pool_size=2, statement_timeout=30)
    assert_type(engine, Engine)
    assert_type(contextkit.upgrade(engine), str)
    assert_type(contextkit.upgrade_sql(engine), str)
    assert_type(contextkit.push(engine, force=True), str)
    assert_type(contextkit.generate(engine, "rating"), Path)
    assert_type(contextkit.schema_status(engine)["state"], Any)
    assert_type(contextkit.info(engine)["postgresql"], Any)
    assert_type(contextkit.load_sample(engine), int)


def frames(engine: Engine) -> None:
    recent = Context.created_at >= datetime(2026, 1, 1, tzinfo=UTC)
    questions = Message.role == "user"
    contexts = contextkit.contexts_df(engine, recent, questions, Context.name.is_not(None), include_deleted=True)
    assert_type(contexts, pd.DataFrame)
    assert_type(contextkit.forks_df(engine, Context.parent_id.is_(None)), pd.DataFrame)
    messages = contextkit.messages_df(
        engine, questions, Message.context_id.in_(contexts["context_id"]), embeddings=True
    )
    assert_type(messages, pd.DataFrame)
    assert_type(contextkit.messages_batches(engine, batch_rows=100), Iterator[pd.DataFrame])
    assert_type(contextkit.history_df(engine, CONTEXT_ID, at_version=3), pd.DataFrame)
    assert_type(contextkit.history_df(engine, contexts["context_id"], as_of=datetime.now(UTC)), pd.DataFrame)
    assert_type(contextkit.tool_calls_df(engine, [CONTEXT_ID]), pd.DataFrame)
    assert_type(contextkit.window_df(engine, CONTEXT_ID, 4_000), pd.DataFrame)
    assert_type(contextkit.diff_df(engine, CONTEXT_ID, CONTEXT_ID), pd.DataFrame)
    assert_type(contextkit.preferences_df(engine, recent), pd.DataFrame)
    assert_type(contextkit.check_df(engine), pd.DataFrame)
    assert_type(contextkit.embedding_matrix(messages), NDArray[np.float32])


def steps(history: pd.DataFrame) -> None:
    assert_type(contextkit.with_turn(history), pd.DataFrame)
    assert_type(history.pipe(contextkit.with_turn), pd.DataFrame)
    assert_type(contextkit.with_projection(history), pd.DataFrame)
    assert_type(contextkit.to_openai(history), list[dict[str, Any]])


def statements(engine: Engine) -> None:
    latest = contextkit.select_messages().order_by(None).order_by(Message.created_at.desc()).limit(10)
    assert_type(latest, Select[*tuple[Any, ...]])
    vector = np.zeros(contextkit.EMBEDDING_DIMENSIONS, np.float32)
    assert_type(contextkit.select_contexts(Context.name == "a"), Select[*tuple[Any, ...]])
    assert_type(contextkit.select_forks(), Select[*tuple[Any, ...]])
    assert_type(contextkit.select_history([CONTEXT_ID]), Select[*tuple[Any, ...]])
    assert_type(contextkit.select_neighbors(vector, k=3), Select[*tuple[Any, ...]])
    assert_type(contextkit.read_df(engine, latest), pd.DataFrame)
    per_model = select(Message.model, func.count()).group_by(Message.model)
    assert_type(per_model, Select[str | None, int])
    assert_type(contextkit.read_df(engine, per_model), pd.DataFrame)
    with engine.connect() as connection:
        for message_id, content in connection.execute(select(Message.id, Message.content)):
            assert_type(message_id, str)
            assert_type(content, str)
        for message in connection.execute(latest):
            assert_type(message.content, Any)


def searches(engine: Engine, messages: pd.DataFrame, embedder: Embedder) -> None:
    near = contextkit.neighbors_df(engine, messages["message_id"], Message.role == "user", k=3, distance="l2")
    assert_type(near, pd.DataFrame)
    assert_type(contextkit.neighbors_df(engine, [0.0] * 1536, mode="index", ef_search=100), pd.DataFrame)
    assert_type(contextkit.nearest(messages, None, k=3), pd.DataFrame)
    assert_type(contextkit.search_df(engine, "umlauts", embedder=embedder, mode="hybrid"), pd.DataFrame)
    assert_type(contextkit.recall_df(engine, sample=20), pd.DataFrame)
    assert_type(contextkit.indexes_df(engine), pd.DataFrame)
    assert_type(contextkit.create_index(engine, "inner", halfvec=True)["name"], Any)
    assert_type(contextkit.create_text_index(engine)["name"], Any)
    assert_type(contextkit.drop_index(engine), int)


def writes(engine: Engine) -> None:
    context_id = contextkit.add_context(engine, "a name")
    assert_type(context_id, str)
    assert_type(contextkit.fork_context(engine, context_id, at_version=3, name="what if"), str)
    written = contextkit.append_messages(engine, context_id, [{"role": "user", "content": "Hi", "token_count": 2}])
    assert_type(written, pd.DataFrame)
    assert_type(contextkit.append_messages(engine, context_id, written), pd.DataFrame)
    assert_type(contextkit.delete_messages(engine, written["message_id"]), int)
    assert_type(contextkit.restore_messages(engine, written["message_id"]), int)
    assert_type(contextkit.delete_context(engine, context_id), int)
    assert_type(contextkit.restore_context(engine, context_id), int)


def files(engine: Engine) -> None:
    assert_type(contextkit.import_file(engine, "export.zip", on_error="skip", progress=False), pd.DataFrame)
    assert_type(contextkit.export_file(engine, Path("histories.jsonl"), Context.deleted_at.is_(None)), int)
    assert_type(contextkit.export_file(engine, "histories", partitions=4, format="parquet"), int)


def embedders(engine: Engine) -> None:
    def words(texts: list[str], /) -> list[list[float]]:
        return [[float(len(text))] * contextkit.EMBEDDING_DIMENSIONS for text in texts]

    assert_type(contextkit.hashing_embedder(), Embedder)
    assert_type(contextkit.openai_embedder(base_url="http://localhost:8000/v1"), Embedder)
    assert_type(contextkit.sentence_embedder("all-MiniLM-L6-v2"), Embedder)
    assert_type(contextkit.embed_missing(engine, words, Message.role == "user", batch_size=10), pd.DataFrame)


def looking(engine: Engine, frame: pd.DataFrame) -> None:
    assert_type(contextkit.show(frame), Rendered)
    assert_type(contextkit.show_diff(engine, CONTEXT_ID, CONTEXT_ID), Rendered)
    assert_type(contextkit.plot_forks(frame), alt.LayerChart)
    assert_type(contextkit.plot_tokens(frame), alt.LayerChart)
    assert_type(contextkit.plot_activity(frame), alt.Chart)
    assert_type(contextkit.plot_embeddings(frame), alt.Chart)
    contextkit.explore(engine)


def errors(engine: Engine) -> str:
    try:
        contextkit.upgrade(engine)
    except (contextkit.DatabaseUnavailableError, contextkit.SchemaError, contextkit.ReadOnlyError) as error:
        return str(error)
    except (contextkit.NotFoundError, contextkit.LineageError, contextkit.MissingExtraError) as error:
        return str(error)
    except (contextkit.DimensionError, contextkit.FormatError) as error:
        assert_type(error, contextkit.DimensionError | contextkit.FormatError)
        return str(error)
    except contextkit.ContextkitError as error:
        return str(error)
    raise contextkit.ContextkitWarning
