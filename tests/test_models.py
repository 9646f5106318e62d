"""Ids and roles: what conditions take, and what comes back."""

import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import aliased

from contextkit import Context, Message, add_context, append_messages, arrow, contexts_df, fork_context, messages_df
from contextkit.models import canonical_id, canonical_ids

ID = "0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa"
OTHER = "ffffffff-1d4e-4c0f-8a55-b4e1d6f8c1aa"
MANY = 70_000
"""More than the 65,535 parameters that PostgreSQL takes."""


@pytest.fixture(params=["pool", "bulk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read with parameters over the pool, or with literals in bulk."""
    monkeypatch.setattr(arrow, "BULK_ROWS", 0 if request.param == "bulk" else 10**9)


@pytest.fixture(params=["text", "enum"])
def role_kind(request: pytest.FixtureRequest, engine: Engine) -> str:
    if request.param == "enum":
        with engine.begin() as connection:
            connection.execute(text("create type role as enum ('user', 'assistant', 'system')"))
            connection.execute(text("alter table messages alter role type role using role::role"))
    return str(request.param)


@pytest.mark.parametrize("given", [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", uuid.UUID(ID), np.str_(ID)])
def test_an_id_is_written_as_postgresql_writes_it(given: object) -> None:
    assert canonical_id(given) == ID


@pytest.mark.parametrize("given", ["", "first", ID[:-1], ID + "0", "\ud800", "\0", "é" * 32])
def test_text_that_is_no_uuid_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="a UUID is expected"):
        canonical_id(given)


@pytest.mark.parametrize("given", [None, 1, np.nan, pd.NA, b"0" * 16, [ID], uuid.UUID(ID).int])
def test_what_is_no_text_is_no_id(given: object) -> None:
    with pytest.raises(TypeError, match="an id is text or a UUID, not"):
        canonical_id(given)


@pytest.mark.parametrize(
    "collect", [list, tuple, iter, pd.Series, pd.Index, np.array, lambda ids: dict.fromkeys(ids).keys()]
)
def test_ids_come_in_order_and_each_once(collect: Callable[[list[str]], Iterable[str]]) -> None:
    given = collect([OTHER, ID, OTHER])
    assert canonical_ids(given) == [OTHER, ID]


def test_one_id_is_a_list_of_one() -> None:
    assert canonical_ids(uuid.UUID(ID)) == canonical_ids(ID) == [ID]
    assert canonical_ids([]) == canonical_ids(pd.Series([], dtype=str)) == []


@pytest.mark.parametrize(
    "given", [None, 1, np.nan, b"ab", {ID: 1}, pd.DataFrame({"context_id": [ID]}), [ID, None], pd.Series([ID, None])]
)
def test_what_is_no_column_of_ids_is_refused(given: object) -> None:
    with pytest.raises(TypeError, match=r"is expected|leave out rows without one"):
        canonical_ids(given)


@pytest.mark.usefixtures("way")
def test_conditions_take_ids_of_every_form(engine: Engine) -> None:
    id_ = add_context(engine)
    child = fork_context(engine, id_)
    for given in (id_, id_.upper(), uuid.UUID(id_)):
        assert contexts_df(engine, Context.id == given)["context_id"].tolist() == [id_]
        assert contexts_df(engine, Context.id != given)["context_id"].tolist() == [child]
        assert contexts_df(engine, Context.id.in_([given]))["context_id"].tolist() == [id_]
        assert contexts_df(engine, Context.parent_id.in_([given]))["context_id"].tolist() == [child]
    assert contexts_df(engine, Context.parent_id.is_(None))["context_id"].tolist() == [id_]


@pytest.mark.parametrize("condition", [lambda: Context.id == "first", lambda: Context.id.in_(["first"])])
def test_a_condition_with_what_is_no_id_is_refused(reader: Engine, condition: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="not an id"):
        contexts_df(reader, condition())


@pytest.mark.usefixtures("way")
def test_in_takes_columns_and_selects_and_nothing_at_all(engine: Engine) -> None:
    ids = [add_context(engine) for _ in range(4)]
    frame = contexts_df(engine)
    for given in (frame["context_id"][1:3], frame["context_id"][1:3].to_numpy(), iter(ids[1:3]), set(ids[1:3])):
        assert contexts_df(engine, Context.id.in_(given))["context_id"].tolist() == ids[1:3]
    assert contexts_df(engine, Context.id.not_in(frame["context_id"][1:3]))["context_id"].tolist() == [ids[0], ids[3]]
    assert contexts_df(engine, ~Context.id.in_(ids[:1]))["context_id"].tolist() == ids[1:]
    assert len(contexts_df(engine, Context.id.in_([]))) == 0
    assert len(contexts_df(engine, Context.id.not_in([]))) == 4
    other = aliased(Context)
    inner = select(other.id).where(other.id.in_(ids[:2]))
    assert contexts_df(engine, Context.id.in_(inner))["context_id"].tolist() == ids[:2]
    assert contexts_df(engine, Context.id.not_in(inner))["context_id"].tolist() == ids[2:]


@pytest.mark.usefixtures("way")
def test_in_takes_more_ids_than_postgresql_takes_parameters(engine: Engine) -> None:
    ids = [add_context(engine) for _ in range(3)]
    strangers = [str(uuid.UUID(int=number)) for number in range(MANY)]
    assert contexts_df(engine, Context.id.in_([*strangers, *ids[:2]]))["context_id"].tolist() == ids[:2]
    assert contexts_df(engine, Context.id.not_in([*strangers, *ids[:2]]))["context_id"].tolist() == ids[2:]


@pytest.mark.usefixtures("way", "role_kind")
def test_conditions_on_the_role_work_on_text_and_on_an_enum(engine: Engine) -> None:
    context = add_context(engine)
    append_messages(engine, context, [{"role": role, "content": "x"} for role in ("system", "user", "assistant")])
    assert messages_df(engine, Message.role == "user")["role"].tolist() == ["user"]
    assert messages_df(engine, Message.role != "user")["role"].tolist() == ["system", "assistant"]
    assert messages_df(engine, Message.role.in_(["user", "system"]))["role"].tolist() == ["system", "user"]
    assert messages_df(engine, Message.role.not_in(["user"]))["role"].tolist() == ["system", "assistant"]
    assert len(messages_df(engine, Message.role.in_([]))) == 0
    assert messages_df(engine)["role"].dtype == "str"


@pytest.mark.usefixtures("way")
def test_a_condition_with_a_role_that_the_column_lacks(engine: Engine, role_kind: str) -> None:
    if role_kind == "text":
        assert len(messages_df(engine, Message.role == "o'brien")) == 0
    else:
        with pytest.raises(ValueError, match="22P02"):
            messages_df(engine, Message.role == "o'brien")
