"""Every rule against a real PostgreSQL, as the models' differences are found by asking one."""

import logging
import os
import shutil
import subprocess
import sys
import venv
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution
from pathlib import Path

import psycopg
import pytest
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Column, Engine, Index, Integer, MetaData, create_engine, event, make_url, text

from contextkit import check_df, comparison, connect, generate, migrate, push, schema_status, upgrade, upgrade_sql
from contextkit.connection import settings_of
from contextkit.errors import ContextkitError, ReadOnlyError, SchemaError
from contextkit.models import Base, IdType, RoleType
from tests.conftest import database_at
from tests.licenses import needed

CHECKOUT = Path(__file__).parents[1]
HEAD = "4c1d8a7e2b90"

# As drizzle-kit push sends it.
DRIZZLE = """
    create extension vector;
    CREATE TABLE "contexts" (
        "id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL,
        "name" text,
        "created_at" timestamp with time zone DEFAULT now() NOT NULL,
        "updated_at" timestamp with time zone DEFAULT now() NOT NULL,
        "message_count" integer DEFAULT 0 NOT NULL,
        "total_tokens" integer DEFAULT 0 NOT NULL,
        "latest_version" bigint DEFAULT 0 NOT NULL,
        "parent_id" uuid,
        "fork_version" bigint,
        "deleted_at" timestamp with time zone
    );
    CREATE TABLE "messages" (
        "id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL,
        "context_id" uuid NOT NULL,
        "version" bigint NOT NULL,
        "created_at" timestamp with time zone DEFAULT now() NOT NULL,
        "role" text NOT NULL,
        "content" text NOT NULL,
        "tool_call_id" text,
        "tool_name" text,
        "token_count" integer,
        "model" text,
        "deleted_at" timestamp with time zone,
        "embedding" vector(1536),
        CONSTRAINT "messages_context_version_unique" UNIQUE("context_id","version")
    );
    ALTER TABLE "contexts" ADD CONSTRAINT "contexts_parent_id_contexts_id_fk" FOREIGN KEY ("parent_id")
        REFERENCES "public"."contexts"("id") ON DELETE no action ON UPDATE no action;
    ALTER TABLE "messages" ADD CONSTRAINT "messages_context_id_contexts_id_fk" FOREIGN KEY ("context_id")
        REFERENCES "public"."contexts"("id") ON DELETE no action ON UPDATE no action;
    CREATE INDEX "messages_context_version_idx" ON "messages" USING btree ("context_id","version");
    CREATE INDEX "messages_deleted_at_idx" ON "messages" USING btree ("deleted_at");
"""

# What live databases have besides; none of it is a difference.
OTHERS = """
    create type role as enum ('user', 'assistant', 'system', 'tool');
    alter table messages alter column role type role using role::role;
    alter table messages add column rating integer default 3, add column snapshot pg_snapshot;
    alter table contexts add column owner text not null default 'nobody';
    alter table messages
        drop constraint messages_context_id_contexts_id_fk,
        add foreign key (context_id) references contexts (id) on delete cascade;
    alter table contexts
        drop constraint contexts_parent_id_contexts_id_fk,
        add constraint contexts_parent_id_contexts_id_fk foreign key (parent_id) references contexts (id)
            on delete set null;
    comment on table messages is 'ours'; comment on column messages.content is 'what was said';
    create table orders (id serial primary key, context_id uuid references contexts (id));
    create view recent as select content from messages;
    create index messages_embedding_hnsw on messages using hnsw (embedding vector_cosine_ops);
    create index messages_words on messages using gin (to_tsvector('english', content));
    create index messages_owner on messages (rating) where deleted_at is null;
    alter table messages add constraint rated unique (rating), add check (version > 0);
"""

CATALOG = """
    select 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod)
        || case when attnotnull then ' not null' else '' end
        || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
      from pg_attribute join pg_class on pg_class.oid = attrelid
      left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where relnamespace = 'public'::regnamespace and relkind = 'r' and attnum > 0 and not attisdropped
    union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
      from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n' and conrelid <> 0
    union all select 'index', tablename, indexname, indexdef from pg_indexes where schemaname = 'public'
    union all select 'trigger', tgrelid::regclass::text, tgname, '' from pg_trigger where not tgisinternal
    union all select 'extension', '', extname, '' from pg_extension
"""


def execute(url: str, sql: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql)


def catalog(url: str) -> set[tuple[str, str, str, str]]:
    with psycopg.connect(url) as connection:
        return set(connection.execute(CATALOG).fetchall())


def with_options(url: str, options: str) -> str:
    return make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alembic", *arguments]
    environment = os.environ | {"DATABASE_URL": url}
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def opened() -> Iterator[Callable[[str], Engine]]:
    """Opens engines for writing, and disposes of them."""
    engines: list[Engine] = []

    def open_engine(url: str) -> Engine:
        engines.append(connect(url, write=True))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.dispose()


@pytest.fixture
def empty(empty_url: str, opened: Callable[[str], Engine]) -> Engine:
    return opened(empty_url)


@pytest.fixture
def other_empty(server_url: str, opened: Callable[[str], Engine]) -> Iterator[Engine]:
    """A second database without tables."""
    execute(server_url, "create database other_empty")
    engine = opened(make_url(server_url).set(database="other_empty").render_as_string(hide_password=False))
    yield engine
    engine.dispose()
    execute(server_url, "drop database other_empty with (force)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations, so that no test writes a revision into the checkout."""
    copy = tmp_path / "100% mine" / "migrations"
    shutil.copytree(CHECKOUT / "migrations", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "migrations_folder", lambda: copy)
    return copy


def url_of(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


# The first migration


def test_an_empty_database_is_upgraded_to_the_head(empty: Engine) -> None:
    assert schema_status(empty).to_dict() == {
        "revision": None,
        "head": HEAD,
        "state": "empty",
        "differences": [],
    }
    assert upgrade(empty) == HEAD
    assert schema_status(empty).to_dict() == {
        "revision": HEAD,
        "head": HEAD,
        "state": "current",
        "differences": [],
    }
    assert upgrade(empty) == HEAD


def test_the_tables_are_exactly_those_of_the_design(engine: Engine) -> None:
    ours = {row[1:] for row in catalog(url_of(engine)) if row[1] in ("contexts", "messages")}
    now, count = "timestamp with time zone not null default now()", "not null default 0"
    columns = {
        "contexts": {
            "id": "uuid not null default gen_random_uuid()",
            "name": "text",
            "created_at": now,
            "updated_at": now,
            "message_count": f"integer {count}",
            "total_tokens": f"integer {count}",
            "latest_version": f"bigint {count}",
            "parent_id": "uuid",
            "fork_version": "bigint",
            "deleted_at": "timestamp with time zone",
        },
        "messages": {
            "id": "uuid not null default gen_random_uuid()",
            "context_id": "uuid not null",
            "version": "bigint not null",
            "created_at": now,
            "role": "text not null",
            "content": "text not null",
            "tool_call_id": "text",
            "tool_name": "text",
            "token_count": "integer",
            "model": "text",
            "deleted_at": "timestamp with time zone",
            "embedding": "vector(1536)",
        },
    }
    using = "INDEX {0} ON public.{1} USING btree ({2})"
    indexes = {
        ("messages", "messages_context_version_idx", "context_id, version"),
        ("messages", "messages_deleted_at_idx", "deleted_at"),
    }
    uniques = {
        ("contexts", "contexts_pkey", "id"),
        ("messages", "messages_pkey", "id"),
        ("messages", "messages_context_version_unique", "context_id, version"),
    }
    assert ours == (
        {(table, name, kind) for table, kinds in columns.items() for name, kind in kinds.items()}
        | {(table, name, f"CREATE {using.format(name, table, on)}") for table, name, on in indexes}
        | {(table, name, f"CREATE UNIQUE {using.format(name, table, on)}") for table, name, on in uniques}
        | {(table, f"{table}_pkey", "PRIMARY KEY (id)") for table in columns}
        | {
            ("messages", "messages_context_version_unique", "UNIQUE (context_id, version)"),
            (
                "contexts",
                "contexts_parent_id_contexts_id_fk",
                "FOREIGN KEY (parent_id) REFERENCES contexts(id)",
            ),
            (
                "messages",
                "messages_context_id_contexts_id_fk",
                "FOREIGN KEY (context_id) REFERENCES contexts(id)",
            ),
        }
    )


def test_the_migration_makes_what_drizzle_makes(empty: Engine, engine: Engine) -> None:
    execute(url_of(empty), DRIZZLE)
    migrated = {row for row in catalog(url_of(engine)) if row[1] != "contextkit_revision"}
    assert catalog(url_of(empty)) == migrated


def test_plain_alembic_goes_up_and_down_and_finds_no_differences(empty_url: str) -> None:
    assert alembic(empty_url, "upgrade", "head").returncode == 0
    migrated = catalog(empty_url)
    check = alembic(empty_url, "check")
    assert check.returncode == 0, check.stdout + check.stderr
    assert alembic(empty_url, "downgrade", "base").returncode == 0
    left = {(kind, table) for kind, table, _, _ in catalog(empty_url) if table != "contextkit_revision"}
    assert left == {("extension", "")}
    assert ("extension", "", "vector", "") in catalog(empty_url)
    assert alembic(empty_url, "upgrade", "head").returncode == 0
    assert catalog(empty_url) == migrated


def test_there_is_one_head(empty_url: str) -> None:
    assert alembic(empty_url, "heads").stdout == f"{HEAD} (head)\n"


def test_offline_sql_makes_the_same_tables(empty_url: str, engine: Engine) -> None:
    execute(empty_url, alembic("postgresql://nobody@127.0.0.1:1/none", "upgrade", "head", "--sql").stdout)
    assert catalog(empty_url) == catalog(url_of(engine))


def test_alembic_of_the_owning_application_is_left_alone(empty: Engine) -> None:
    execute(url_of(empty), "create table alembic_version as select 'theirs' as version_num")
    upgrade(empty)
    with empty.connect() as connection:
        assert connection.scalar(text("select version_num from alembic_version")) == "theirs"
        assert connection.scalar(text("select version_num from contextkit_revision")) == HEAD


def test_nothing_is_printed_or_logged(
    empty: Engine, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "alembic")
    caplog.set_level(logging.DEBUG)
    upgrade(empty)
    schema_status(empty)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("alembic")]
    assert logging.getLogger("alembic").level == logging.DEBUG


def test_importing_logs_nothing() -> None:
    program = "import logging; logging.basicConfig(level=0); import contextkit.migrate"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "alembic" not in done.stderr


# Opening never writes; one transaction


def test_an_engine_for_reading_is_refused(reader: Engine) -> None:
    with pytest.raises(ReadOnlyError, match="write=True"):
        upgrade(reader)
    with pytest.raises(ReadOnlyError, match="write=True"):
        push(reader, force=True)
    assert schema_status(reader).state == "current"


def test_a_server_that_refuses_writes_is_a_read_only_error(empty_url: str) -> None:
    engine = create_engine(
        make_url(empty_url).set(drivername="postgresql+psycopg"),
        execution_options={"postgresql_readonly": True},
    )
    with pytest.raises(ReadOnlyError):
        upgrade(engine)
    engine.dispose()


def test_asking_for_the_status_writes_nothing(empty: Engine) -> None:
    before = catalog(url_of(empty))
    schema_status(empty)
    assert catalog(url_of(empty)) == before


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_an_upgrade_is_one_transaction_on_any_engine(empty_url: str, level: str) -> None:
    engine = create_engine(make_url(empty_url).set(drivername="postgresql+psycopg"), isolation_level=level)
    # The second table's index is the last that the migration makes.
    execute(empty_url, "create table other (id int); create index messages_deleted_at_idx on other (id)")
    before = catalog(empty_url)
    with pytest.raises(ContextkitError, match="42P07"):
        upgrade(engine)
    assert catalog(empty_url) == before
    execute(empty_url, "drop table other")
    assert upgrade(engine) == HEAD
    engine.dispose()


def test_an_upgrade_waits_for_another_that_runs(empty: Engine) -> None:
    with ThreadPoolExecutor() as pool, psycopg.connect(url_of(empty)) as other:
        other.execute(str(migrate.LOCK))
        waiting = pool.submit(upgrade, empty)
        waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        with psycopg.connect(url_of(empty), autocommit=True) as observer:
            while not waiting.done() and observer.execute(waits).fetchone() == (0,):
                pass
        assert not waiting.done()
        other.rollback()
        assert waiting.result(10) == HEAD


def test_threads_upgrade_one_database_and_several_at_once(
    server_url: str, empty: Engine, opened: Callable[[str], Engine]
) -> None:
    names = [f"several_{number}" for number in range(4)]
    for name in names:
        execute(server_url, f"create database {name}")
    urls = [database_at(server_url, name) for name in names]
    engines = [opened(url) for url in [url_of(empty)] * 4 + urls]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(upgrade, engines)) == [HEAD] * 8
    assert [schema_status(engine).state for engine in engines] == ["current"] * 8
    for engine in engines:
        engine.dispose()
    for name in names:
        execute(server_url, f"drop database {name} with (force)")


def test_processes_upgrade_at_once(empty_url: str) -> None:
    program = f"import contextkit; print(contextkit.upgrade(contextkit.connect({empty_url!r}, write=True)))"
    runs = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=60)[0] for run in runs] == [f"{HEAD}\n"] * 3


# The SQL of an upgrade


DROPPED = "drop table messages, contexts"
DOWNGRADED = f"{DROPPED}; delete from contextkit_revision"


@pytest.mark.parametrize("before", ["", DRIZZLE, DRIZZLE + OTHERS], ids=["empty", "Drizzle's", "and what others added"])
def test_the_sql_of_an_upgrade_does_what_it_does_and_runs_by_itself_only(
    empty: Engine, other_empty: Engine, before: str
) -> None:
    for engine in (empty, other_empty):
        execute(url_of(engine), before)
    untouched = catalog(url_of(empty))
    sql = upgrade_sql(empty)
    assert catalog(url_of(empty)) == untouched
    execute(url_of(empty), sql)
    assert upgrade(other_empty) == HEAD
    assert catalog(url_of(empty)) == catalog(url_of(other_empty))
    assert schema_status(empty).state == "current"
    assert upgrade_sql(empty) == "-- nothing to do"


@pytest.mark.parametrize("gone", [DROPPED, DOWNGRADED])
def test_the_sql_makes_tables_again_that_are_gone(engine: Engine, gone: str) -> None:
    before = catalog(url_of(engine))
    execute(url_of(engine), gone)
    execute(url_of(engine), upgrade_sql(engine))
    assert catalog(url_of(engine)) == before
    assert schema_status(engine).state == "current"


def test_the_sql_runs_statement_by_statement(empty: Engine, engine: Engine) -> None:
    statements = upgrade_sql(empty).split(";\n")
    with psycopg.connect(url_of(empty), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
    assert catalog(url_of(empty)) == catalog(url_of(engine))


def test_the_sql_needs_no_engine_for_writing(empty_url: str) -> None:
    reader = connect(empty_url)
    assert upgrade_sql(reader).startswith("BEGIN;")
    reader.dispose()


def test_there_is_no_sql_for_what_upgrade_refuses(empty: Engine) -> None:
    execute(url_of(empty), DRIZZLE + "alter table messages drop column model")
    with pytest.raises(SchemaError, match=r"messages.model is missing"):
        upgrade_sql(empty)


def test_the_sql_of_an_upgrade_names_an_extension_out_of_reach(empty: Engine) -> None:
    execute(url_of(empty), "create schema tools; create extension vector schema tools")
    with pytest.raises(SchemaError, match=r"schema tools.*search_path"):
        upgrade_sql(empty)


# Tables of other tools


def test_looking_at_a_database_of_another_tool_changes_nothing_in_it(empty: Engine) -> None:
    execute(url_of(empty), DRIZZLE + OTHERS)
    before = catalog(url_of(empty))
    schema_status(empty)
    upgrade_sql(empty)
    check_df(empty)
    assert catalog(url_of(empty)) == before


def test_adopting_adds_the_revision_and_nothing_else(empty: Engine) -> None:
    execute(url_of(empty), DRIZZLE + OTHERS)
    before = catalog(url_of(empty))
    upgrade(empty)
    added = catalog(url_of(empty)) - before
    assert before < catalog(url_of(empty))
    assert {table for _, table, _, _ in added} == {"contextkit_revision"}
    with empty.connect() as connection:
        assert connection.execute(text("select version_num from contextkit_revision")).all() == [(HEAD,)]


def test_tables_of_drizzle_are_adopted_without_a_change(empty: Engine) -> None:
    execute(url_of(empty), DRIZZLE)
    before = catalog(url_of(empty))
    assert schema_status(empty).state == "unmanaged"
    assert upgrade(empty) == HEAD
    assert schema_status(empty).state == "current"
    assert {row for row in catalog(url_of(empty)) if row[1] != "contextkit_revision"} == before


@pytest.mark.usefixtures("folder")
def test_what_others_added_is_no_difference_and_stays(empty: Engine) -> None:
    execute(url_of(empty), DRIZZLE + OTHERS)
    before = catalog(url_of(empty))
    with warnings.catch_warnings(action="error"):
        assert schema_status(empty).differences == []
        assert upgrade(empty) == HEAD
        assert push(empty, force=True) == "nothing to do"
        with pytest.raises(ValueError, match="no differences"):
            generate(empty, "nothing")
    check = alembic(url_of(empty), "check")
    assert check.returncode == 0, check.stdout + check.stderr
    assert {row for row in catalog(url_of(empty)) if row[1] != "contextkit_revision"} == before


def test_foreign_tables_are_not_even_looked_at(engine: Engine) -> None:
    execute(url_of(engine), OTHERS)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *sent: asked.append(repr(sent[2:4])))
    schema_status(engine)
    assert any("messages" in sent for sent in asked)
    assert not any("orders" in sent for sent in asked)


@pytest.mark.parametrize("alias", ["current_timestamp", "'now()'", "transaction_timestamp()"])
def test_a_default_written_otherwise_is_told_from_another_default(empty: Engine, alias: str) -> None:
    execute(url_of(empty), DRIZZLE + f"alter table contexts alter created_at set default {alias}")
    execute(url_of(empty), "alter table contexts alter latest_version set default '0'")
    same = alias == "current_timestamp"
    assert schema_status(empty).state == ("unmanaged" if same else "different")


DIFFERENCES = {
    "drop table messages": ["messages is missing"],
    "alter table messages drop column token_count": ["messages.token_count is missing"],
    "alter table messages alter embedding type vector(3072)": [
        "messages.embedding is vector(3072), expected vector(1536)"
    ],
    "alter table messages alter embedding type vector": ["messages.embedding is vector, expected vector(1536)"],
    "alter table messages alter embedding type halfvec(1536)": [
        "messages.embedding is halfvec(1536), expected vector(1536)"
    ],
    "alter table contexts alter message_count type bigint": ["contexts.message_count is bigint, expected integer"],
    "alter table messages alter created_at type timestamp": [
        "messages.created_at is timestamp without time zone, expected timestamp with time zone"
    ],
    "alter table messages alter role type varchar(20)": ["messages.role is varchar(20), expected text"],
    "alter table messages alter model type pg_snapshot using null": [
        "messages.model is of an unknown type, expected text"
    ],
    "alter table messages alter role drop not null": ["messages.role is nullable, expected not null"],
    "alter table contexts alter name set not null": ["contexts.name is not null, expected nullable"],
    "alter table contexts alter created_at drop default": [
        "contexts.created_at has no default, expected default now()"
    ],
    "alter table contexts alter total_tokens set default 7": [
        "contexts.total_tokens has default 7, expected default 0"
    ],
    "alter table contexts alter name set default 'x'": ["contexts.name has default 'x'::text, expected no default"],
    "alter table contexts alter id set default pg_sleep(60)::text::uuid": [
        "contexts.id has default ((pg_sleep((60)::double precision))::text)::uuid, expected default gen_random_uuid()"
    ],
    "alter table messages drop constraint messages_pkey": ["the primary key of messages is (), expected (id)"],
    "alter table messages drop constraint messages_pkey, add primary key (id, version)": [
        "the primary key of messages is (id, version), expected (id)"
    ],
    "alter table messages drop constraint messages_context_id_contexts_id_fk": [
        "messages_context_id_contexts_id_fk is missing"
    ],
    "alter table messages drop constraint messages_context_version_unique": [
        "messages_context_version_unique is missing"
    ],
    "alter table messages drop constraint messages_context_version_unique, "
    "add constraint messages_context_version_unique unique (context_id, version, role)": [
        "messages_context_version_unique differs"
    ],
    "drop index messages_deleted_at_idx": ["messages_deleted_at_idx is missing"],
    "drop index messages_deleted_at_idx; create index messages_deleted_at_idx on messages (created_at)": [
        "messages_deleted_at_idx differs"
    ],
}


@pytest.mark.parametrize("change", DIFFERENCES)
def test_tables_that_differ_are_refused_with_a_list_and_nothing_changes(empty: Engine, change: str) -> None:
    execute(url_of(empty), DRIZZLE + change)
    before = catalog(url_of(empty))
    status = schema_status(empty)
    assert (status.state, status.differences) == ("different", DIFFERENCES[change])
    with pytest.raises(SchemaError) as caught:
        upgrade(empty)
    assert DIFFERENCES[change][0] in str(caught.value)
    assert catalog(url_of(empty)) == before


def test_several_differences_are_all_listed(empty: Engine) -> None:
    execute(url_of(empty), "create table messages (id integer primary key)")
    assert len(schema_status(empty).differences) > 12


def test_a_change_after_the_migration_is_a_difference(engine: Engine) -> None:
    execute(url_of(engine), "drop index messages_deleted_at_idx")
    status = schema_status(engine)
    assert (status.revision, status.state) == (HEAD, "different")
    assert status.differences == ["messages_deleted_at_idx is missing"]


def test_a_revision_of_a_newer_contextkit_is_unknown(engine: Engine) -> None:
    execute(url_of(engine), "update contextkit_revision set version_num = 'future'")
    assert schema_status(engine).state == "unknown"
    with pytest.raises(SchemaError, match=r"future.*newer"):
        upgrade(engine)


# The extension


@pytest.mark.direct("a pooler refuses such options")
def test_a_role_without_the_right_is_told_whom_to_ask(
    empty_url: str, server_url: str, opened: Callable[[str], Engine]
) -> None:
    execute(server_url, "create role unable")
    execute(empty_url, "grant create on schema public to unable")
    engine = opened(with_options(empty_url, "-c role=unable"))
    with pytest.raises(SchemaError, match=r"superuser.*create extension vector"):
        upgrade(engine)
    execute(empty_url, "create extension vector")
    assert upgrade(engine) == HEAD
    execute(empty_url, "drop owned by unable")
    execute(server_url, "drop role unable")


@pytest.mark.direct("a pooler refuses such options")
def test_a_server_without_pgvector_is_named(empty_url: str, opened: Callable[[str], Engine]) -> None:
    engine = opened(with_options(empty_url, "-c extension_control_path=/nowhere"))
    with pytest.raises(SchemaError, match="no pgvector"):
        upgrade(engine)


def test_an_extension_outside_the_search_path_is_named(empty: Engine) -> None:
    execute(url_of(empty), "create schema tools; create extension vector schema tools")
    with pytest.raises(SchemaError, match=r"schema tools.*search_path"):
        upgrade(empty)


# push


def test_push_adds_what_is_missing_and_never_drops(engine: Engine) -> None:
    execute(url_of(engine), OTHERS)
    execute(
        url_of(engine),
        """
        alter table messages drop column token_count;
        alter table contexts drop column parent_id;
        drop index messages_deleted_at_idx;
        drop index messages_context_version_idx;
        create index messages_context_version_idx on messages (version);
        drop index messages_embedding_hnsw;
        alter table messages alter embedding type vector(3072);
        """,
    )
    before = catalog(url_of(engine))
    done = push(engine, force=True)
    added = catalog(url_of(engine)) - before
    assert {name for _, _, name, _ in added} == {
        "token_count",
        "parent_id",
        "contexts_parent_id_contexts_id_fk",
        "messages_deleted_at_idx",
    }
    assert before <= catalog(url_of(engine))
    assert "ALTER TABLE messages ADD COLUMN token_count INTEGER;" in done
    assert "drop" not in done.lower()
    assert done.splitlines()[-2:] == [
        "-- remains: messages.embedding is vector(3072), expected vector(1536)",
        "-- remains: messages_context_version_idx differs",
    ]


def test_push_makes_the_tables_of_an_empty_database_which_upgrade_adopts(empty: Engine) -> None:
    done = push(empty, force=True)
    assert "create extension vector;" in done
    assert "CREATE TABLE messages" in done
    assert schema_status(empty).state == "unmanaged"
    assert push(empty, force=True) == "nothing to do"
    assert upgrade(empty) == HEAD


def test_push_is_refused_on_a_database_that_is_not_embedded(engine: Engine) -> None:
    execute(url_of(engine), "drop index messages_deleted_at_idx")
    with pytest.raises(ValueError, match="force=True"):
        push(engine)
    assert schema_status(engine).differences == ["messages_deleted_at_idx is missing"]


def test_push_needs_no_force_on_the_embedded_database(server_url: str) -> None:
    engine = connect(write=True)
    settings = settings_of(engine)
    assert settings is not None
    assert settings.server is not None
    created = "CREATE TABLE" in push(engine)
    assert schema_status(engine).state in ("current", "unmanaged")
    if created:
        execute(server_url, "drop table messages, contexts")
    engine.dispose()


# generate


@pytest.fixture
def changed_models(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = MetaData()
    for table in Base.metadata.sorted_tables:
        table.to_metadata(metadata)
    messages = metadata.tables["messages"]
    for column in (
        Column("rating", Integer, server_default=text("0"), nullable=False),
        Column("summary", VECTOR(8)),
        Column("answers", IdType),
        Column("as_role", RoleType),
    ):
        messages.append_column(column)
    Index("messages_rating_idx", messages.c.rating)
    monkeypatch.setattr(comparison, "TARGET", metadata)


@pytest.mark.usefixtures("changed_models")
def test_generate_writes_a_revision_that_upgrade_runs(
    engine: Engine, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    execute(url_of(engine), OTHERS.replace("rating", "stars"))
    before = catalog(url_of(engine))
    path = generate(engine, "rating-and-more")
    assert capfd.readouterr() == ("", "")
    assert path.parent == folder / "versions"
    assert path.name.endswith("_rating_and_more.py")
    source = path.read_text()
    for line in ("VECTOR(8)", "sa.Uuid()", "sa.Text()", "from pgvector.sqlalchemy import VECTOR"):
        assert line in source
    assert "contextkit" not in source
    assert "drop" not in source.partition("def downgrade")[0]

    assert schema_status(engine).state == "behind"
    with pytest.raises(SchemaError, match="upgrade"):
        generate(engine, "again")
    revision = upgrade(engine)
    assert path.name.startswith(revision)
    assert schema_status(engine).state == "current"
    added = {row for row in catalog(url_of(engine)) - before if row[1] == "messages"}
    assert {name for _, _, name, _ in added} == {"rating", "summary", "answers", "as_role", "messages_rating_idx"}


def test_generate_without_differences_writes_no_file(engine: Engine, folder: Path) -> None:
    before = sorted(folder.rglob("*.py"))
    with pytest.raises(ValueError, match="no differences"):
        generate(engine, "nothing")
    assert sorted(folder.rglob("*.py")) == before


@pytest.mark.usefixtures("folder")
def test_generate_is_refused_when_the_database_is_not_at_head(empty: Engine) -> None:
    with pytest.raises(SchemaError, match="upgrade"):
        generate(empty, "early")


@pytest.mark.parametrize("slug", ["", "two words", "../up", "a/b", 'x"""', "é"])
def test_generate_refuses_a_slug_that_is_no_name(reader: Engine, slug: str) -> None:
    with pytest.raises(ValueError, match="slug"):
        generate(reader, slug)


def test_generate_is_refused_in_an_installed_package(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "PACKAGED", folder)
    with pytest.raises(ContextkitError, match="checkout"):
        generate(engine, "anything")


# The wheel


def new_environment(folder: Path) -> tuple[Path, Path]:
    """The interpreter of an environment with nothing in it, and the folder of its packages."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    venv.create(folder, symlinks=os.name != "nt")
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    return python, Path(done.stdout.strip())


def link(package: Distribution, packages: Path) -> None:
    """Have a package of this environment in another, as installing takes long."""
    for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        (packages / name).symlink_to(Path(str(package.locate_file(name))))


def test_a_clean_installation_of_the_wheel_with_just_what_it_needs_migrates_and_loads(
    empty_url: str, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(CHECKOUT)]
    subprocess.run(build, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    python, packages = new_environment(tmp_path / "venv")
    install = [*pip, "install", "--no-deps", "--no-compile", "--target", str(packages), str(wheel)]
    subprocess.run(install, check=True)
    (installed,) = Distribution.discover(name="contextkit", path=[str(packages)])
    for needs in needed(installed).values():
        link(needs, packages)
    program = f"""
import contextkit
engine = contextkit.connect({empty_url!r}, write=True)
print(contextkit.upgrade(engine), contextkit.schema_status(engine).state)
contextkit.add_context(engine, "first")
print(list(contextkit.contexts_df(engine).name))
try:
    contextkit.generate(engine, "slug")
except contextkit.ContextkitError as error:
    print(error)
"""
    done = subprocess.run([python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        f"{HEAD} current",
        "['first']",
        "this contextkit is an installed package; generate revisions in a git checkout",
    ], done.stderr


def test_tables_that_were_dropped_are_made_again(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("drop table messages, contexts"))
    upgrade(engine)
    assert schema_status(engine).state == "current"


def test_tables_changed_after_the_revision_are_refused_with_the_differences(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("alter table messages drop column model"))
    with pytest.raises(SchemaError, match=r"messages.model is missing"):
        upgrade(engine)
