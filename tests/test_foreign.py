"""Databases of other writers: each function works there with the right result, or says exactly what is missing."""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import isfunction
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url

import contextkit
from contextkit import ContextkitError, connect, sample
from tests.foreign.calls import NO_DATABASE, READS, STRUCTURE, WRITES
from tests.foreign.schemas import SCHEMAS, Schema, seed
from tests.foreign.servers import OLD_SERVER, new_cluster, old_binaries, replica_of

CALLS = READS | WRITES | STRUCTURE
CATALOG = """
    select 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod)
        || case when attnotnull then ' not null' else '' end
        || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
      from pg_attribute join pg_class c on c.oid = attrelid
      left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where relnamespace > 16383 or relnamespace = 'public'::regnamespace and attnum > 0
    union all select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
     where conrelid > 16383
    union all select 'index', indexrelid::regclass::text, indisvalid::text, pg_get_indexdef(indexrelid) from pg_index
     where indexrelid > 16383
    union all select 'relation', oid::regclass::text, relkind::text, relacl::text || reloptions::text from pg_class
     where oid > 16383 and relkind <> 't'
    union all select 'view', oid::regclass::text, '', pg_get_viewdef(oid) from pg_class where relkind = 'v' and oid > 16383
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
        assert not isinstance(error, json.JSONDecodeError | UnicodeError)
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


def check(world, folder, expected):
    wrong = []
    for name in CALLS:
        before = world.catalog(), world.contents()
        got = outcome(name, world, folder)
        after = world.catalog(), world.contents()
        changed = before != after
        wrong.append((name, got, changed))
    return wrong

@pytest.mark.parametrize("name", list(SCHEMAS))
def test_x(server_url, name, tmp_path, ordinary):
    if name == list(SCHEMAS)[0]:
        for c in CALLS: print(c, ordinary[c][:150])
    with made(server_url, SCHEMAS[name]) as world:
        with open("/tmp/foreign.out", "a") as f:
            print("=====", name, file=f)
            for c, got, changed in check(world, tmp_path, ordinary):
                if got != ordinary[c] and not (name.startswith("times") and got.replace("[us]","[us, UTC]").replace('.000"','.000Z"')==ordinary[c].replace('.000"','.000Z"')):
                    err = re.match(r"\w+Error: ", got)
                    print(f"  {c}: {changed if err else ''} {got[:250]}" + ("" if err else "\n     REF " + ordinary[c][:250]), file=f)
