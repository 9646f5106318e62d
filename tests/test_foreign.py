"""Databases of other writers: each function works there with the right result, or says exactly what is missing."""

import json
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isfunction
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url

import contextkit
from contextkit import (
    Context,
    ContextkitError,
    LineageError,
    Message,
    ReadOnlyError,
    append_messages,
    connect,
    contexts_df,
    delete_messages,
    forks_df,
    history_df,
    messages_df,
    sample,
    search_df,
    show,
    to_openai,
)
from tests.foreign.calls import NO_DATABASE, READS, STRUCTURE, WRITES
from tests.foreign.schemas import FORK, MESSAGES, ROOT, SCHEMAS, Schema, damaged, seed
from tests.foreign.servers import OLD_SERVER, new_cluster, old_binaries, replica_of

CALLS = READS | WRITES | STRUCTURE
CATALOG = """
    select 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod)
        || case when attnotnull then ' not null' else '' end
        || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
      from pg_attribute join pg_class c on c.oid = attrelid
      left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where (relnamespace > 16383 or relnamespace = 'public'::regnamespace) and attnum > 0
    union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
     where conrelid > 16383
    union all select 'index', indexrelid::regclass::text, indisvalid::text, pg_get_indexdef(indexrelid) from pg_index
     where indexrelid > 16383
    union all select 'relation', oid::regclass::text, relkind::text, relacl::text || reloptions::text from pg_class
     where oid > 16383 and relkind <> 't'
    union all select 'view', oid::regclass::text, '', pg_get_viewdef(oid) from pg_class
     where relkind = 'v' and oid > 16383
    union all select 'trigger', tgrelid::regclass::text, tgname, tgenabled::text from pg_trigger
    union all select 'label', enumtypid::regtype::text, enumlabel, '' from pg_enum
    union all select 'extension', extname, extversion, '' from pg_extension
    union all select 'setting', setdatabase::text, setrole::text, setconfig::text from pg_db_role_setting
"""


@dataclass
class World:
    """A database: the engine that the functions get, and who may look at everything."""

    engine: Engine
    admin: psycopg.Connection[Any]

    def catalog(self) -> set[Any]:
        return set(self.admin.execute(CATALOG).fetchall())

    def contents(self) -> list[Any]:
        tables = "select oid::regclass::text from pg_class where relname in ('contexts', 'messages') order by 1"
        return [
            self.admin.execute(f"select md5(string_agg(t::text, '' order by id)) from {table} t").fetchone()
            for (table,) in self.admin.execute(tables).fetchall()
        ]


@contextmanager
def made(server_url: str, schema: Schema) -> Iterator[World]:
    name = f"foreign_{uuid.uuid4().hex[:12]}"
    role = f"{name}_role"
    url = make_url(server_url).set(database=name)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create database {name}")
        if schema.role:
            server.execute(f"create role {role} login")
            url = url.set(username=role)
        if schema.options:
            url = url.update_query_dict({"options": schema.options})
        try:
            with world_at(server_url, url) as world:
                if schema.tables is None:
                    contextkit.upgrade(world.engine)
                prepare(world.admin, schema, {"ROLE": role, "DATABASE": name})
                yield world
        finally:
            server.execute(f"drop database {name} with (force)")
            if schema.role:
                server.execute(f"drop role {role}")


def prepare(admin: psycopg.Connection[Any], schema: Schema, names: dict[str, str]) -> None:
    for sql in (schema.tables or "", seed(schema.dimensions), schema.after):
        for name, value in names.items():
            sql = sql.replace(name, value)
        if sql:
            admin.execute(sql)
    admin.execute("reset all")


@contextmanager
def world_at(server_url: str, url: Any) -> Iterator[World]:
    engine = connect(url, write=True)
    admin_url = make_url(server_url).set(database=url.database).render_as_string(hide_password=False)
    with psycopg.connect(admin_url, autocommit=True) as admin:
        yield World(engine, admin)
        engine.dispose()


def outcome(name: str, world: World, folder: Path) -> str:
    """What a call gives, as JSON, or which documented error it raises; any other error is the test's."""
    try:
        return json.dumps(CALLS[name](world.engine, folder), default=str)
    except (ContextkitError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module")
def short_sample() -> Iterator[None]:
    """A few of the sample conversations, which are one statement as all are."""
    contexts, messages = sample.sample_rows()
    kept = [row["id"] for row in contexts[:3]]
    short = contexts[:3], [row for row in messages if row["context_id"] in kept]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "sample_rows", lambda: short)
        yield


@pytest.fixture(scope="module")
def ordinary(server_url: str, short_sample: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every call gives on contextkit's own tables."""
    with made(server_url, Schema(tables=None)) as world:
        return {name: outcome(name, world, tmp_path_factory.mktemp("own")) for name in CALLS}


def every(calls: Iterable[str], outcome: str) -> dict[str, str]:
    return dict.fromkeys(calls, outcome)


# What each call comes to where that is not what contextkit's own tables give: a pattern of the error, or of the JSON.
NEW_ROWS = (
    "add_context",
    "fork_context",
    "append_messages",
    "append_messages: embedding",
    "import_file",
    "load_sample",
)
ROWS = (*NEW_ROWS, "delete_messages", "restore_messages", "delete_context", "restore_context", "embed_missing")
BUILDS = ("create_text_index", "create_index", "create_index: halfvec")
ASKED_ROWS = ("neighbors_df: of a message", "neighbors_df: of many")
ASKED = ("select_neighbors", "neighbors_df", "neighbors_df: l1", "search_df: hybrid")
LOADED = ("messages_df: embeddings", "history_df: embeddings", "nearest", "embedding_matrix", "with_projection")
LOADED_TOO = (*LOADED, "plot_embeddings", "export_file: parquet")
WITHOUT_INDEX = {
    "neighbors_df: index": "^SchemaError: no valid index is for the distance l2; create_index",
    "recall_df": "^SchemaError: there is no valid index to measure; create_index",
    "drop_index": "^0$",
}
NO_RIGHT = "^ContextkitError: table (contexts|messages): this role lacks a right"
NO_WRITES = "^ReadOnlyError: the server refuses writes here: it is a read replica, or"
NO_COLUMN = "^SchemaError: (messages.embedding|embedding of messages): a column is missing"
NO_TYPE = '^SchemaError: (type "(vector|halfvec)": )?this is missing; if it is vector of pgvector, .* search_path'
NOT_PLAIN = "^SchemaError: messages: that does not work on a relation or value of this kind"
OTHER_LENGTH = "^DimensionError: vectors of different lengths: 3072 and 1536"
OUTCOMES: dict[str, dict[str, str]] = {
    "search_path of the role, pgvector elsewhere": every(BUILDS, NO_RIGHT)
    | WITHOUT_INDEX
    | {"upgrade": "^ContextkitError: schema app: this role lacks a right"},
    "varchar role, other indexes, no foreign keys": {
        "indexes_df": r'^\["cosine"\]$',
        "recall_df": r"^\[1.0, 1.0, 1.0\]$",
        "push": "ADD CONSTRAINT .* ADD CONSTRAINT .*-- remains: messages.role is varchar",
    },
    "more columns that must be given": every(NEW_ROWS, "^SchemaError: tenant of contexts: this column takes no null")
    | every(
        ("append_messages", "append_messages: embedding"), "^SchemaError: seal of messages: this column takes no null"
    ),
    "pgvector out of sight": every((*ASKED, "create_index", "create_index: halfvec"), NO_TYPE)
    | every(ASKED_ROWS, "^SchemaError: this pgvector lacks the function .*search_path")
    | WITHOUT_INDEX
    | {"explore": "its schema is not in the search_path", "push": "-- remains: messages.embedding is of an unknown"},
    "select only": every((*ROWS, *BUILDS), NO_RIGHT)
    | WITHOUT_INDEX
    | {"upgrade": "^ContextkitError: schema public: this role lacks a right"},
    "another dimension": every((*ASKED, "append_messages: embedding", "load_sample"), OTHER_LENGTH)
    | every(ASKED_ROWS, "^DimensionError: the column messages.embedding holds vectors of 3072 dimensions")
    | every(("create_index", "create_index: halfvec"), r"^DimensionError: .* is vector\(3072\), and contextkit needs")
    | WITHOUT_INDEX
    | {
        "embed_missing": "^DimensionError: .* messages.embedding has 3072 dimensions, and contextkit embeds 1536",
        "push": "^.-- remains: messages.embedding is vector.3072",
    },
    "no embedding, no pgvector": every((*ASKED, *ASKED_ROWS, *LOADED_TOO), NO_COLUMN)
    | every(("append_messages: embedding", "embed_missing", "load_sample"), NO_COLUMN)
    | every(("create_index", "create_index: halfvec"), "^SchemaError: the column messages.embedding is missing")
    | WITHOUT_INDEX
    | {
        "check_df": NO_COLUMN,
        "neighbors_df: index": NO_COLUMN,
        "explore": "messages.embedding: a column is missing",
        "push": "create extension vector;.*ADD COLUMN embedding VECTOR.1536.;.$",
    },
    "times without a zone": {"push": "-- remains: contexts.created_at is timestamp without time zone"},
    "a view": every((*BUILDS, "import_file"), NOT_PLAIN)
    | WITHOUT_INDEX
    | {"push": "^SchemaError: messages: this name is taken"},
    "partitioned": every(BUILDS, '^ContextkitError: partitioned table "messages": the server does not do that')
    | WITHOUT_INDEX
    | {"push": "^.-- remains: the primary key of messages is .id, context_id.*"},
    "damaged rows": {
        "check_df": "cycle.*missing_context.*missing_parent.*beyond_parent.*latest_version.*message_count.*"
        "orphan_fork.*total_tokens.*unknown_role.*null_embeddings.*version_gap",
        "push": "^ContextkitError: contexts_parent_id_contexts_id_fk: this foreign key refuses the row",
    },
    "read replica": every((*ROWS, *BUILDS, "upgrade"), NO_WRITES) | WITHOUT_INDEX,
    "pgvector 0.6": every(
        ("create_index", "create_index: halfvec"), "^SchemaError: pgvector is 0.6.*; indexes need 0.8"
    )
    | WITHOUT_INDEX
    | {"neighbors_df: l1": "^SchemaError: this pgvector lacks the function or distance"},
}
DIFFERENCES: dict[str, list[str]] = {
    "varchar role, other indexes, no foreign keys": [
        "contexts_parent_id_contexts_id_fk is missing",
        "messages.role is varchar(20), expected text",
        "messages_context_version_idx is missing",
        "messages_deleted_at_idx is missing",
        "messages_context_id_contexts_id_fk is missing",
    ],
    "pgvector out of sight": ["messages.embedding is of an unknown type, expected vector(1536)"],
    "another dimension": ["messages.embedding is vector(3072), expected vector(1536)"],
    "no embedding, no pgvector": ["messages.embedding is missing"],
    "times without a zone": [
        f"{column} is timestamp without time zone, expected timestamp with time zone"
        for column in (
            "contexts.created_at",
            "contexts.updated_at",
            "contexts.deleted_at",
            "messages.created_at",
            "messages.deleted_at",
        )
    ],
    "a view": ["messages is a view"],
    "partitioned": ["the primary key of messages is (id, context_id), expected (id)"],
    "damaged rows": [
        "contexts_parent_id_contexts_id_fk is missing",
        "messages_context_id_contexts_id_fk is missing",
    ],
}
"""What `schema_status` lists, and what `upgrade` refuses for; the other databases are adopted."""
STORED: dict[str, tuple[tuple[str, str], ...]] = {
    "times without a zone": (("datetime64[us, UTC]", "datetime64[us]"), ('.000Z"', '.000"')),
    "another dimension": (("[1536]", "[3072]"),),
}
"""How what is loaded shows the types of its columns."""


def expected(schema: str, call: str, ordinary: dict[str, str]) -> str:
    """Pattern of what a call comes to."""
    if call in OUTCOMES.get(schema, {}):
        return OUTCOMES[schema][call]
    differences = DIFFERENCES.get(schema, [])
    if call == "schema_status":
        return f"^{re.escape(json.dumps(['different' if differences else 'unmanaged', differences]))}$"
    if call == "generate":
        return "^SchemaError: the database is not at the newest revision"
    if call == "upgrade_sql" and not differences:
        return "CREATE TABLE IF NOT EXISTS contextkit_revision"
    if call in ("upgrade", "upgrade_sql") and differences:
        return f"^SchemaError: .* differ from what contextkit needs: {re.escape('; '.join(differences))}. nothing was"
    plain = ordinary[call]
    for own, stored in STORED.get(schema, ()):
        plain = plain.replace(own, stored)
    return f"^{re.escape(plain)}$"


def wrong_cells(schema: str, world: World, ordinary: dict[str, str], folder: Path) -> Iterator[str]:
    """Calls that come to something else, or leave something behind that they should not."""
    before = world.catalog(), world.contents()
    for call in CALLS:
        got = outcome(call, world, folder)
        if not re.search(expected(schema, call, ordinary), got, re.DOTALL):
            yield f"{call}: {got}\n    instead of {expected(schema, call, ordinary)}"
        writes = call not in READS and not re.match(r"\w+Error: ", got)
        if writes or call not in READS or call == [*READS][-1]:
            after = world.catalog(), world.contents()
            added = {row for row in after[0] ^ before[0] if "contextkit_revision" not in row[1]}
            adopted = call == "upgrade" and not added and before[1] == after[1]
            if after != before and not adopted and (call == "upgrade" or not writes):
                yield f"{call} changed the database: {before[0] ^ after[0]}"
            before = after


def test_each_public_function_is_called() -> None:
    called = {call.partition(":")[0] for call in CALLS} | NO_DATABASE
    public = {name: getattr(contextkit, name) for name in contextkit.__all__}
    assert called == {name for name, value in public.items() if isfunction(value)}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_each_function_works_or_says_what_is_missing(
    server_url: str, schema: str, ordinary: dict[str, str], tmp_path: Path
) -> None:
    with made(server_url, SCHEMAS[schema]) as world:
        wrong = list(wrong_cells(schema, world, ordinary, tmp_path))
    assert not wrong, "\n".join(wrong)


def test_on_a_read_replica_everything_reads_and_nothing_writes(
    home: Path, ordinary: dict[str, str], tmp_path: Path
) -> None:
    primary = new_cluster(home)
    with (
        primary.running() as url,
        made(url, Schema()) as world,
        replica_of(primary, home).running() as replica_url,
        world_at(replica_url, make_url(replica_url).set(database=world.engine.url.database)) as copied,
    ):
        assert copied.admin.execute("select pg_is_in_recovery()").fetchone() == (True,)
        wrong = list(wrong_cells("read replica", copied, ordinary, tmp_path))
    assert not wrong, "\n".join(wrong)


def test_with_pgvector_0_6_everything_works_but_what_it_lacks(
    home: Path, ordinary: dict[str, str], tmp_path: Path
) -> None:
    binaries = old_binaries()
    if binaries is None:
        pytest.skip(f"{OLD_SERVER} does not name a server with pgvector 0.6")
    with new_cluster(home, binaries).running() as url, made(url, Schema()) as world:
        assert contextkit.info(world.engine)["pgvector"].startswith("0.6.")
        wrong = list(wrong_cells("pgvector 0.6", world, ordinary, tmp_path))
    assert not wrong, "\n".join(wrong)


# Damaged rows, and servers that refuse


@pytest.fixture(scope="module")
def damage(server_url: str) -> Iterator[Engine]:
    with made(server_url, SCHEMAS["damaged rows"]) as world:
        yield world.engine


@pytest.mark.parametrize(
    ("end", "contents"),
    [
        ("10", ["mine"]),  # its parent is gone
        ("11", []),  # a version without a parent inherits nothing
        ("12", []),  # nor does a parent without a version
        ("30", ["three", "nine"]),
        ("40", ["Be brief.", "Yes."]),
        ("50", ["three", "nine"]),  # from beyond its parent's end
    ],
)
def test_a_damaged_context_has_the_history_that_its_rows_tell(damage: Engine, end: str, contents: list[str]) -> None:
    history = history_df(damage, damaged(end))
    assert history["content"].tolist() == contents
    assert history["position"].tolist() == [*range(1, len(contents) + 1)]


@pytest.mark.parametrize("end", ["20", "21", "22", "23"])
def test_a_cycle_of_parents_is_named_and_hides_no_other_context(damage: Engine, end: str) -> None:
    with pytest.raises(LineageError, match=f"{damaged(end)} form a cycle: .*{damaged('23' if end == '23' else '20')}"):
        history_df(damage, damaged(end))
    forks = forks_df(damage).set_index("context_id")
    assert forks.loc[damaged(end), ["root_id", "depth", "length"]].isna().all()
    assert forks.loc[FORK, "root_id"] == ROOT
    assert damaged(end) in set(contexts_df(damage)["context_id"])


def test_messages_of_no_context_are_in_no_frame(damage: Engine) -> None:
    assert "of no context" not in set(messages_df(damage, include_deleted=True)["content"])
    assert "of no context" not in set(search_df(damage, "context")["content"])


def test_roles_of_other_tools_are_read_and_shown_as_they_are(damage: Engine) -> None:
    history = history_df(damage, damaged("40"))
    assert history["role"].tolist() == ["developer", "model"]
    assert "developer" in str(show(history))
    assert messages_df(damage, Message.role == "developer")["content"].tolist() == ["Be brief."]
    assert [message["role"] for message in to_openai(history)] == ["developer", "model"]


def test_a_write_sets_wrong_counters_right_and_goes_on_after_the_last_row(damage: Engine) -> None:
    wrong = contexts_df(damage, Context.id == damaged("40")).iloc[0]
    assert wrong[["message_count", "total_tokens", "latest_version"]].tolist() == [99, -5, 0]
    written = append_messages(damage, damaged("40"), [{"role": "user", "content": "more", "token_count": 7}])
    assert written["version"].tolist() == [3]
    right = contexts_df(damage, Context.id == damaged("40")).iloc[0]
    assert right[["message_count", "total_tokens", "latest_version"]].tolist() == [3, 7, 3]
    delete_messages(damage, written["message_id"])


def test_a_database_that_is_read_only_by_default_says_so(server_url: str) -> None:
    schema = Schema(after="alter database DATABASE set default_transaction_read_only = on")
    with made(server_url, schema) as world:
        assert len(messages_df(world.engine, include_deleted=True)) == len(MESSAGES)
        before = world.contents()
        with pytest.raises(ReadOnlyError, match="default_transaction_read_only"):
            append_messages(world.engine, ROOT, [{"role": "user", "content": "a"}])
        assert world.contents() == before
