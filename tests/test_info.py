from importlib.metadata import version

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, make_url

from contextkit import add_context, append_messages, connect, delete_context, info
from contextkit.errors import DatabaseUnavailableError

ROWS = [
    "contextkit",
    "postgresql",
    "pgvector",
    "host",
    "database",
    "user",
    "embedded",
    "pooled",
    "read_only",
    "latency_ms",
    "schema",
    "revision",
    "contexts",
    "messages",
]


def test_a_migrated_database_is_described(engine: Engine, reader: Engine) -> None:
    context = add_context(engine, "first")
    append_messages(engine, context, [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}])
    delete_context(engine, context)
    about = info(reader)
    assert list(about.index) == ROWS
    assert about.contextkit == version("contextkit")
    assert int(about.postgresql.split(".")[0]) >= 14
    assert about.pgvector.startswith("0.")
    assert about.database == reader.url.database
    assert (about.schema, about.contexts, about.messages) == ("current", 1, 2)
    assert (about.embedded, about.pooled, about.read_only) == (False, None, True)
    assert 0 < about.latency_ms < 1000
    assert not info(engine).read_only


def test_an_empty_database_has_no_counts(empty_url: str) -> None:
    engine = connect(empty_url)
    about = info(engine)
    assert (about.schema, about.revision, about.pgvector) == ("empty", None, None)
    assert (about.contexts, about.messages) == (None, None)
    engine.dispose()


def test_one_missing_table_has_no_count(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("drop table messages")
    about = info(engine)
    assert (about.schema, about.contexts, about.messages) == ("different", 0, None)


def test_an_engine_made_elsewhere_is_described(database_url: str) -> None:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    about = info(engine)
    assert (about.schema, about.embedded, about.read_only) == ("current", False, False)
    engine.dispose()


@pytest.mark.usefixtures("server_url")
def test_the_embedded_database_is_told() -> None:
    engine = connect()
    assert info(engine).embedded
    engine.dispose()


def test_no_password_is_shown(database_url: str) -> None:
    url = make_url(database_url).set(username="secretive", password="sEcr3t")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("create role secretive login password 'sEcr3t' in role pg_read_all_data")
    engine = connect(url)
    assert "sEcr3t" not in info(engine).to_string()
    engine.dispose()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("drop role secretive")


def test_nothing_that_answers_is_an_error() -> None:
    engine = connect("postgresql://postgres:sEcr3t@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailableError):
        info(engine)
    engine.dispose()
