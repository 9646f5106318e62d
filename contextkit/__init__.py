"""LLM conversations in PostgreSQL, as pandas DataFrames: forks resolved, time travel, vector neighbors."""

from contextkit.connection import connect
from contextkit.derived import tool_calls_df, window_df
from contextkit.differences import diff_df
from contextkit.embed import Embedder, embed_missing
from contextkit.embedders import hashing_embedder, openai_embedder, sentence_embedder
from contextkit.errors import (
    ContextkitError,
    ContextkitWarning,
    DatabaseUnavailableError,
    DimensionError,
    FormatError,
    LineageError,
    MissingExtraError,
    NotFoundError,
    ReadOnlyError,
    SchemaError,
)
from contextkit.explore import explore
from contextkit.formats import export_file, import_file
from contextkit.frames import (
    contexts_df,
    embedding_matrix,
    forks_df,
    history_df,
    messages_batches,
    messages_df,
    read_df,
)
from contextkit.indexes import create_index, drop_index, indexes_df
from contextkit.info import info
from contextkit.migrate import generate, push, schema_status, upgrade
from contextkit.models import EMBEDDING_DIMENSIONS, Context, Message
from contextkit.nearest import nearest
from contextkit.neighbors import neighbors_df
from contextkit.plots import plot_activity, plot_embeddings, plot_forks, plot_tokens
from contextkit.preferences import preferences_df
from contextkit.queries import (
    select_contexts,
    select_forks,
    select_history,
    select_messages,
    select_neighbors,
)
from contextkit.recall import recall_df
from contextkit.sample import load_sample
from contextkit.search import create_text_index, search_df
from contextkit.show import show, show_diff
from contextkit.steps import to_openai, with_projection, with_turn
from contextkit.store import (
    add_context,
    append_messages,
    delete_context,
    delete_messages,
    fork_context,
    restore_context,
    restore_messages,
)

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "Context",
    "ContextkitError",
    "ContextkitWarning",
    "DatabaseUnavailableError",
    "DimensionError",
    "Embedder",
    "FormatError",
    "LineageError",
    "Message",
    "MissingExtraError",
    "NotFoundError",
    "ReadOnlyError",
    "SchemaError",
    "add_context",
    "append_messages",
    "connect",
    "contexts_df",
    "create_index",
    "create_text_index",
    "delete_context",
    "delete_messages",
    "diff_df",
    "drop_index",
    "embed_missing",
    "embedding_matrix",
    "explore",
    "export_file",
    "fork_context",
    "forks_df",
    "generate",
    "hashing_embedder",
    "history_df",
    "import_file",
    "indexes_df",
    "info",
    "load_sample",
    "messages_batches",
    "messages_df",
    "nearest",
    "neighbors_df",
    "openai_embedder",
    "plot_activity",
    "plot_embeddings",
    "plot_forks",
    "plot_tokens",
    "preferences_df",
    "push",
    "read_df",
    "recall_df",
    "restore_context",
    "restore_messages",
    "schema_status",
    "search_df",
    "select_contexts",
    "select_forks",
    "select_history",
    "select_messages",
    "select_neighbors",
    "sentence_embedder",
    "show",
    "show_diff",
    "to_openai",
    "tool_calls_df",
    "upgrade",
    "window_df",
    "with_projection",
    "with_turn",
]
