import uuid
import weakref
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sqlalchemy import (
    ARRAY,
    Engine,
    Float,
    Integer,
    String,
    Text,
    TextClause,
    Uuid,
    any_,
    cast,
    create_engine,
    event,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from contextkit import (
    EMBEDDING_DIMENSIONS,
    Context,
    DimensionError,
    Message,
    SchemaError,
    add_context,
    append_messages,
    arrow,
    connect,
    contexts_df,
    delete_context,
    delete_messages,
    embedding_matrix,
    fork_context,
    forks_df,
    frames,
    gathered,
    history_df,
    load_sample,
    messages_batches,
    messages_df,
    read_df,
    select_history,
    select_messages,
)
from contextkit.dtypes import to_frame
from contextkit.plans import Expected
from contextkit.vectors import VectorColumn
from tests.test_connection import until

TIME = "datetime64[us, UTC]"
VECTOR = f"fixed_size_list<item: float>[{EMBEDDING_DIMENSIONS}][pyarrow]"
CONTEXTS = {
    "context_id": "str",
    "name": "str",
    "created_at": TIME,
    "updated_at": TIME,
    "message_count": "int64",
    "total_tokens": "int64",
    "latest_version": "int64",
    "parent_id": "str",
    "fork_version": "Int64",
    "deleted_at": TIME,
}
MESSAGES = {
    "message_id": "str",
    "context_id": "str",
    "version": "int64",
    "created_at": TIME,
    "role": "str",
    "content": "str",
    "tool_call_id": "str",
    "tool_name": "str",
    "token_count": "Int64",
    "model": "str",
    "deleted_at": TIME,
}
HISTORY = {"context_id": "str", "position": "int64", "source_context_id": "str", "inherited": "bool"} | {
    name: kind for name, kind in MESSAGES.items() if name != "context_id"
}
FORKS = {
    "context_id": "str",
    "name": "str",
    "parent_id": "str",
    "fork_version": "Int64",
    "root_id": "str",
    "depth": "Int64",
    "written_by": "str",
    "forks": "int64",
    "length": "Int64",
    "tokens": "Int64",
    "turns": "Int64",
    "first_at": TIME,
    "last_at": TIME,
}


def kinds(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(kind) for name, kind in frame.dtypes.items()}


def user(content: str, **values: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **values}


@pytest.mark.parametrize("rows", ["none", "some"])
@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_columns_and_dtypes_are_the_same_empty_or_full_and_whichever_way(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, rows: str, way: str
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    if rows == "some":
        load_sample(engine)
    ids = contexts_df(engine)["context_id"]
    assert kinds(contexts_df(engine)) == CONTEXTS
    assert kinds(messages_df(engine)) == MESSAGES
    assert kinds(messages_df(engine, embeddings=True)) == MESSAGES | {"embedding": VECTOR}
    assert kinds(history_df(engine, ids)) == HISTORY
    assert kinds(history_df(engine, ids, embeddings=True)) == HISTORY | {"embedding": VECTOR}
    assert kinds(forks_df(engine)) == FORKS
    assert isinstance(messages_df(engine).index, pd.RangeIndex)


@pytest.mark.parametrize("enum", [False, True])
def test_both_ways_and_a_foreign_engine_give_identical_frames(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, enum: bool
) -> None:
    load_sample(engine)
    if enum:
        with engine.begin() as connection:
            connection.exec_driver_sql("create type message_role as enum ('user', 'assistant', 'system', 'tool')")
            connection.exec_driver_sql("alter table messages alter role type message_role using role::message_role")
    foreign = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))

    def load(engine: Engine) -> list[pd.DataFrame]:
        ids = contexts_df(engine)["context_id"]
        statement = select_messages(Message.role == "tool", Message.role.in_(["tool", "user"]), embeddings=True)
        return [
            contexts_df(engine, Message.role == "tool", include_deleted=True),
            forks_df(engine),
            messages_df(engine, embeddings=True),
            history_df(engine, ids, embeddings=True),
            read_df(engine, statement),
        ]

    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    bulk = load(engine)
    monkeypatch.setattr(arrow, "BULK_ROWS", 10**9)
    for way in (load(engine), load(foreign)):
        for one, other in zip(bulk, way, strict=True):
            assert len(one) > 0
            pd.testing.assert_frame_equal(one, other)
    foreign.dispose()


EVERY_TYPE = text("""
    select * from (values
        (1::int2, 2, 3::int8, 1.5::real, 0.1::float8, 12.25::numeric, 'tëxt', 'v'::varchar, true,
         '0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa'::uuid, date '2026-01-31', timestamp '2026-01-31 12:00',
         timestamptz '2026-01-31 12:00:00.123456+05', '{"a": [1, null]}'::jsonb, '[1]'::json, '[1,2,3]'::vector,
         interval '1 day 2 hours', array[1, 2], '\\x00ff'::bytea, '10.0.0.1'::inet),
        (null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
         null, null, null, null)
    ) as given(i2, i4, i8, f4, f8, n, t, v, b, u, d, ts, tz, jb, js, e, iv, a, by, ip)
""")
BULK_COLUMNS = ["i2", "i4", "i8", "f4", "f8", "n", "t", "v", "b", "u", "d", "ts", "tz", "jb", "js", "e"]


def test_every_type_comes_out_alike_in_bulk_and_from_the_pool(reader: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = text(f"select {', '.join(BULK_COLUMNS)} from ({EVERY_TYPE.text}) as every")
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    bulk = read_df(reader, statement)
    monkeypatch.setattr(arrow, "BULK_ROWS", 10**9)
    pd.testing.assert_frame_equal(bulk, read_df(reader, statement))
    assert bulk["u"][0] == "0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa"
    assert bulk["jb"][0] == {"a": [1, None]}
    assert bulk["n"][0] == 12.25
    assert bulk["tz"][0] == pd.Timestamp("2026-01-31 07:00:00.123456", tz="UTC")
    assert str(bulk["b"].dtype) == "boolean"
    assert str(bulk["i2"].dtype) == "Int64"
    assert bulk["e"].isna().tolist() == [False, True]


@pytest.mark.parametrize("expected", [0, 3, 10**9])
def test_rows_of_many_batches_are_kept_however_many_the_planner_expected(
    reader: Engine, monkeypatch: pytest.MonkeyPatch, expected: int
) -> None:
    statement = text("""
        select i, nullif(i % 3, 0) as n, i % 2 = 0 as even, nullif(i % 5 = 0, false) as b, i / 7.0::float8 as f,
            case when i % 4 > 0 then md5(i::text)::uuid end as u, nullif('x' || i, 'x7') as t,
            date '2026-01-31' + i as d,
            case when i % 4 > 0 then timestamptz '2026-01-31 12:00+00' + i * interval '1 second' end as tz
        from generate_series(1, 30000) as i order by i
    """)
    monkeypatch.setattr(arrow, "BULK_ROWS", 10**9)
    pooled = read_df(reader, statement)
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    real = arrow._fetch_bulk
    monkeypatch.setattr(arrow, "_fetch_bulk", lambda bulk, sql, _size: real(bulk, sql, Expected(expected, 10_000)))
    pd.testing.assert_frame_equal(read_df(reader, statement), pooled)


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_every_column_can_be_written(engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    load_sample(engine)
    loaded = [contexts_df(engine), messages_df(engine), forks_df(engine)]
    for frame in [*loaded, history_df(engine, loaded[0]["context_id"])]:
        for name in frame.columns:
            value = frame[name].dropna().iloc[-1] if frame[name].notna().any() else pd.Timestamp("2026-01-31", tz="UTC")
            if isinstance(frame[name].dtype, pd.StringDtype):
                value = "written"
            frame.loc[0, name] = value
            assert frame[name].iloc[0] == value


def test_types_that_bulk_does_not_read_come_from_the_pool(reader: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    row = read_df(reader, EVERY_TYPE).iloc[0]
    assert row["iv"] == pd.Timedelta(days=1, hours=2)
    assert row["a"] == [1, 2]
    assert row["by"] == b"\x00\xff"
    assert str(row["ip"]) == "10.0.0.1"


TRICKY = ["100%", "50%% off", "it's", 'say "x"', "back\\slash", "%(name)s", ":name", "", "naïve 🙂", "a\nb", "$1", "--"]


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_values_in_conditions_are_never_read_as_sql(engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    append_messages(engine, add_context(engine), [user(content) for content in TRICKY])
    for content in TRICKY:
        assert messages_df(engine, Message.content == content)["content"].tolist() == [content]
        assert messages_df(engine, Message.content.in_([content]))["content"].tolist() == [content]
    assert len(messages_df(engine, Message.content == "' or true --")) == 0
    assert messages_df(engine, Message.content.like("%off"))["content"].tolist() == ["50%% off"]
    assert read_df(engine, text("select '5%' as share, '%s' as sign;")).iloc[0].tolist() == ["5%", "%s"]


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_values_of_every_kind_work_in_conditions(engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    context = add_context(engine, "one")
    written = append_messages(engine, context, [user("x", token_count=3)])
    id_ = written["message_id"][0]
    for condition in (
        Message.id == id_,
        Message.id == uuid.UUID(id_),
        Message.id == id_.upper(),
        Message.id.in_(written["message_id"]),
        Message.created_at > datetime(2026, 1, 1, tzinfo=UTC),
        Message.created_at < datetime.now(UTC) + timedelta(hours=1),
        Message.token_count.between(1, 5),
        Message.embedding.is_(None),
        func.length(Message.content) == 1,
        Context.name == "one",
        cast(Message.role, Text).like("us%"),
        Message.content == func.any(cast(["x", "y"], ARRAY(Text))),
        Message.id == any_(literal(written["message_id"].tolist(), ARRAY(Uuid(as_uuid=False)))),
        Message.content != func.all(literal([], ARRAY(Text))),
    ):
        assert len(messages_df(engine, condition)) == 1, str(condition)
    with pytest.raises(ValueError, match="a UUID is expected"):
        messages_df(engine, Message.id == "first")


@pytest.mark.parametrize("way", ["pool", "bulk"])
@pytest.mark.parametrize("value", ["nul\0", float("nan")])
def test_values_that_have_no_literal_are_refused(
    reader: Engine, monkeypatch: pytest.MonkeyPatch, way: str, value: object
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    with pytest.raises(ValueError, match=r"NUL|NaN"):
        read_df(reader, select(literal(value).label("x")))


def test_a_parameter_without_a_value_is_refused(reader: Engine) -> None:
    with pytest.raises(ValueError, match="lacks a value"):
        read_df(reader, text("select :x"))


def test_read_df_takes_selects_and_text_only(reader: Engine) -> None:
    with pytest.raises(TypeError, match=r"wrap SQL in text\(\)"):
        read_df(reader, "select 1")  # type: ignore[arg-type]


def test_read_df_of_own_columns_keeps_names_and_types(engine: Engine) -> None:
    load_sample(engine)
    statement = (
        select(Message.model, func.count().label("messages"), func.avg(Message.token_count).label("mean_tokens"))
        .group_by(Message.model)
        .order_by(Message.model)
    )
    frame = read_df(engine, statement)
    assert kinds(frame) == {"model": "str", "messages": "Int64", "mean_tokens": "float64"}
    by_hand = messages_df(engine, include_deleted=True).groupby("model")["token_count"].mean()
    assert frame.dropna().set_index("model")["mean_tokens"].to_dict() == pytest.approx(by_hand.to_dict())


def test_conditions_on_messages_choose_contexts_with_one_message_that_meets_all(engine: Engine) -> None:
    both, apart = add_context(engine, "both"), add_context(engine, "apart")
    append_messages(engine, both, [user("x", model="a")])
    append_messages(engine, apart, [user("x", model="b"), user("y", model="a")])
    assert contexts_df(engine, Message.content == "x", Message.model == "a")["name"].tolist() == ["both"]
    named = contexts_df(engine, Context.name == "apart", Message.model == "a")
    assert named["name"].tolist() == ["apart"]


def test_a_condition_that_is_a_bool_is_refused(reader: Engine) -> None:
    for load in (contexts_df, forks_df, messages_df):
        with pytest.raises(TypeError, match=r"is_\(None\)"):
            load(reader, Context.name is None)  # type: ignore[arg-type]


def test_a_condition_on_another_table_is_refused(reader: Engine) -> None:
    from sqlalchemy import column, table

    other = table("users", column("id", Integer))
    with pytest.raises(ValueError, match="users"):
        messages_df(reader, other.c.id == 1)


def test_deleted_rows_are_out_unless_included(engine: Engine) -> None:
    kept, gone = add_context(engine, "kept"), add_context(engine, "gone")
    written = append_messages(engine, kept, [user("a"), user("b")])
    append_messages(engine, gone, [user("c")])
    delete_messages(engine, written["message_id"][0])
    delete_context(engine, gone)
    assert contexts_df(engine)["name"].tolist() == ["kept"]
    assert messages_df(engine)["content"].tolist() == ["b"]
    assert set(contexts_df(engine, include_deleted=True)["name"]) == {"kept", "gone"}
    assert set(messages_df(engine, include_deleted=True)["content"]) == {"a", "b", "c"}


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 10_000])
def test_batches_put_together_are_the_whole(engine: Engine, batch_rows: int) -> None:
    load_sample(engine)
    batches = list(messages_batches(engine, Message.role != "system", batch_rows=batch_rows, embeddings=True))
    assert all(len(batch) <= batch_rows for batch in batches)
    assert all(isinstance(batch.index, pd.RangeIndex) for batch in batches)
    whole = messages_df(engine, Message.role != "system", embeddings=True)
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), whole)


def test_batches_of_nothing_are_one_empty_frame(reader: Engine) -> None:
    (batch,) = messages_batches(reader)
    assert kinds(batch) == MESSAGES
    with pytest.raises(ValueError, match="at least 1"):
        messages_batches(reader, batch_rows=0)


def test_no_transaction_stays_open_between_batches(engine: Engine, reader: Engine) -> None:
    load_sample(engine)
    batches = messages_batches(reader, batch_rows=10)
    next(batches)
    open_ = text(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and state <> 'idle'"
    )
    with engine.connect() as connection:
        assert connection.execute(open_).scalar() == 0


def test_a_batch_that_its_reader_lets_go_is_gone_before_the_next_is_read(engine: Engine) -> None:
    load_sample(engine)
    batches = messages_batches(engine, batch_rows=100)
    batch = weakref.ref(next(batches))
    left: list[object] = []
    event.listen(engine, "before_cursor_execute", lambda *_: left.append(batch()))
    next(batches)
    assert set(left) == {None}


def test_a_fetched_column_goes_when_it_is_converted() -> None:
    columns = [arrow.Column(name, pa.chunked_array([[1, 2]])) for name in ("a", "b")]
    assert list(to_frame(columns)) == ["a", "b"]
    assert columns == []


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_the_matrix_of_embeddings_is_what_was_stored(engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    stored = np.random.default_rng(3).standard_normal((50, EMBEDDING_DIMENSIONS)).astype(np.float32)
    missing = np.arange(50) % 7 == 0
    rows = [user("x", embedding=None if gone else vector) for vector, gone in zip(stored, missing, strict=True)]
    append_messages(engine, add_context(engine), rows)
    frame = messages_df(engine, embeddings=True)
    stored[missing] = np.nan
    np.testing.assert_array_equal(embedding_matrix(frame), stored)
    assert frame["embedding"].isna().tolist() == missing.tolist()
    np.testing.assert_array_equal(embedding_matrix(frame.iloc[5:20]), stored[5:20])
    np.testing.assert_array_equal(embedding_matrix(frame.iloc[::-3]), stored[::-3])
    np.testing.assert_array_equal(embedding_matrix(frame[frame["embedding"].notna()]), stored[~missing])
    doubled = pd.concat([frame, frame], ignore_index=True)
    np.testing.assert_array_equal(embedding_matrix(doubled), np.vstack([stored, stored]))


def test_the_matrix_shares_memory_with_the_frame(engine: Engine) -> None:
    append_messages(engine, add_context(engine), [user("x", embedding=np.ones(EMBEDDING_DIMENSIONS))] * 3)
    frame = messages_df(engine, embeddings=True)
    assert np.shares_memory(embedding_matrix(frame), embedding_matrix(frame))


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_a_column_of_null_embeddings_has_the_declared_length(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    append_messages(engine, add_context(engine), [user("x")] * 3)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter embedding type vector(3072)")
    assert embedding_matrix(messages_df(engine, embeddings=True)).shape == (3, 3072)
    assert embedding_matrix(messages_df(engine, Message.role == "tool", embeddings=True)).shape == (0, 3072)


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_vectors_of_several_lengths_in_one_column_are_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    with pytest.raises(DimensionError, match="2, 3"):
        read_df(engine, text("select v::vector as embedding from (values ('[1,2]'), ('[1,2,3]'), (null)) as x(v)"))


def test_a_frame_without_embeddings_has_no_matrix(reader: Engine) -> None:
    with pytest.raises(ValueError, match="embeddings=True"):
        embedding_matrix(messages_df(reader))


def test_null_embeddings_before_the_first_real_one_are_kept_in_bulk(engine: Engine) -> None:
    column = VectorColumn(0)
    one = np.arange(4, dtype=np.float32)
    for batch in ([None, None], [None], [one], [None, one * 2]):
        column.add_rows(batch)
    frame = pd.DataFrame({"embedding": pd.Series(column.finish(lambda: 9), dtype=None)})
    values = [None if row is None else list(row) for row in column.finish(lambda: 9).to_pylist()]
    assert values == [None, None, None, [0, 1, 2, 3], None, [0, 2, 4, 6]]
    assert len(frame) == 6


def test_rows_with_vectors_are_read_in_bulk_where_they_are_few_already(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_sample(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("analyze")
    bulk: list[str] = []
    real = arrow._fetch_bulk
    monkeypatch.setattr(arrow, "_fetch_bulk", lambda engine, sql, rows: (bulk.append(sql), real(engine, sql, rows))[1])
    assert len(messages_df(engine)) == 356
    assert len(read_df(engine, select_messages(embeddings=True).limit(5))) == 5
    assert bulk == []
    assert len(messages_df(engine, embeddings=True)) == 356
    assert len(bulk) == 1


@pytest.mark.parametrize("expected", [0, 3, 10**9])
def test_vectors_are_kept_however_many_the_planner_expected(expected: int) -> None:
    column = VectorColumn(expected)
    vectors = np.random.default_rng(4).standard_normal((1000, EMBEDDING_DIMENSIONS)).astype(np.float32)
    for start in range(0, 1000, 7):
        column.add_rows(list(vectors[start : start + 7]))
    frame = pd.DataFrame(
        {
            "embedding": pd.Series(
                column.finish(lambda: 9), dtype=pd.ArrowDtype(pa.list_(pa.float32(), EMBEDDING_DIMENSIONS))
            )
        }
    )
    np.testing.assert_array_equal(embedding_matrix(frame), vectors)


def test_rows_are_read_in_bulk_where_the_planner_has_no_statistics(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk: list[str] = []
    real = arrow._fetch_bulk
    monkeypatch.setattr(arrow, "_fetch_bulk", lambda engine, sql, rows: (bulk.append(sql), real(engine, sql, rows))[1])
    context = add_context(engine)
    with engine.begin() as connection:
        # The server would analyze the table by itself at some time.
        connection.exec_driver_sql("alter table messages set (autovacuum_enabled = off)")
    append_messages(engine, context, [user("few")])
    assert len(messages_df(engine)) == 1
    assert bulk == []
    append_messages(engine, context, [user(str(number) * 200) for number in range(3_000)])
    assert len(messages_df(engine, Message.content != "few")) == 3_000
    assert len(bulk) == 1
    with engine.begin() as connection:
        connection.exec_driver_sql("analyze messages")
    assert len(messages_df(engine, Message.content != "few")) == 3_000
    assert len(bulk) == 2  # of one context the server keeps no statistics by itself, and expects none of its messages
    with engine.begin() as connection:
        connection.exec_driver_sql("analyze contexts")
    assert len(messages_df(engine, Message.content == "few")) == 1
    assert len(bulk) == 2


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_histories_stand_side_by_side_in_one_statement(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    load_sample(engine)
    one, other = contexts_df(engine)["context_id"].iloc[:2]
    both = read_df(engine, select_history([one]).union_all(select_history([other], at_version=2)))
    assert both["context_id"].value_counts().to_dict() == {one: len(history_df(engine, one)), other: 2}


def test_columns_of_one_name_are_refused(reader: Engine) -> None:
    with pytest.raises(ValueError, match="named a"):
        read_df(reader, text("select 1 as a, 2 as a"))


@pytest.mark.parametrize("batch_rows", [1.5, True, "5", 0])
def test_batches_are_of_a_whole_number_of_rows(reader: Engine, batch_rows: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        messages_batches(reader, batch_rows=batch_rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pool_size", "seen"),
    [
        pytest.param(1, (1, 1), id="in its place"),
        pytest.param(2, (2, 1), id="beside it", marks=pytest.mark.direct("a pooler keeps none open that is idle")),
    ],
)
def test_bulk_reads_never_hold_more_connections_than_the_pool(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, pool_size: int, seen: tuple[int, int]
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    load_sample(engine)
    narrow = connect(database_url, pool_size=pool_size)
    counts: list[tuple[int, int]] = []
    real = arrow.execute_bulk

    def counting(*arguments: Any) -> Any:
        counts.append((others(engine), narrow.pool.checkedout()))  # type: ignore[attr-defined]
        return real(*arguments)

    engine.dispose()
    monkeypatch.setattr(arrow, "execute_bulk", counting)
    assert len(messages_df(narrow)) == 356
    assert counts == [seen]  # its place in the pool is taken, or another reader would take it
    assert narrow.pool.checkedout() == 0  # type: ignore[attr-defined]
    narrow.dispose()


@pytest.mark.direct("a pooler gives any connection of the server's")
def test_a_bulk_read_closes_no_connection_of_a_pool_that_has_room(
    reader: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = text("select pg_backend_pid()")
    with reader.connect() as connection:
        before = connection.execute(pid).scalar_one()
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    messages_df(reader)
    with reader.connect() as connection:
        assert connection.execute(pid).scalar_one() == before


def test_batches_that_stay_and_others_come_in_their_order(reader: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = text(
        "select n, md5(n::text)::uuid as id, n % 5 = 0 as five, case when n % 6 > 0 then "
        "repeat('\u00e9' || n, case when n / 300 % 2 = 0 then 1 else 90 end) end as words, null::text as nothing "
        "from generate_series(1, 3000) as s(n) order by n"
    )
    monkeypatch.setattr(arrow, "BULK_ROWS", 10_000)
    pooled = read_df(reader, statement)
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    monkeypatch.setattr(arrow, "BATCH_BYTES", (8_000, 8_000))
    judged: list[bool] = []
    judge = gathered._is_mostly_text
    monkeypatch.setattr(gathered, "_is_mostly_text", lambda batch: judged.append(judge(batch)) or judged[-1])
    in_bulk = read_df(reader, statement)
    assert set(judged) == {True, False}
    pd.testing.assert_frame_equal(in_bulk, pooled)


LITERALS = {
    "float": literal(3) * 0.1,
    "floats": literal(0.3).in_([0.1 * 3, 1.5]),
    "negative zero": literal(-0.0),
    "decimal": literal(Decimal("-0.10")),
    "infinite decimal": literal(1) < Decimal("Infinity"),
    "whole": -literal(-(2**40)),
    "text": func.to_jsonb(literal("x")),
    "texts": func.array_agg(literal("x\\'y")),
    "empty array": literal([], ARRAY(Text)),
    "before a colon": literal("a\\:b"),
    "in a text": text("cast(:x as text) as x").bindparams(x="a\\:b"),
    "number in a text": text(":x * 3 as x").bindparams(x=0.1),
    "bytes": literal(b"\0\xff"),
    "time": literal(datetime(2026, 1, 31, tzinfo=UTC)),
    "duration": literal(timedelta(seconds=-5.5)),
    "json": literal({"a": [1, "\\:"]}, JSONB),
}


@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_is_what_a_parameter_is(reader: Engine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = LITERALS[name]
    statement = select(value if isinstance(value, TextClause) else value.label("x"))
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    bulk = read_df(reader, statement)
    with create_engine(reader.url).connect() as connection:
        plain = connection.execute(statement).scalar_one()
    pd.testing.assert_frame_equal(bulk, read_df(reader.execution_options(), statement))
    given = bulk.iloc[0, 0]
    assert repr(float(given)) == repr(float(plain)) if isinstance(plain, float | Decimal) else given == plain


@pytest.mark.parametrize("rows", [10, 5000])
@pytest.mark.parametrize("end", [";", "; ", ";;", "; -- all", "; /* all */", " -- all"])
def test_a_statement_may_end_as_scripts_do(reader: Engine, rows: int, end: str) -> None:
    assert len(read_df(reader, text(f"select i from generate_series(1, {rows}) i{end}"))) == rows


def test_copy_is_refused(reader: Engine) -> None:
    with pytest.raises(ValueError, match="COPY gives no rows"):
        read_df(reader, text(" Copy (select 1) to stdout"))


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_json_is_python_objects_whatever_it_holds(reader: Engine, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    frame = read_df(reader, text("""select '"x"'::jsonb as text, '"\\ud83d"'::json as half"""))
    assert frame.dtypes.tolist() == [object, object]
    assert frame.iloc[0].tolist() == ["x", "\ud83d"]
    with pytest.raises(ValueError, match="nested too deep"):
        read_df(reader, text("select (repeat('[', 5000) || repeat(']', 5000))::json"))


@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_values_mean_the_same_on_both_ways(reader: Engine, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    row = read_df(reader, text("select 5-:x\n as y, 0.1::float4 as a -- a remark").bindparams(x=-1)).iloc[0]
    assert row.tolist() == [6, float(np.float32(0.1))]
    assert read_df(reader, select((-literal(-1)).label("y")))["y"].tolist() == [1]
    infinite = select(literal(1.5, Float) < literal(float("inf"), Float))
    assert read_df(reader, infinite).iloc[0].tolist() == [True]


@pytest.mark.parametrize("time", ["'infinity'::timestamptz", "'-infinity'::date", "'20000-01-01'::timestamp"])
@pytest.mark.parametrize("way", ["pool", "bulk"])
def test_times_that_python_has_none_of_are_refused(
    reader: Engine, monkeypatch: pytest.MonkeyPatch, way: str, time: str
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if way == "bulk" else 10**9)
    with pytest.raises(ValueError, match="beyond the year 9999"):
        read_df(reader, text(f"select {time} as at"))


def test_batches_of_one_long_context_are_read_in_bulk(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    append_messages(engine, add_context(engine), [{"role": "user", "content": "x"}] * 60)
    with engine.begin() as connection:
        connection.exec_driver_sql("analyze")  # by which no row is expected after the first id and version
    for module in (arrow, frames):
        monkeypatch.setattr(module, "BULK_ROWS", 10)
    read: list[int] = []
    real = arrow.execute_bulk

    def noting(*arguments: Any) -> Any:
        read.append(1)
        return real(*arguments)

    monkeypatch.setattr(arrow, "execute_bulk", noting)
    assert [len(batch) for batch in messages_batches(engine, batch_rows=25)] == [25, 25, 10]
    assert len(read) == 3


def test_literals_do_not_show_in_the_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="sqlalchemy.engine")
    messages_df(engine, Message.content == "TOPSECRETTEXT")
    assert "select" in caplog.text.lower()
    assert "TOPSECRETTEXT" not in caplog.text


def test_frames_are_in_a_fixed_order(engine: Engine) -> None:
    load_sample(engine)
    messages = messages_df(engine)
    assert messages.index.tolist() == messages.sort_values(["context_id", "version"]).index.tolist()
    contexts = contexts_df(engine)
    assert contexts.index.tolist() == contexts.sort_values(["created_at", "context_id"]).index.tolist()


def test_frames_write_to_parquet_and_come_back(engine: Engine, tmp_path: Any) -> None:
    load_sample(engine)
    frame = history_df(engine, contexts_df(engine)["context_id"], as_of=datetime.now(UTC), embeddings=True)
    frame.to_parquet(tmp_path / "history.parquet")
    again = pd.read_parquet(tmp_path / "history.parquet", dtype_backend="pyarrow")
    assert again["message_id"].tolist() == frame["message_id"].tolist()
    assert frame.attrs["asked"]["as_of"].endswith("+00:00")


def test_a_database_without_tables_says_upgrade(empty_url: str) -> None:
    engine = connect(empty_url)
    for load in (contexts_df, forks_df, messages_df):
        with pytest.raises(SchemaError, match=r"upgrade\(engine\)"):
            load(engine)
    with pytest.raises(SchemaError, match=r"upgrade\(engine\)"):
        history_df(engine, "0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa")
    engine.dispose()


def test_types_created_after_the_first_bulk_read_are_read(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    engine = connect(empty_url, write=True)
    assert read_df(engine, text("select 1 as one"))["one"].tolist() == [1]
    with engine.begin() as connection:
        connection.exec_driver_sql("create extension vector")
    for _ in range(2):
        frame = read_df(engine, text("select '[1,2]'::vector as embedding"))
        assert embedding_matrix(frame).tolist() == [[1, 2]]
    engine.dispose()


def others(engine: Engine) -> int:
    """How many other connections the database has; a transaction each time, which sees the same ones throughout."""
    query = text("select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


@pytest.mark.direct("counts the server's connections")
def test_a_bulk_read_leaves_no_connection(engine: Engine, reader: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    load_sample(engine)
    messages_df(reader, embeddings=True)
    with pytest.raises(DimensionError):
        read_df(reader, text("select v::vector as e from (values ('[1,2]'), ('[1,2,3]')) as x(v)"))
    reader.dispose()
    assert until(lambda: others(engine) == 0)  # the server takes a moment to end them


def test_a_fork_by_reference_stores_no_rows_of_its_own(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [user("a"), user("b")])
    fork = fork_context(engine, root)
    assert len(messages_df(engine, Message.context_id == fork)) == 0
    assert history_df(engine, fork)["inherited"].tolist() == [True, True]
    assert forks_df(engine, Context.id == fork)["written_by"].tolist() == ["reference"]


def test_extra_columns_of_an_owner_are_ignored(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table contexts add policy_config jsonb not null default '{}'")
        connection.exec_driver_sql("alter table messages add compacted_at timestamptz")
    append_messages(engine, add_context(engine), [user("a")])
    assert kinds(contexts_df(engine)) == CONTEXTS
    assert kinds(messages_df(engine)) == MESSAGES
    assert str(read_df(engine, select(func.max(cast(Message.role, String)).label("role")))["role"][0]) == "user"
