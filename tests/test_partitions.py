"""Partitions take every context whole, are about equal in rows, and cover every id there can be."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from contextkit import Context, Message, add_context, append_messages, fork_context, load_sample, messages_df, read_df
from contextkit.partitions import Partition, partitions_of
from contextkit.queries import select_history_partitions, select_message_partitions
from tests.test_store import EXAMPLES

ID = "00000000-0000-0000-0000-{:012x}"


def fill(engine: Engine, sizes: dict[int, int]) -> None:
    """Contexts of so many messages, by the number in their id."""
    with engine.begin() as connection:
        connection.execute(text("truncate contexts, messages"))
        connection.execute(text("insert into contexts (id) select unnest(cast(:ids as uuid[]))"), {"ids": ids(sizes)})
        rows = text(
            "insert into messages (context_id, version, role, content) select id, version, 'user', ''"
            " from unnest(cast(:ids as uuid[]), cast(:sizes as int[])) as given(id, size)"
            ", generate_series(1, size) as version"
        )
        connection.execute(rows, {"ids": ids(sizes), "sizes": list(sizes.values())})


def ids(sizes: dict[int, int]) -> list[str]:
    return [ID.format(number) for number in sizes]


def partitions(engine: Engine, statement: Any) -> list[Partition]:
    return partitions_of(read_df(engine, statement).itertuples(index=False))


def check(found: list[Partition], sizes: dict[int, int], count: int) -> None:
    assert 1 <= len(found) <= count
    assert (found[0].first_id, found[-1].end_id) == (None, None)
    assert [one.end_id for one in found[:-1]] == [other.first_id for other in found[1:]]
    for partition in found:
        held = [
            size
            for number, size in sizes.items()
            if (partition.first_id or "") <= ID.format(number) < (partition.end_id or "g")
        ]
        assert partition.rows == sum(held)
        assert partition.rows <= sum(sizes.values()) / count + max(held, default=0)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.dictionaries(st.integers(0, 2**48 - 1), st.integers(0, 20), max_size=12),
    st.integers(1, 15),
)
@example({1: 3, 2: 0}, 1)
def test_ranges_are_contiguous_and_never_more_than_a_context_above_an_equal_share(
    shared: Engine, sizes: dict[int, int], count: int
) -> None:
    fill(shared, sizes)
    check(partitions(shared, select_message_partitions(count)), {n: s for n, s in sizes.items() if s}, count)
    check(partitions(shared, select_history_partitions(count)), sizes, count)


def test_conditions_hold_for_the_rows_that_are_counted(engine: Engine) -> None:
    load_sample(engine)
    everything = partitions(engine, select_message_partitions(3))
    users = partitions(engine, select_message_partitions(3, Message.role == "user"))
    assert sum(one.rows for one in everything) == len(messages_df(engine))
    assert sum(one.rows for one in users) == len(messages_df(engine, Message.role == "user"))
    for one in users:
        assert one.rows == len(messages_df(engine, Message.role == "user", *one.holds(Message.context_id)))
    deleted = partitions(engine, select_message_partitions(3, include_deleted=True))
    assert sum(one.rows for one in deleted) == len(messages_df(engine, include_deleted=True))


def test_histories_count_what_forks_inherit(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [{"role": "user", "content": "a"}] * 10)
    for _ in range(9):
        fork_context(engine, root)
    assert [one.rows for one in partitions(engine, select_history_partitions(5))] == [20] * 5
    assert [one.rows for one in partitions(engine, select_history_partitions(5, Context.id == root))] == [10]


def test_nothing_is_one_open_partition(reader: Engine) -> None:
    for select in (select_message_partitions, select_history_partitions):
        assert partitions(reader, select(4)) == [Partition(None, None, 0)]
