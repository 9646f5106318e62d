"""`contextkit demo`: what contextkit does, in a terminal, in a database of its own that is dropped again."""

import inspect
import io
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import URL, Engine, make_url, text

from contextkit.connection import connect
from contextkit.frames import contexts_df, history_df, messages_df
from contextkit.migrate import upgrade
from contextkit.models import Context, Message
from contextkit.neighbors import neighbors_df
from contextkit.sample import load_sample
from contextkit.server import EmbeddedServer
from contextkit.visible import visible_line

WIDTH = 100
NARROW = 16  # a column of at most that many is never cut
GAP = 2
START = """\
engine = connect(write=True)
upgrade(engine)
load_sample(engine)"""


def main() -> None:
    """Print what each step gives, below the lines of Python that gave it."""
    _say("contextkit on sample conversations. Each table comes from the lines above it.")
    _say("\n" + textwrap.indent(START, "    "))
    with _sample_engine() as engine:
        for step in (_contexts, _history, _neighbors):
            title, code = _explained(step)
            _say(f"\n{title}\n\n{textwrap.indent(code, '    ')}\n\n{as_text(step(engine))}")
    _say("\nGo on with `make lab` (the notebooks) and README.md (every function).")


def _contexts(engine: Engine) -> pd.DataFrame:
    """1. Contexts are rows of a DataFrame; the group-by is pandas' own."""
    contexts = contexts_df(engine)
    contexts["topic"] = contexts["name"].str.split(":").str[0]
    topics = contexts.groupby("topic", as_index=False)[["message_count", "total_tokens"]].sum()
    return topics.nlargest(5, "message_count")


def _history(engine: Engine) -> pd.DataFrame:
    """2. What the model saw in a fork of a fork of a fork of a fork, and whose rows these are."""
    names = contexts_df(engine).set_index("context_id")["name"]
    fork = names[names == "import: CSV script, a mail when it fails"].index
    history = history_df(engine, fork)
    history["source"] = history["source_context_id"].map(names)
    return history[["position", "version", "role", "source", "content"]]


def _neighbors(engine: Engine) -> pd.DataFrame:
    """3. Neighbors of a question: what people asked elsewhere that is nearest to it, forks left out."""
    asked = messages_df(engine, Message.content.startswith("The import of my customer")).iloc[0]
    elsewhere = [Context.id != asked["context_id"], Context.parent_id.is_(None)]
    near = neighbors_df(engine, asked["message_id"], Message.role == "user", *elsewhere, k=5)
    near = near.merge(contexts_df(engine)[["context_id", "name"]])
    return near[["rank", "distance", "name", "content"]]


def as_text(frame: pd.DataFrame) -> str:
    r"""Table for a terminal, at most 100 columns wide; nothing in it can steer the terminal.

    >>> print(as_text(pd.DataFrame({"rank": [1], "content": ["red \x1b[31m"]})))
    rank  content
       1  red \x1b[31m
    """
    cells = {str(name): [_shown(value) for value in frame[name]] for name in frame.columns}
    longest = {name: max(map(cell_len, [name, *column])) for name, column in cells.items()}
    wide = [name for name, length in longest.items() if length > NARROW]
    gaps = GAP * (len(cells) - 1)
    spare = WIDTH - gaps - sum(length for length in longest.values() if length <= NARROW)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="")
    for name, length in longest.items():
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        width = min(length, spare // len(wide)) if name in wide else length
        table.add_column(name, justify="right" if numeric else "left", width=width, no_wrap=True)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    page = io.StringIO()
    Console(file=page, width=WIDTH).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3f}"
    return visible_line(value)


def _explained(step: Callable[[Engine], pd.DataFrame]) -> tuple[str, str]:
    """Title of a step and the lines that it runs."""
    title = inspect.getdoc(step) or ""
    _, _, body = inspect.getsource(step).partition('"""\n')
    return title, textwrap.dedent(body).replace("\nreturn ", "\n").strip()


def _say(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")


@contextmanager
def _sample_engine() -> Iterator[Engine]:
    """Engine on a new database with the sample; always on the embedded server, whatever DATABASE_URL says."""
    server = EmbeddedServer()
    server.join()
    try:
        url, name = make_url(server.url), f"contextkit_demo_{uuid4().hex}"
        _run(url, f"create database {name}")
        engine = connect(url.set(database=name), write=True)
        try:
            upgrade(engine)
            load_sample(engine)
            yield engine
        finally:
            engine.dispose()
            _run(url, f"drop database {name} with (force)")
    finally:
        server.leave()


def _run(url: URL, statement: str) -> None:
    admin = connect(url, write=True)
    with admin.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))
    admin.dispose()
