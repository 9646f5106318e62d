"""No text reaches a statement unbound or unescaped: each string argument of each function is given what attacks SQL."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import psycopg
import pytest
from sqlalchemy import Engine, bindparam, event, literal, select, text
from sqlalchemy.engine import ExceptionContext
from typer.testing import CliRunner

import contextkit as ck
from contextkit import Context, ContextkitError, Message, arrow, connect, embedders
from contextkit.cli import app
from contextkit.distributed import histories_dask, messages_dask
from contextkit.explore.finding import Search
from contextkit.explore.listing import find
from contextkit.models import is_storable
from tests.api_server import api_server
from tests.conftest import _fresh

MARK = "pwn7"
"""In every value, to find it in statements."""
DROP = "drop table canary; --"
VALUES = (
    f"{MARK}' or '1'='1",
    f"{MARK}'; {DROP}",
    f'{MARK}"; {DROP}',
    f"{MARK}'); {DROP}",
    f"{MARK}\\'; {DROP}",
    f"{MARK}\\\\'; {DROP}",
    f"{MARK}''; {DROP}",
    f"{MARK}\\",
    f"E'{MARK}\\x27' U&'\\0027'",
    f"$${MARK}$$; {DROP} $$",
    f"$1 $2 {MARK}",
    f"%(x)s {MARK} %s %d %% %",
    f":name {MARK} :x::text",
    f"{{{MARK}}} {{0}} {{0.__class__}}",
    f"/* {MARK}",
    f"*/ {MARK} /*",
    f"{MARK} -- \n'",
    f"{MARK};",
    f"{MARK}%' escape '\\'; {DROP}",
    f"[{MARK}] {{a,b}} (c) <d>",
    f"ソ\\'; {DROP} {MARK}",  # where an encoding of Japan is expected, the backslash belongs to what stands before
    f"ß縗'; {DROP} {MARK}",
    f"\u02bc\u2019\uff07; {DROP} {MARK}",  # quotes, to who normalizes
    f"{MARK}\r\n\t\x1b[2J\x7f",
    f"../{MARK}/'",
    MARK + "'\\" * 9_000,
    f"{MARK}\0' or '1'='1",
    f"{MARK}\ud800' or '1'='1",
)
VECTOR = np.ones(1536, np.float32)
SPELLED = ContextVar("spelled", default=False)
"""Whether statements hold values as literals on purpose."""
LIMITS = {"explore": 200, "explore in messages": 200, "file names": 200}
"""Beyond so many characters a text is refused, whatever it says."""
COLUMNS = ("content", "model", "tool_name", "tool_call_id")


@dataclass
class World:
    """A database with a context and a message for every value that can be stored."""

    engine: Engine
    folder: Path
    settings: str
    ids: dict[str, str] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)


Try = Callable[[World, str], Any]
"""Gives true, or None, where the value came back unchanged; raises a documented error where it is refused."""


def stored(world: World, value: str) -> bool:
    """Written by every function that writes a text, and read as it was."""
    engine = world.engine
    world.ids[value] = root = ck.add_context(engine, value)
    fork = ck.fork_context(engine, root, name=value)
    row = {"role": "assistant", "embedding": VECTOR} | dict.fromkeys(COLUMNS, value)
    written = ck.append_messages(engine, root, [row])
    names = ck.contexts_df(engine, Context.id.in_([root, fork]))["name"].tolist()
    return names == [value, value] and all(written[column].tolist() == [value] for column in COLUMNS)


def filtered(call: Callable[[Engine, Any], Any], condition: Callable[[str], Any]) -> Try:
    """Whether a condition finds just the context with a value."""

    def attempt(world: World, value: str) -> bool:
        found = call(world.engine, condition(value))
        return set(found["context_id"]) == {world.ids[value]}

    return attempt


def in_bulk(attempt: Try) -> Try:
    """The same, with literals in the statement, on the connection for many rows."""

    def attempt_in_bulk(world: World, value: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(arrow, "BULK_ROWS", 0)
            return attempt(world, value)

    return attempt_in_bulk


def spelled(attempt: Try) -> Try:
    """The same, where the statement has its values as literals on purpose, as it travels to workers."""

    def attempt_spelled(world: World, value: str) -> Any:
        token = SPELLED.set(True)
        try:
            return attempt(world, value)
        finally:
            SPELLED.reset(token)

    return attempt_spelled


def on_workers(load: Callable[..., Any], condition: Callable[[str], Any]) -> Try:
    """Whether partitions that workers read hold just the context with a value."""

    def attempt(world: World, value: str) -> bool:
        found = load(world.engine, 2, condition(value)).compute(scheduler="synchronous")
        return set(found["context_id"]) == {world.ids[value]}

    return spelled(attempt)


def partitioned(world: World, value: str) -> bool:
    """Written to files by partitions."""
    folder = world.folder / f"partitions {world.tries.total()}"
    ck.export_file(
        world.engine, folder, Context.id == world.ids.get(value, value), format="parquet", partitions=2, progress=False
    )
    return value in pd.concat(map(pd.read_parquet, folder.iterdir()))["content"].tolist()


def with_model(world: World, value: str) -> bool:
    """Embedded by a model of that name for a user with that password: the server of embeddings is told, no other."""
    with api_server() as api:
        base_url = api.url.replace("//", f"//user:{quote(value, '', errors='surrogatepass')}@")
        embedder = ck.openai_embedder(value, base_url=base_url)
        found = ck.search_df(world.engine, "or", on_content(value), k=2, mode="semantic", embedder=embedder)
    known = b64encode(f"user:{value}".encode()).decode()
    return (
        len(found) == 1 and {asked["model"] for asked in api.asked} == {value} and set(api.keys) == {f"Basic {known}"}
    )


def with_base_url(form: str) -> Try:
    """Embedded by a server of that address."""

    def attempt(world: World, value: str) -> Any:
        with pytest.MonkeyPatch.context() as patch, api_server() as api:
            patch.setattr(embedders, "RETRIES", 0)
            embedder = ck.openai_embedder("m", base_url=form.format(value=value, url=api.url))
            return ck.search_df(world.engine, "or", k=2, mode="semantic", embedder=embedder)

    return attempt


def imported(world: World, value: str) -> bool:
    """A file's texts, of whatever field."""
    call = {"id": value, "type": "function", "function": {"name": value, "arguments": json.dumps({value: value})}}
    lines = [
        {"role": "user", "content": value},
        {"role": "assistant", "content": value, "tool_calls": [call]},
        {"role": "tool", "content": value, "tool_call_id": value},
    ]
    path = world.folder / "import.jsonl"
    path.write_text(json.dumps({"id": value, "model": value, "messages": lines}) + "\n")
    frame = ck.import_file(world.engine, path, progress=False)
    history = ck.history_df(world.engine, frame["context_id"])
    return history["content"].tolist().count(value) == 3 and value in history["tool_name"].tolist()


def exported(world: World, value: str) -> bool:
    path = world.folder / "export.jsonl"
    count = ck.export_file(world.engine, path, Context.id == world.ids.get(value, value), progress=False)
    return count == 1 and value in json.loads(path.read_text())["messages"][0]["tool_calls"][0]["function"]["arguments"]


def named_file(world: World, value: str) -> bool:
    """A file whose name is the value, written and read."""
    path = world.folder / f"{value.replace('/', '_')}.jsonl"
    ck.export_file(world.engine, path, Context.name == "nobody's", progress=False)
    path.write_text(json.dumps({"messages": [{"role": "user", "content": path.name}]}) + "\n")
    frame = ck.import_file(world.engine, path, progress=False)
    return ck.history_df(world.engine, frame["context_id"])["content"].tolist() == [path.name]


def batches(engine: Engine, condition: Any) -> Any:
    return next(iter(ck.messages_batches(engine, condition)))


def embedded(engine: Engine, condition: Any) -> Any:
    ck.embed_missing(engine, lambda texts: np.ones((len(texts), 1536)), condition, progress=False)
    return ck.messages_df(engine, condition)


def selected(select_rows: Callable[..., Any], **arguments: Any) -> Callable[[Engine, Any], Any]:
    return lambda engine, condition: ck.read_df(engine, select_rows(condition, **arguments))


def on_content(value: str) -> Any:
    return Message.content == value


# What comes back unchanged
CONDITIONS: dict[str, Callable[[str], Any]] = {
    **{f"Message.{column} ==": lambda value, column=column: getattr(Message, column) == value for column in COLUMNS},
    "Message.content in_": lambda value: Message.content.in_([value, "nobody's"]),
    "Message.content like": lambda value: (
        Message.content.startswith(value, autoescape=True) & Message.content.endswith(value, autoescape=True)
    ),
    "Message.content replaced": lambda value: select(literal(value)).scalar_subquery() == Message.content,
    "Context.name and text": lambda value: (
        (Context.name == value)
        & Context.id.in_(select(Message.context_id).where(text("content = :value").bindparams(value=value)))
    ),
}
CALLS: dict[str, Callable[[Engine, Any], Any]] = {
    "contexts_df": ck.contexts_df,
    "messages_batches": batches,
    "neighbors_df": lambda engine, condition: ck.neighbors_df(engine, VECTOR, condition, k=2),
    "search_df": lambda engine, condition: ck.search_df(
        engine, "or", condition, k=2, mode="semantic", embedder=lambda texts: [VECTOR]
    ),
    "embed_missing": embedded,
    "select_contexts": selected(ck.select_contexts),
    "select_messages": selected(ck.select_messages),
    "select_neighbors": lambda engine, condition: ck.read_df(engine, ck.select_neighbors(VECTOR, condition, k=2)),
}
DATA: dict[str, Try] = {
    "stored": stored,
    **{name: filtered(ck.messages_df, condition) for name, condition in CONDITIONS.items()},
    **{f"{name}, in bulk": in_bulk(filtered(ck.messages_df, condition)) for name, condition in CONDITIONS.items()},
    **{f"{name} where": filtered(call, on_content) for name, call in CALLS.items()},
    "forks_df where": lambda w, v: set(ck.forks_df(w.engine, Context.name == v)["name"]) == {v},
    "select_forks where": lambda w, v: set(ck.read_df(w.engine, ck.select_forks(Context.name == v))["name"]) == {v},
    "preferences_df where": lambda w, v: len(ck.preferences_df(w.engine, Context.name == v)) == 0,
    "read_df bound": lambda w, v: ck.read_df(w.engine, _bound(v)).iloc[0].tolist() == [v, v],
    "read_df bound, in bulk": in_bulk(lambda w, v: ck.read_df(w.engine, _bound(v)).iloc[0].tolist() == [v, v]),
    "search_df text": lambda w, v: len(ck.search_df(w.engine, v, k=3)) <= 3,
    "explore": lambda w, v: find(w.engine, Search(text=v)).total is None,
    "explore in messages": lambda w, v: find(w.engine, Search(text=v, within="messages")).total is None,
    "messages_df where, by partitions": filtered(
        lambda engine, condition: ck.messages_df(engine, condition, connections=2), on_content
    ),
    "messages_dask where": on_workers(messages_dask, on_content),
    "histories_dask where": on_workers(histories_dask, lambda value: Context.id.in_(_with_content(value))),
    "openai_embedder model and password": with_model,
    "import_file content": imported,
    "export_file content": exported,
    "export_file content, by partitions": partitioned,
    "file names": named_file,
}

DEAR = (
    *("forks_df where", "select_forks where", "preferences_df where", "export_file content", "file names"),
    *("messages_df where, by partitions", "messages_dask where", "histories_dask where"),
    *("export_file content, by partitions", "openai_embedder model and password"),
)
"""Those that take longest."""
TURNS = {name: 5 if name in DEAR else 1 if name == "stored" else 2 for name in DATA}
"""One of so many values is tried in a way, each value in other ways than the one before; in the soak all in all."""


def _with_content(value: str) -> Any:
    return select(Message.context_id).where(Message.content == value)


def _bound(value: str) -> Any:
    typed = bindparam("value", value, type_=Context.name.type)
    return text("select cast(:value as text) as a, :other || '' as b").bindparams(typed, other=value)


# What is refused, whatever it is
def one_of(function: Callable[..., Any], **arguments: Any) -> Try:
    return lambda world, value: function(world.engine, value, **arguments)


REFUSED: dict[str, Try] = {
    "messages_dask npartitions": lambda w, v: messages_dask(w.engine, v),  # type: ignore[arg-type]  # as users may
    "histories_dask npartitions": lambda w, v: histories_dask(w.engine, v),  # type: ignore[arg-type]  # as users may
    "messages_df connections": lambda w, v: ck.messages_df(w.engine, connections=v),
    "messages_batches batch_rows": lambda w, v: next(ck.messages_batches(w.engine, batch_rows=v)),
    "export_file partitions": lambda w, v: ck.export_file(w.engine, w.folder / "a", partitions=v, progress=False),
    "history_df contexts": one_of(ck.history_df),
    "history_df column of contexts": lambda w, v: ck.history_df(w.engine, [v]),
    "tool_calls_df contexts": one_of(ck.tool_calls_df),
    "window_df context_id": one_of(ck.window_df, budget=1),
    "diff_df left": one_of(ck.diff_df, right=""),
    "show_diff left": one_of(ck.show_diff, right=""),
    "diff_df right": lambda w, v: ck.diff_df(w.engine, next(iter(w.ids.values())), v),
    "select_history contexts": lambda w, v: ck.read_df(w.engine, ck.select_history([v])),
    "Context.id": lambda w, v: ck.contexts_df(w.engine, Context.id == v),
    "Context.id in_": lambda w, v: ck.contexts_df(w.engine, Context.id.in_([v])),
    "Context.created_at": lambda w, v: ck.contexts_df(w.engine, Context.created_at == v),
    "Context.message_count": lambda w, v: ck.contexts_df(w.engine, Context.message_count == v),
    "Message.embedding": lambda w, v: ck.messages_df(w.engine, Message.embedding == v),
    "neighbors_df query": one_of(ck.neighbors_df),
    "neighbors_df distance": lambda w, v: ck.neighbors_df(w.engine, VECTOR, distance=v),
    "neighbors_df mode": lambda w, v: ck.neighbors_df(w.engine, VECTOR, mode=v),
    "search_df mode": lambda w, v: ck.search_df(w.engine, "a", mode=v),
    "search_df language": lambda w, v: ck.search_df(w.engine, "a", language=v),
    "create_text_index language": one_of(ck.create_text_index, progress=False),
    "create_index distance": one_of(ck.create_index, progress=False),
    "drop_index distance": one_of(ck.drop_index),
    "fork_context context_id": one_of(ck.fork_context),
    "append_messages context_id": one_of(ck.append_messages, messages=[{"role": "user", "content": "a"}]),
    "append_messages role": lambda w, v: _append(w, role=v),
    "append_messages field": lambda w, v: _append(w, **{v: "a"}),
    "append_messages token_count": lambda w, v: _append(w, token_count=v),
    "append_messages created_at": lambda w, v: _append(w, created_at=v),
    "append_messages embedding": lambda w, v: _append(w, embedding=v),
    "delete_context": one_of(ck.delete_context),
    "restore_context": one_of(ck.restore_context),
    "delete_messages": one_of(ck.delete_messages),
    "restore_messages": lambda w, v: ck.restore_messages(w.engine, [v]),
    "import_file path": lambda w, v: ck.import_file(w.engine, v, progress=False),
    "import_file format": lambda w, v: ck.import_file(w.engine, w.folder, format=v, progress=False),
    "import_file on_error": lambda w, v: ck.import_file(w.engine, w.folder, on_error=v, progress=False),  # type: ignore[arg-type]  # as users may
    "export_file format": lambda w, v: ck.export_file(w.engine, w.folder / "a", format=v, progress=False),
    "generate slug": one_of(ck.generate),
    "openai_embedder base_url": with_base_url("{value}"),
    "openai_embedder port of base_url": with_base_url("http://127.0.0.1:{value}/v1"),
    "openai_embedder path of base_url": with_base_url("{url}/{value}"),
    "openai_embedder query of base_url": with_base_url("{url}?{value}"),
    "connect url": lambda w, v: connect(v),
    "connect database": lambda w, v: ck.contexts_df(connect(w.engine.url.set(database=v))),
    "connect user": lambda w, v: ck.contexts_df(connect(w.engine.url.set(username=v))),
    "with a column of that name": lambda w, v: ck.read_df(w.engine, select(Message.id, text(f'messages."{v}"'))),
    "plot_activity by": lambda w, v: ck.plot_activity(ck.messages_df(w.engine, on_content("a")), by=v),
    "plot_tokens by": lambda w, v: ck.plot_tokens(ck.messages_df(w.engine, on_content("a")), by=v),
    "nearest distance": lambda w, v: ck.nearest(ck.messages_df(w.engine, on_content("a")), VECTOR, distance=v),  # type: ignore[arg-type]  # as users may
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "show": ("show", "--"),
    "show --at-version": ("show", "a", "--at-version"),
    "contexts --limit": ("contexts", "--limit"),
    "import": ("import", "--"),
    "import --format": ("import", "--format"),
    "export --format": ("export", "/nowhere/a", "--format"),
    "export": ("export", "--partitions", "0", "--"),
    "db generate": ("db", "generate", "--"),
    "db studio --port": ("db", "studio", "--port"),
    "db": ("db", "--"),
}


def _append(world: World, **fields: Any) -> None:
    ck.append_messages(world.engine, next(iter(world.ids.values())), [{"role": "user", "content": "a"} | fields])


# Databases whose settings change what a quote is
SETTINGS = {
    "as usual": (),
    "backslashes escape": ("standard_conforming_strings = off", "escape_string_warning = off"),
    "and in an encoding of Japan": (
        "standard_conforming_strings = off",
        "escape_string_warning = off",
        "backslash_quote = on",
        "client_encoding = 'SJIS'",
    ),
}


@pytest.fixture(params=SETTINGS)
def world(
    request: pytest.FixtureRequest, server_url: str, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    for url in _fresh(server_url, migrated):
        engine = connect(url, write=True)
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("create table canary ()")
            for setting in SETTINGS[request.param]:
                admin.execute(f"alter database {engine.url.database} set {setting}")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield World(engine, tmp_path, request.param)
        engine.dispose()


@pytest.fixture(autouse=True)
def bound() -> Iterator[None]:
    """Watches what goes through SQLAlchemy: none of it holds a value's own text."""

    def look(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if MARK in statement and 'messages."' not in statement and not SPELLED.get():
            raise AssertionError(f"unbound: {statement:.200}")

    def look_at_failed(context: ExceptionContext) -> None:
        look(None, None, context.statement or "")

    # After it ran: with listeners that come before, nothing would be read in bulk.
    event.listen(Engine, "after_cursor_execute", look)
    event.listen(Engine, "handle_error", look_at_failed)
    yield
    event.remove(Engine, "after_cursor_execute", look)
    event.remove(Engine, "handle_error", look_at_failed)


def attempt(world: World, name: str, function: Try, value: str) -> str:
    """`same`, `changed`, or `refused` by a documented error."""
    world.tries[name] += 1
    try:
        return "same" if function(world, value) else "changed"
    except UnicodeError:
        return "refused" if name in ("import_file path", "file names") else "not told"  # a file's name is the system's
    except (ContextkitError, ValueError, TypeError, OSError):
        return "refused"


def values_for(world: World) -> tuple[str, ...]:
    """All values; where only quotes differ, those with a backslash."""
    return VALUES if world.settings == "as usual" else tuple(value for value in VALUES if "\\" in value)


def expected(name: str, value: str) -> str:
    return "same" if is_storable(value) and len(value) <= LIMITS.get(name, len(value)) else "refused"


def unharmed(world: World) -> bool:
    """Whether nothing was dropped, and no more rows are found than were written."""
    with world.engine.connect() as connection:
        connection.execute(text("select from canary"))
        return connection.execute(select(Message.id).where(Message.content == "nobody's")).first() is None


@pytest.mark.parametrize("all_in_all", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_what_is_data_comes_back_unchanged(
    world: World, record_property: Callable[[str, object], None], *, all_in_all: bool
) -> None:
    values = values_for(world)
    came = {
        (name, value): attempt(world, name, DATA[name], value)
        for place, value in enumerate(values)
        for number, name in enumerate(DATA)
        if all_in_all or (number + place) % TURNS[name] == 0
    }
    wrong = {key: what for key, what in came.items() if what != expected(*key)}
    record_property("tries", world.tries.total())
    assert not wrong
    assert unharmed(world)
    assert world.tries.keys() == DATA.keys()
    assert world.tries.total() >= sum(len(values) // (1 if all_in_all else TURNS[name]) for name in DATA)


@pytest.mark.parametrize("world", ["as usual"], indirect=True)
def test_what_is_no_data_is_refused_by_a_documented_error(
    world: World, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(world, VALUES[0])
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("DATABASE_URL", world.engine.url.set(drivername="postgresql").render_as_string(False))
    came = {(name, value): attempt(world, name, REFUSED[name], value) for value in VALUES for name in REFUSED}
    accepted = [key for key, what in came.items() if what != "refused"]
    record_property("tries", world.tries.total())
    assert not accepted
    told = {(name, value): commanded(world, name, value) for value in VALUES for name in COMMANDS}
    wrong = {key: what for key, what in told.items() if what != "told"}
    assert not wrong
    assert unharmed(world)
    assert world.tries.total() == len(VALUES) * (len(REFUSED) + len(COMMANDS))


def commanded(world: World, name: str, value: str) -> str:
    """`told` where a command ends with a line of what is wrong."""
    world.tries[name] += 1
    done = CliRunner().invoke(app, [*COMMANDS[name], value])
    clean = isinstance(done.exception, SystemExit) and done.exit_code in (1, 2) and "Traceback" not in done.output
    return "told" if clean else f"{done.exit_code} {done.exception!r:.200}"
