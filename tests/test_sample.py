import hashlib
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, delete, func, select, update

from contextkit.models import Context, Message
from contextkit.sample import load_sample, sample_contexts, sample_rows

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> tuple[list[Row], list[Row]]:
    return sample_rows()


@pytest.fixture(scope="module")
def contexts(rows: tuple[list[Row], list[Row]]) -> dict[str, Row]:
    return {row["id"]: row for row in rows[0]}


@pytest.fixture(scope="module")
def messages(rows: tuple[list[Row], list[Row]]) -> list[Row]:
    return rows[1]


@pytest.fixture(scope="module")
def stored(contexts: dict[str, Row], messages: list[Row]) -> dict[str, dict[int, Row]]:
    by_version: dict[str, dict[int, Row]] = {context_id: {} for context_id in contexts}
    for row in messages:
        by_version[row["context_id"]][row["version"]] = row
    return by_version


def counted(connection: Connection, column: Any) -> int:
    return connection.scalar(select(func.count(column))) or 0


def test_second_load_adds_nothing(engine: Engine, contexts: dict[str, Row], messages: list[Row]) -> None:
    assert load_sample(engine) == len(contexts)
    assert load_sample(engine) == 0
    with engine.connect() as connection:
        assert counted(connection, Context.id) == len(contexts)
        assert counted(connection, Message.id) == len(messages)


def test_what_is_there_already_stays_as_it_is(engine: Engine) -> None:
    load_sample(engine)
    with engine.begin() as connection:
        connection.execute(update(Context).values(name="mine"))
        connection.execute(delete(Message).where(Message.role == "system"))
    assert load_sample(engine) == 0
    with engine.connect() as connection:
        assert set(connection.scalars(select(Context.name))) == {"mine"}
        assert "system" not in set(connection.scalars(select(Message.role)))


def test_a_context_that_is_missing_comes_back_with_its_messages(engine: Engine) -> None:
    load_sample(engine)
    leaf = next(sample for sample in sample_contexts() if sample.key == "docker/oom-leak-restart")
    with engine.begin() as connection:
        connection.execute(delete(Message).where(Message.context_id == leaf.id))
        connection.execute(delete(Context).where(Context.id == leaf.id))
    assert load_sample(engine) == 1
    with engine.connect() as connection:
        assert set(connection.scalars(select(Message.version).where(Message.context_id == leaf.id))) == {
            11,
            12,
        }


def test_stored_rows_are_those_of_the_texts(engine: Engine, messages: list[Row]) -> None:
    load_sample(engine)
    columns = [column for column in Message.__table__.columns if column.name != "embedding"]
    with engine.connect() as connection:
        found = {row["id"]: dict(row) for row in connection.execute(select(*columns)).mappings()}
        vectors = {row.id: row.embedding for row in connection.execute(select(Message.id, Message.embedding))}
    for row in messages:
        assert found[row["id"]] == {name: row[name] for name in found[row["id"]]}
        if row["embedding"] is None:
            assert vectors[row["id"]] is None
        else:
            np.testing.assert_array_equal(np.asarray(vectors[row["id"]], np.float32), row["embedding"])


def test_there_is_at_least_as_much_as_promised(contexts: dict[str, Row], messages: list[Row]) -> None:
    forks = [row for row in contexts.values() if row["parent_id"]]
    depths = [len(lineage(context_id, contexts)) - 1 for context_id in contexts]
    deleted = {row["id"] for row in contexts.values() if row["deleted_at"]}
    topics = {sample.topic for sample in sample_contexts()}
    assert len(contexts) >= 40
    assert len(messages) >= 350
    assert len(forks) >= 15
    assert max(depths) == 4
    assert len(topics) >= 10
    assert {row["model"] for row in messages} == {None, "atlas-large", "atlas-mini", "birch-7b", "cedar-code"}
    assert len(deleted) == 2
    assert any(row["parent_id"] in deleted and not row["deleted_at"] for row in forks)
    assert sum(row["deleted_at"] is not None for row in messages) >= 3
    assert sum(row["token_count"] is None for row in messages) >= 2
    assert sum(row["name"] is None for row in contexts.values()) == 2


def test_names_begin_with_the_topic() -> None:
    for sample in sample_contexts():
        assert sample.header.get("name", f"{sample.topic}:").startswith(f"{sample.topic}:")
        assert sample.key.startswith(f"{sample.topic}/")


def test_every_fork_classifies_as_it_was_written(contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> None:
    forks = [sample for sample in sample_contexts() if sample.parent]
    for sample in forks:
        assert written_by(sample.id, contexts, stored) == sample.written_by, sample.key
    assert min(Counter(sample.written_by for sample in forks).values()) >= 4
    assert {sample.written_by for sample in forks} == {"reference", "copy", "renumbered"}


def test_renumbered_forks_are_told_by_either_half_of_the_rule(
    contexts: dict[str, Row], stored: dict[str, dict[int, Row]]
) -> None:
    renumbered = [sample.id for sample in sample_contexts() if sample.written_by == "renumbered"]
    assert {contexts[fork]["fork_version"] in stored[fork] for fork in renumbered} == {True, False}


def test_some_copies_are_edited_and_some_are_not(contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> None:
    edited = {
        any(
            told(row) != told(inherited_row(sample.id, version, contexts, stored))
            for version, row in stored[sample.id].items()
            if version <= sample.fork_version
        )
        for sample in sample_contexts()
        if sample.written_by == "copy" and sample.fork_version is not None
    }
    assert edited == {True, False}


def test_counters_equal_the_rows(contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> None:
    for context_id, context in contexts.items():
        own = stored[context_id].values()
        live = [row for row in own if row["deleted_at"] is None]
        assert context["message_count"] == len(live)
        assert context["total_tokens"] == sum(row["token_count"] or 0 for row in live)
        reference = written_by(context_id, contexts, stored) == "reference"
        assert context["latest_version"] == max([context["fork_version"] if reference else 0, *stored[context_id]])
        times = [context["created_at"], *(row["created_at"] for row in own)]
        ends = [context["deleted_at"], *(row["deleted_at"] for row in own)]
        assert context["updated_at"] == max([*times, *(time for time in ends if time)])


def test_times_run_forward(contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> None:
    for context_id, context in contexts.items():
        own = [stored[context_id][version] for version in sorted(stored[context_id])]
        times = [context["created_at"], *(row["created_at"] for row in own)]
        assert all(earlier < later for earlier, later in pairwise(times))
        assert all(row["deleted_at"] > row["created_at"] for row in own if row["deleted_at"])
        assert context["deleted_at"] is None or context["deleted_at"] > times[-1]
        inherited = history(context["parent_id"], context["fork_version"], contexts, stored)
        assert all(row["created_at"] < times[0] for row in inherited)
        assert {time.isoformat()[:5] for time in times} == {"2026-"}


def test_versions_have_gaps(stored: dict[str, dict[int, Row]]) -> None:
    gaps = [rows for rows in stored.values() if max(rows) - min(rows) >= len(rows)]
    assert len(gaps) >= 3


def test_no_history_is_empty(contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> None:
    assert all(live_history(context_id, contexts, stored) for context_id in contexts)


def test_every_result_has_its_call_and_one_call_has_no_result(
    contexts: dict[str, Row], stored: dict[str, dict[int, Row]]
) -> None:
    unanswered = 0
    for context_id in contexts:
        calls: dict[str, str] = {}
        for row in live_history(context_id, contexts, stored):
            if row["role"] == "assistant" and row["tool_call_id"]:
                assert row["tool_call_id"] not in calls
                calls[row["tool_call_id"]] = row["tool_name"]
            elif row["role"] == "tool":
                assert calls.pop(row["tool_call_id"]) == row["tool_name"]
            else:
                assert row["tool_call_id"] is row["tool_name"] is None
        unanswered += len(calls)
    assert unanswered == 1


def test_models_belong_to_assistant_messages(messages: list[Row]) -> None:
    assert all((row["model"] is not None) == (row["role"] == "assistant") for row in messages)
    assert {row["role"] for row in messages} == {"user", "assistant", "system", "tool"}


def test_near_messages_have_the_same_topic(messages: list[Row]) -> None:
    topics = {sample.id: sample.topic for sample in sample_contexts()}
    once = {row["content"]: row for row in messages if row["embedding"] is not None}.values()
    vectors = np.stack([row["embedding"] for row in once])
    named = np.array([topics[row["context_id"]] for row in once])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors.shape[1] == 1536
    assert vectors.dtype == np.float32
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    assert (named[likeness.argmax(axis=1)] == named).mean() > 0.95


def test_near_messages_say_the_same_in_other_words(messages: list[Row]) -> None:
    once = list({row["content"]: row for row in messages if row["embedding"] is not None}.values())
    vectors = np.stack([row["embedding"] for row in once])
    jonas = next(i for i, row in enumerate(once) if "customer number 88213" in row["content"].lower())
    nearest = np.argsort(-(vectors @ vectors[jonas]))[1:4]
    assert any("Customer number 90355" in once[i]["content"] for i in nearest)


def test_some_embeddings_are_missing(messages: list[Row]) -> None:
    missing = Counter(row["tool_name"] is not None for row in messages if row["embedding"] is None)
    assert missing[True] >= 10
    assert missing[False] >= 4


def test_texts_show_what_texts_can_be(messages: list[Row]) -> None:
    texts = [row["content"] for row in messages]
    for pattern in (
        "[\U0001f300-\U0001faff]",
        "[א-ת]{3}",
        "[ء-ي]{3}",
        "^```python",
        r"^\|---",
        "^- ",
        "<script>",
    ):
        assert any(re.search(pattern, text, re.MULTILINE) for text in texts), pattern
    assert 7_500 < max(map(len, texts)) < 9_000
    assert min(map(len, texts)) <= 2
    assert all(text == text.strip() != "" for text in texts)


def test_two_processes_give_equal_rows(rows: tuple[list[Row], list[Row]]) -> None:
    code = "from tests.test_sample import digest, sample_rows; print(digest(sample_rows()))"
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert other.stdout.strip() == digest(rows)


def digest(rows: tuple[list[Row], list[Row]]) -> str:
    found = hashlib.sha256()
    for row in rows[0] + rows[1]:
        plain = {name: value for name, value in row.items() if name != "embedding"}
        found.update(repr(plain).encode())
        if row.get("embedding") is not None:
            found.update(row["embedding"].tobytes())
    return found.hexdigest()


def lineage(context_id: str | None, contexts: dict[str, Row]) -> list[str]:
    found = []
    while context_id:
        found.append(context_id)
        context_id = contexts[context_id]["parent_id"]
    return found


def told(row: Row | None) -> tuple[str, str] | None:
    return (row["role"], row["content"]) if row else None


def inherited_row(
    context_id: str, version: int, contexts: dict[str, Row], stored: dict[str, dict[int, Row]]
) -> Row | None:
    context = contexts[context_id]
    while context["parent_id"] and version <= context["fork_version"]:
        if version in stored[context["parent_id"]]:
            return stored[context["parent_id"]][version]
        context = contexts[context["parent_id"]]
    return None


def written_by(context_id: str, contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> str:
    fork_version = contexts[context_id]["fork_version"]
    own = stored[context_id]
    if not contexts[context_id]["parent_id"]:
        return "root"
    if not any(version <= fork_version for version in own):
        return "reference"
    if 1 not in own:
        return "copy"
    first = inherited_row(context_id, 1, contexts, stored)
    last = inherited_row(context_id, fork_version, contexts, stored)
    if fork_version not in own:
        return "renumbered" if last else "copy"
    differ = first and told(own[1]) != told(first) and told(own[fork_version]) != told(last)
    return "renumbered" if differ else "copy"


def history(
    context_id: str | None, bound: float, contexts: dict[str, Row], stored: dict[str, dict[int, Row]]
) -> list[Row]:
    """Read H(c, n) of the design, deleted rows included."""
    stretches = stretches_of(context_id, bound, contexts, stored) if context_id else []
    return [stretch[version] for stretch in stretches for version in sorted(stretch)]


def stretches_of(
    context_id: str, bound: float, contexts: dict[str, Row], stored: dict[str, dict[int, Row]]
) -> list[dict[int, Row]]:
    own = {version: row for version, row in stored[context_id].items() if version <= bound}
    parent_id, fork_version = contexts[context_id]["parent_id"], contexts[context_id]["fork_version"]
    if parent_id is None:
        return [own]
    if written_by(context_id, contexts, stored) == "renumbered":
        return [*stretches_of(parent_id, fork_version, contexts, stored), own]
    *before, last = stretches_of(parent_id, min(fork_version, bound), contexts, stored)
    return [*before, last | own]


def live_history(context_id: str, contexts: dict[str, Row], stored: dict[str, dict[int, Row]]) -> list[Row]:
    return [row for row in history(context_id, np.inf, contexts, stored) if row["deleted_at"] is None]
