"""Every public function, called on the rows of `schemas`, with what it gives made comparable between databases."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine, func, select

import contextkit as ck
from contextkit import Context, Message
from contextkit.explore.widget import Explorer
from tests.foreign.schemas import COPY, FORK, GONE, MESSAGES, ORDINARY, OTHER, RENUMBERED, ROOT, message_id

Call = Callable[[Engine, Path], Any]

OURS = Context.id.in_(ORDINARY)
SEEDED = Message.id.in_([message_id(*row[:2]) for row in MESSAGES])
LIVE = tuple(context for context in ORDINARY if context != GONE)
VECTOR = np.cos(np.arange(1, 1537)).astype(np.float32)
"""That of the first message, nearly."""
AFTER = pd.Timestamp("2026-01-15", tz="UTC").to_pydatetime()
LINE = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]}


def rows(frame: pd.DataFrame, *left_out: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Dtypes and rows of a frame, of embeddings only whether they are there."""
    kept = frame.drop(columns=list(left_out))
    if "embedding" in kept:
        kept["embedding"] = kept["embedding"].notna()
    dtypes = {name: str(frame[name].dtype) for name in kept}
    return dtypes, json.loads(kept.to_json(orient="records", date_format="iso", double_precision=5))


def state(engine: Engine, context_id: str) -> tuple[Any, ...]:
    """What a context is after a write: its counters, and its history."""
    columns = (Context.message_count, Context.total_tokens, Context.latest_version, Context.deleted_at.is_not(None))
    with engine.connect() as connection:
        counters = tuple(connection.execute(select(*columns).where(Context.id == context_id)).one())
    history = ck.history_df(engine, context_id, include_deleted=True)
    return counters, history[["position", "version", "role", "content"]].to_dict("records")


def spec(chart: Any) -> tuple[int, list[str]]:
    """How much a chart draws."""
    data = chart.to_dict()["datasets"]
    return len(data), sorted(str(len(values)) for values in data.values())


def embedder(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([VECTOR * (1 + len(text)) for text in texts])


def found(frame: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Of a search: dtypes, and which messages."""
    return frame.dtypes.astype(str).to_dict(), frame["message_id"].tolist()


def loaded(engine: Engine) -> pd.DataFrame:
    return ck.messages_df(engine, OURS, embeddings=True)


def exported(engine: Engine, path: Path, *where: Any) -> tuple[int, Any]:
    count = ck.export_file(engine, path, OURS, *where, progress=False)
    if path.suffix == ".parquet":
        return count, rows(pd.read_parquet(path, dtype_backend="pyarrow"))[1]
    return count, path.read_text()


def imported(engine: Engine, folder: Path) -> Any:
    path = folder / "lines.jsonl"
    path.write_text(json.dumps(LINE) + "\n")
    frame = ck.import_file(engine, path, progress=False)
    again = ck.import_file(engine, path, progress=False)
    return rows(frame), again["state"].tolist(), [state(engine, id_) for id_ in frame["context_id"]]


def embedded(engine: Engine, _folder: Path) -> Any:
    frame = ck.embed_missing(engine, embedder, SEEDED, progress=False)
    return rows(frame), frame.attrs, ck.messages_df(engine, SEEDED, embeddings=True)["embedding"].notna().tolist()


def explored(engine: Engine, _folder: Path) -> Any:
    """What the widget shows of each view; it shows errors where it cannot."""
    explorer = Explorer(engine)
    explorer.asked["text"].value = ROOT
    views = [explorer.summary.value]
    for view in ("transcript", "fork tree", "neighbors"):
        explorer.views.value = view
        explorer.contexts.value = (ROOT,)
        views.append(explorer.error.value)
    return views, len(explorer.messages.options)


def written(engine: Engine, context_id: str, messages: list[dict[str, Any]]) -> Any:
    return rows(ck.append_messages(engine, context_id, messages), "message_id", "created_at"), state(engine, context_id)


def fork(engine: Engine, _folder: Path) -> Any:
    made = ck.fork_context(engine, ROOT, 2, name="a fork")
    return rows(ck.contexts_df(engine, Context.id == made), "context_id", "created_at", "updated_at"), state(
        engine, made
    )


def added(engine: Engine, _folder: Path) -> Any:
    made = ck.add_context(engine, "it's new")
    return rows(ck.contexts_df(engine, Context.id == made), "context_id", "created_at", "updated_at")


def batches(engine: Engine) -> Iterator[Any]:
    for frame in ck.messages_batches(engine, OURS, batch_rows=4):
        yield rows(frame)


def nearest(frame: pd.DataFrame) -> bool:
    """Whether it gives what NumPy measures."""
    others = frame[(frame["message_id"] != MESSAGE) & frame["embedding"].notna()]
    own = ck.embedding_matrix(frame[frame["message_id"] == MESSAGE])[0]
    matrix = ck.embedding_matrix(others)
    distances = 1 - matrix @ own / np.linalg.norm(matrix, axis=1) / np.linalg.norm(own)
    ranked = sorted(zip(distances.round(5), others["message_id"], strict=True))
    return [id_ for _, id_ in ranked[:3]] == ck.nearest(frame, MESSAGE, k=3)["message_id"].tolist()


def index(made: pd.Series) -> dict[str, Any]:
    return made.drop(["size", "name"]).to_dict()


MESSAGE = message_id(ROOT, 1)
READS: dict[str, Call] = {
    "connect": lambda e, _: ck.read_df(e, select(func.count()).select_from(Context).where(OURS)).iloc[0, 0],
    "info": lambda e, _: sorted(ck.info(e).index),
    "contexts_df": lambda e, _: rows(ck.contexts_df(e, OURS, include_deleted=True)),
    "contexts_df: of messages": lambda e, _: rows(ck.contexts_df(e, OURS, Message.role == "tool")),
    "messages_df": lambda e, _: rows(ck.messages_df(e, OURS, include_deleted=True)),
    "messages_df: role": lambda e, _: rows(ck.messages_df(e, OURS, Message.role.in_(["user", "system"]))),
    "messages_df: two connections": lambda e, _: rows(ck.messages_df(e, OURS, connections=2)),
    "messages_df: embeddings": lambda e, _: rows(loaded(e)),
    "messages_batches": lambda e, _: list(batches(e)),
    "forks_df": lambda e, _: rows(ck.forks_df(e, OURS)),
    "history_df": lambda e, _: rows(ck.history_df(e, list(LIVE))),
    "history_df: as of": lambda e, _: rows(ck.history_df(e, list(ORDINARY), as_of=AFTER)),
    "history_df: embeddings": lambda e, _: rows(ck.history_df(e, list(LIVE), embeddings=True)),
    "tool_calls_df": lambda e, _: rows(ck.tool_calls_df(e, list(LIVE))),
    "window_df": lambda e, _: rows(ck.window_df(e, ROOT, 10)),
    "diff_df": lambda e, _: rows(ck.diff_df(e, FORK, COPY)),
    "preferences_df": lambda e, _: rows(ck.preferences_df(e, OURS)),
    "check_df": lambda e, _: ck.check_df(e).query("kind != 'schema'").iloc[:, :3].to_json(orient="values"),
    "upgrade_sql": lambda e, _: ck.upgrade_sql(e),
    "read_df": lambda e, _: rows(ck.read_df(e, select(Message.id, Message.role).join(Context).where(OURS))),
    "select_contexts": lambda e, _: rows(ck.read_df(e, ck.select_contexts(OURS).limit(2))),
    "select_messages": lambda e, _: rows(ck.read_df(e, ck.select_messages(OURS).limit(2))),
    "select_forks": lambda e, _: rows(ck.read_df(e, ck.select_forks(OURS).limit(2))),
    "select_history": lambda e, _: rows(ck.read_df(e, ck.select_history([FORK]).limit(2))),
    "select_neighbors": lambda e, _: found(ck.read_df(e, ck.select_neighbors(VECTOR, OURS, k=3))),
    "neighbors_df": lambda e, _: found(ck.neighbors_df(e, VECTOR, OURS, k=3)),
    "neighbors_df: of a message": lambda e, _: found(ck.neighbors_df(e, MESSAGE, OURS, k=3)),
    "neighbors_df: of many": lambda e, _: found(ck.neighbors_df(e, [MESSAGE, message_id(COPY, 3)], OURS, k=2)),
    "neighbors_df: l1": lambda e, _: found(ck.neighbors_df(e, VECTOR, OURS, k=3, distance="l1")),
    "search_df": lambda e, _: found(ck.search_df(e, "weather Bonn", OURS)),
    "search_df: hybrid": lambda e, _: found(ck.search_df(e, "weather Bonn", OURS, k=3, embedder=embedder)),
    "nearest": lambda e, _: nearest(loaded(e)),
    "embedding_matrix": lambda e, _: np.isnan(ck.embedding_matrix(loaded(e))).any(axis=1).tolist(),
    "with_projection": lambda e, _: ck.with_projection(loaded(e))["projection_x"].notna().tolist(),
    "with_turn": lambda e, _: ck.with_turn(ck.history_df(e, list(LIVE)))["turn"].tolist(),
    "to_openai": lambda e, _: ck.to_openai(ck.history_df(e, COPY)),
    "show": lambda e, _: str(ck.show(ck.history_df(e, ROOT))),
    "show_diff": lambda e, _: str(ck.show_diff(e, FORK, COPY)),
    "explore": explored,
    "plot_forks": lambda e, _: spec(ck.plot_forks(ck.forks_df(e, OURS))),
    "plot_tokens": lambda e, _: spec(ck.plot_tokens(ck.history_df(e, list(LIVE)), over="time")),
    "plot_activity": lambda e, _: spec(ck.plot_activity(ck.messages_df(e, OURS))),
    "plot_embeddings": lambda e, _: spec(ck.plot_embeddings(loaded(e), x="version", y="token_count")),
    "export_file": lambda e, folder: exported(e, folder / "histories.jsonl"),
    "export_file: parquet": lambda e, folder: exported(e, folder / "histories.parquet"),
    "indexes_df": lambda e, _: ck.indexes_df(e)["distance"].tolist(),
}  # fmt: skip
WRITES: dict[str, Call] = {
    "add_context": added,
    "fork_context": fork,
    "append_messages": lambda e, _: written(e, FORK, [{"role": "user", "content": "a; $1 %s :x \\"}]),
    "append_messages: embedding": lambda e, _: written(
        e, RENUMBERED, [{"role": "tool", "content": "x", "embedding": VECTOR, "token_count": 3}]
    ),
    "delete_messages": lambda e, _: (ck.delete_messages(e, message_id(COPY, 3)), state(e, COPY)),
    "restore_messages": lambda e, _: (ck.restore_messages(e, [message_id(ROOT, 5)]), state(e, ROOT)),
    "delete_context": lambda e, _: (ck.delete_context(e, OTHER), state(e, OTHER)),
    "restore_context": lambda e, _: (ck.restore_context(e, GONE), state(e, GONE)),
    "embed_missing": embedded,
    "import_file": imported,
    "create_text_index": lambda e, _: index(ck.create_text_index(e, progress=False)),
    "create_index": lambda e, _: index(ck.create_index(e, "l2", progress=False)),
    "create_index: halfvec": lambda e, _: index(ck.create_index(e, "l2", halfvec=True, progress=False)),
    "neighbors_df: index": lambda e, _: found(ck.neighbors_df(e, VECTOR, SEEDED, k=3, distance="l2", mode="index")),
    "recall_df": lambda e, _: ck.recall_df(e, k=2, sample=2, ef_search=[40])["recall"].tolist(),
    "drop_index": lambda e, _: ck.drop_index(e, "l2"),
    "load_sample": lambda e, _: (ck.load_sample(e), ck.load_sample(e)),
}  # fmt: skip
STRUCTURE: dict[str, Call] = {
    "schema_status": lambda e, _: ck.schema_status(e)[["state", "differences"]].tolist(),
    "generate": lambda e, _: ck.generate(e, "nothing"),
    "upgrade": lambda e, _: (ck.upgrade(e), ck.upgrade(e)),
    "push": lambda e, _: ck.push(e, force=True),
}
NO_DATABASE = {"hashing_embedder", "openai_embedder", "sentence_embedder"}
"""What never touches one."""
