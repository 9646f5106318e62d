"""The main job in an installation without extras and without what develops it: `DATABASE_URL=… python smoke.py`."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import contextkit
from contextkit import distributed, explore, hashing_embedder, openai_embedder, plot_activity, sentence_embedder
from contextkit.server import EmbeddedServer
from contextkit.studio import serve


def main() -> None:
    """Load, read, search, import and export, then ask for what each extra brings."""
    engine = contextkit.connect(write=True)
    contextkit.upgrade(engine)
    contextkit.load_sample(engine)
    contexts = contextkit.contexts_df(engine)
    forks = contextkit.forks_df(engine)
    messages = contextkit.messages_df(engine, embeddings=True)
    history = contextkit.history_df(engine, contexts["context_id"])
    near = contextkit.neighbors_df(engine, messages.loc[messages["embedding"].notna(), "message_id"].iloc[0], k=5)
    found = contextkit.search_df(engine, "invoice", k=5)
    assert len(contexts) > 50
    assert contextkit.embedding_matrix(messages).shape == (len(messages), contextkit.EMBEDDING_DIMENSIONS)
    assert len(history) > len(messages) > 300
    assert len(forks) > 20
    assert len(near) == len(found) == 5
    assert "<div" in contextkit.show(history.head(20))._repr_html_()
    with tempfile.TemporaryDirectory() as folder:
        assert contextkit.export_file(engine, Path(folder, "all.parquet"), progress=False) == len(contexts)
    missing: list[tuple[str, Callable[[], object]]] = [
        ("embedded", lambda: EmbeddedServer(Path("nowhere")).join()),
        ("notebook", lambda: explore(engine)),
        ("notebook", lambda: plot_activity(messages)),
        ("studio", serve),
        ("embed", hashing_embedder),
        ("openai", openai_embedder),
        ("sentence-transformers", lambda: sentence_embedder("any")),
        ("dask", lambda: distributed.messages_dask(engine, 2)),
    ]
    for extra, call in missing:
        assert named(call) == f"contextkit[{extra}]", extra
    engine.dispose()
    print(len(contexts), "contexts,", len(messages), "messages,", len(history), "rows of histories")


def named(call: Callable[[], object]) -> str:
    """Give the extra that the error asks for."""
    try:
        call()
    except contextkit.MissingExtraError as error:
        return str(error).partition("'")[2].partition("'")[0]
    return "nothing"


if __name__ == "__main__":
    main()
