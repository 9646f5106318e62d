"""Embeddings filled in: whole batches or nothing, each row once, and three embedders."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from traceback import TracebackException
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine, text

from contextkit import (
    Context,
    ContextkitError,
    ContextkitWarning,
    DimensionError,
    Message,
    MissingExtraError,
    ReadOnlyError,
    add_context,
    append_messages,
    connect,
    contexts_df,
    delete_context,
    delete_messages,
    embedders,
    embedding_matrix,
    messages_df,
)
from contextkit import embed as embed_module
from contextkit.embed import Embedder, embed_missing
from contextkit.embedders import _padded, hashing_embedder, openai_embedder, sentence_embedder
from tests.api_server import Api, api_server, vector_of

KEY = "sk-a-secret-key-of-the-tests"
KILLS = int(os.environ.get("CONTEXTKIT_KILLS", "4"))


class Recorder:
    """An embedder that knows what it was asked, and may do something before it answers."""

    def __init__(self, before: Callable[[int], object] = lambda call: None) -> None:
        self.calls: list[list[str]] = []
        self.before = before

    def __call__(self, texts: list[str], /) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.calls.append(texts)
        self.before(len(self.calls))
        return np.array([vector_of(text) for text in texts], np.float32)

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]


def filled(engine: Engine, contents: list[str]) -> str:
    context = add_context(engine)
    append_messages(engine, context, [{"role": "user", "content": content} for content in contents])
    return context


def numbered(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def embedded(engine: Engine) -> pd.DataFrame:
    return messages_df(engine, Message.embedding.is_not(None), embeddings=True, include_deleted=True)


def matches(frame: pd.DataFrame) -> bool:
    wanted = np.array([vector_of(content) for content in frame["content"]], np.float32)
    return bool(np.array_equal(embedding_matrix(frame), wanted))


# What is written


def test_every_message_gets_the_vector_of_its_content_and_the_frame_says_which(engine: Engine) -> None:
    contexts = [filled(engine, numbered(5)) for _ in range(2)]
    done = embed_missing(engine, Recorder(), batch_size=3)
    stored = embedded(engine)
    assert matches(stored)
    pd.testing.assert_frame_equal(done, stored[["message_id", "context_id", "version"]])
    assert set(done["context_id"]) == set(contexts)
    assert done.attrs["embedded"] == 10
    assert done.attrs["batches"] == 4
    assert done.attrs["contents"] == 5
    assert done.attrs["left"] == 0


def test_an_empty_result_has_the_same_columns_and_dtypes(engine: Engine) -> None:
    empty = embed_missing(engine, Recorder())
    filled(engine, ["a"])
    full = embed_missing(engine, Recorder())
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert empty.attrs.keys() == full.attrs.keys()


def test_a_second_run_finds_nothing_to_do(engine: Engine) -> None:
    filled(engine, numbered(3))
    embed_missing(engine, Recorder())
    recorder = Recorder()
    assert len(embed_missing(engine, recorder)) == 0
    assert recorder.calls == []


def test_present_embeddings_stay(engine: Engine) -> None:
    context = add_context(engine)
    own = np.ones(1536, np.float32)
    append_messages(engine, context, [{"role": "user", "content": "a", "embedding": own}])
    filled(engine, ["a"])
    recorder = Recorder()
    embed_missing(engine, recorder)
    assert recorder.texts == ["a"]
    kept = messages_df(engine, Message.context_id == context, embeddings=True)
    assert np.array_equal(embedding_matrix(kept)[0], own)


def test_conditions_choose_messages_and_contexts(engine: Engine) -> None:
    wanted, other = filled(engine, numbered(4)), filled(engine, numbered(4))
    done = embed_missing(engine, Recorder(), Context.id == wanted, Message.version > 2)
    assert done["version"].tolist() == [3, 4]
    assert set(embedded(engine)["context_id"]) == {wanted}
    assert other not in set(done["context_id"])


def test_deleted_messages_and_those_of_deleted_contexts_are_left_alone(engine: Engine) -> None:
    context, gone = filled(engine, numbered(2)), filled(engine, numbered(2))
    delete_messages(engine, messages_df(engine, Message.context_id == context)["message_id"].iloc[0])
    delete_context(engine, gone)
    assert embed_missing(engine, Recorder())["version"].tolist() == [2]
    assert len(embedded(engine)) == 1


def test_contexts_written_to_get_a_new_time_and_others_keep_theirs(engine: Engine) -> None:
    context, bystander = filled(engine, ["a"]), add_context(engine)
    before = contexts_df(engine).set_index("context_id")["updated_at"]
    embed_missing(engine, Recorder())
    after = contexts_df(engine).set_index("context_id")["updated_at"]
    assert after[context] > before[context]
    assert after[bystander] == before[bystander]


def test_blank_contents_are_never_sent_and_are_counted(engine: Engine) -> None:
    filled(engine, ["", " \n\t", "a", "\u2003"])
    recorder = Recorder()
    done = embed_missing(engine, recorder, batch_size=1)
    assert recorder.texts == ["a"]
    assert {name: done.attrs[name] for name in ("embedded", "blank", "left")} == {
        "embedded": 1,
        "blank": 3,
        "left": 3,
    }


def test_all_zero_vectors_are_not_stored_and_are_counted(engine: Engine) -> None:
    filled(engine, ["a", "b"])

    def half_zero(texts: list[str], /) -> Any:
        return np.array([[float(text == "b")] * 1536 for text in texts])

    done = embed_missing(engine, half_zero)
    assert embedded(engine)["content"].tolist() == ["b"]
    assert done.attrs["zero"] == 1
    assert done.attrs["left"] == 1


def test_identical_contents_are_embedded_once_over_the_whole_run(engine: Engine) -> None:
    for _ in range(3):
        filled(engine, ["same", "other", "same"])
    recorder = Recorder()
    embed_missing(engine, recorder, batch_size=2)
    assert sorted(recorder.texts) == ["other", "same"]
    assert matches(embedded(engine))
    assert len(embedded(engine)) == 9


def test_the_remembered_contents_are_bounded_and_the_latest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "REMEMBERED", 2)
    filled(engine, list("abacada"))
    recorder = Recorder()
    embed_missing(engine, recorder, batch_size=1)
    assert recorder.texts == list("abcd")


def test_batches_bound_what_the_embedder_is_asked_at_once(engine: Engine) -> None:
    filled(engine, numbered(7))
    recorder = Recorder()
    embed_missing(engine, recorder, batch_size=3)
    assert [len(call) for call in recorder.calls] == [3, 3, 1]


@pytest.mark.parametrize("wrap", [np.ndarray.tolist, pd.DataFrame, lambda rows: rows.astype(np.float64)])
def test_any_array_like_will_do(engine: Engine, wrap: Callable[[Any], Any]) -> None:
    filled(engine, numbered(2))
    embed_missing(engine, lambda texts: wrap(np.array([vector_of(text) for text in texts], np.float32)))
    assert matches(embedded(engine))


# What is refused


def with_value(value: float) -> Embedder:
    def embedder(texts: list[str], /) -> Any:
        made = np.ones((len(texts), 1536))
        made[-1, 5] = value
        return made

    return embedder


@pytest.mark.parametrize(
    ("embedder", "kind", "said"),
    [
        (lambda texts: np.ones((2, 384)), DimensionError, ["(2, 384)", "(2, 1536)"]),
        (lambda texts: np.ones((1, 1536)), ValueError, ["(1, 1536)", "(2, 1536)"]),
        (lambda texts: np.ones(1536), ValueError, ["(1536,)", "(2, 1536)"]),
        (lambda texts: [[1.0], [1.0, 2.0]], DimensionError, ["(2, 1536)"]),
        (lambda texts: None, TypeError, ["(2, 1536)"]),
        (lambda texts: texts, TypeError, ["(2,)", "(2, 1536)"]),
        (with_value(np.nan), ValueError, ["NaN", "1 rows", "(2, 1536)"]),
        (with_value(np.inf), ValueError, ["infinity", "(2, 1536)"]),
        (with_value(1e300), ValueError, ["too large", "(2, 1536)"]),
        (with_value(1e30), ValueError, ["too large", "(2, 1536)"]),
    ],
)
def test_what_is_no_vector_per_text_is_refused_with_both_shapes(
    engine: Engine, embedder: Any, kind: type[Exception], said: list[str]
) -> None:
    filled(engine, numbered(2))
    with pytest.raises(kind) as caught:
        embed_missing(engine, embedder)
    assert type(caught.value) is kind
    assert all(part in str(caught.value) for part in said)
    assert len(embedded(engine)) == 0


def test_a_refused_batch_leaves_those_before(engine: Engine) -> None:
    filled(engine, numbered(4))
    good = Recorder()
    with pytest.raises(DimensionError):
        embed_missing(engine, lambda texts: good(texts) if not good.calls else [[0.5]] * 2, batch_size=2)
    assert embedded(engine)["version"].tolist() == [1, 2]


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "3"])
def test_batch_size_is_a_positive_whole_number(engine: Engine, size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        embed_missing(engine, Recorder(), batch_size=size)


def test_an_embedder_is_callable_and_conditions_are_conditions(engine: Engine) -> None:
    with pytest.raises(TypeError, match="embedder"):
        embed_missing(engine, "text-embedding-3-small")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="condition"):
        embed_missing(engine, Recorder(), False)  # type: ignore[arg-type]


def test_an_engine_for_reading_is_refused_before_anything_is_embedded(engine: Engine, reader: Engine) -> None:
    filled(engine, ["a"])
    recorder = Recorder()
    with pytest.raises(ReadOnlyError, match="write=True"):
        embed_missing(reader, recorder)
    assert recorder.calls == []


# Stopped


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, ConnectionError, LookupError])
def test_stopped_in_the_embedder_what_was_done_stays_and_the_next_run_does_the_rest(
    engine: Engine, stop: type[BaseException]
) -> None:
    filled(engine, numbered(6))

    def fail(call: int) -> None:
        if call == 3:
            raise stop("of the embedder")

    with pytest.raises(stop, match="of the embedder") as caught:
        embed_missing(engine, Recorder(fail), batch_size=2)
    assert type(caught.value) is stop
    assert embedded(engine)["version"].tolist() == [1, 2, 3, 4]
    with engine.connect() as connection:
        others = "select count(*) from pg_locks where pid <> pg_backend_pid() and relation = 'messages'::regclass"
        assert connection.execute(text(others)).scalar() == 0
    assert embed_missing(engine, Recorder(), batch_size=2)["version"].tolist() == [5, 6]
    assert matches(embedded(engine))


CHILD = """
import sys
from contextkit import connect
from contextkit.embed import embed_missing
from tests.api_server import vector_of

def embedder(texts):
    print(len(texts), flush=True)
    if BLOCK:
        sys.stdin.read()
    return [vector_of(text) for text in texts]

embed_missing(connect(URL, write=True), embedder, batch_size=SIZE)
"""


def child(url: str, *, size: int, block: bool = False) -> "subprocess.Popen[str]":
    program = CHILD.replace("BLOCK", str(block)).replace("URL", repr(url)).replace("SIZE", str(size))
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )


def killed(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until_alone(engine: Engine) -> None:
    """Wait until the server has noticed that the killed clients are gone."""
    others = """
        select count(*), pg_sleep(0.02) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
    """
    with engine.connect() as connection:
        while connection.execute(text(others)).scalar():
            connection.rollback()


def test_killed_at_any_moment_whole_batches_are_there_and_the_end_is_that_of_an_undisturbed_run(
    engine: Engine, database_url: str
) -> None:
    size, chance = 5, random.Random(7)
    count = 60 * KILLS
    filled(engine, numbered(count))
    for _ in range(KILLS):
        with child(database_url, size=size) as process:
            assert process.stdout is not None
            for _ in range(chance.randint(1, 6)):
                process.stdout.readline()
            killed(process)
        wait_until_alone(engine)
        done = embedded(engine)
        assert len(done) % size == 0
        assert done["version"].tolist() == list(range(1, len(done) + 1))
    assert 0 < len(embedded(engine)) < count
    embed_missing(engine, Recorder(), batch_size=size)
    assert len(embedded(engine)) == count
    assert matches(embedded(engine))


# Several at once


def test_another_process_passes_over_what_one_holds_and_no_row_is_embedded_twice(
    engine: Engine, database_url: str
) -> None:
    filled(engine, numbered(12))
    with child(database_url, size=4, block=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        recorder = Recorder()
        done = embed_missing(engine, recorder, batch_size=3)
        assert done["version"].tolist() == list(range(5, 13))
        assert done.attrs["left"] == 4
        output, _ = process.communicate("")
        assert output == ""
        assert process.returncode == 0
    assert recorder.texts == numbered(12)[4:]
    assert matches(embedded(engine))
    assert len(embedded(engine)) == 12


def test_runs_at_once_share_the_work(engine: Engine, database_url: str) -> None:
    for place in range(5):
        filled(engine, [f"text {place} {number}" for number in range(40)])
    start = threading.Barrier(3)

    def run(_: int) -> tuple[pd.DataFrame, list[str]]:
        own = connect(database_url, write=True)
        recorder = Recorder(lambda call: start.wait(30) if call == 1 else None)
        try:
            return embed_missing(own, recorder, batch_size=7), recorder.texts
        finally:
            own.dispose()

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    ids = pd.concat([frame for frame, _ in results])["message_id"]
    texts = [content for _, asked in results for content in asked]
    assert ids.is_unique
    assert len(texts) == len(set(texts)) == len(ids)
    assert len(embedded(engine)) == len(ids) == 200
    assert matches(embedded(engine))


def wait_for_a_waiter(connection: Any) -> None:
    waiting = text("select count(*) filter (where wait_event_type = 'Lock'), pg_sleep(0.01) from pg_stat_activity")
    for _ in range(1000):
        count = connection.execute(waiting).scalar()
        connection.rollback()
        if count:
            return
    pytest.fail("nobody waits for a lock")


def test_who_deletes_a_held_message_waits_and_no_deadlock_forms(engine: Engine, database_url: str) -> None:
    context = filled(engine, numbered(2))
    ids = messages_df(engine)["message_id"]
    other = connect(database_url, write=True)
    with ThreadPoolExecutor(1) as pool:
        deletions = []

        def delete_meanwhile(_: int) -> None:
            deletions.append(pool.submit(delete_messages, other, ids))
            with other.connect() as connection:
                wait_for_a_waiter(connection)

        done = embed_missing(engine, Recorder(delete_meanwhile))
        assert deletions[0].result(timeout=30) == 2
    other.dispose()
    assert len(done) == 2
    assert matches(embedded(engine))
    row = contexts_df(engine, Context.id == context).iloc[0]
    assert row["message_count"] == 0


def test_appending_to_a_context_does_not_wait_for_the_embedder(engine: Engine, database_url: str) -> None:
    context = filled(engine, ["a"])
    other = connect(database_url, write=True, statement_timeout=5)

    def append_once(call: int) -> None:
        if call == 1:
            append_messages(other, context, [{"role": "user", "content": "b"}])

    recorder = Recorder(append_once)
    done = embed_missing(engine, recorder)
    other.dispose()
    assert recorder.calls == [["a"], ["b"]]
    assert done["version"].tolist() == [1, 2]


def test_a_context_that_another_holds_gets_its_time_after_that(engine: Engine, database_url: str) -> None:
    context = filled(engine, ["a"])
    before = contexts_df(engine)["updated_at"].iloc[0]
    other = connect(database_url, write=True)
    with other.connect() as holder, other.connect() as watcher, ThreadPoolExecutor(1) as pool:
        holder.execute(text("select 1 from contexts for update"))
        run = pool.submit(embed_missing, engine, Recorder())
        wait_for_a_waiter(watcher)
        assert watcher.execute(text("select count(*) from messages where embedding is null")).scalar() == 0
        holder.rollback()
        assert len(run.result(timeout=30)) == 1
    other.dispose()
    assert contexts_df(engine, Context.id == context)["updated_at"].iloc[0] > before


# Progress


def test_a_short_run_shows_nothing_and_a_long_one_a_bar_unless_unwanted(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(engine, numbered(2))
    embed_missing(engine, Recorder(), Message.version == 1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(embed_module, "QUIET_SECONDS", 0)
    embed_missing(engine, Recorder(), progress=False)
    assert capsys.readouterr() == ("", "")
    filled(engine, numbered(2))
    embed_missing(engine, Recorder())
    assert "2/2" in capsys.readouterr().err


# Hashing


def test_hashing_is_deterministic_of_unit_length_and_lexical() -> None:
    embedder = hashing_embedder()
    texts = ["reset my password please", "please reset the password", "forgot the login", "?!", "I"]
    vectors = np.asarray(embedder(texts))
    assert vectors.shape == (5, 1536)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.array_equal(vectors, np.asarray(hashing_embedder()(texts)))
    assert vectors[0] @ vectors[1] > 0.3 > vectors[0] @ vectors[2]


def test_hashing_fills_a_database(engine: Engine) -> None:
    filled(engine, ["how do I sort a list", "?!", "...", "bake bread", ""])
    done = embed_missing(engine, hashing_embedder())
    assert done["version"].tolist() == [1, 2, 3, 4]


# OpenAI's API


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with api_server() as api:
        yield api


def rows(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([vector_of(text) for text in texts])


@pytest.mark.parametrize(
    "answers", [[], ["floats"], ["reversed"], ["rate_limited", "rate_limited"], ["broken"], ["dropped"]]
)
def test_the_client_gets_the_vectors_in_order_whatever_passes_by(api: Api, answers: list[str]) -> None:
    api.failures = list(answers)
    given = openai_embedder(base_url=api.url)(["a", "b", "c"])
    assert np.array_equal(np.asarray(given), rows(["a", "b", "c"]))
    assert api.asked[-1]["model"] == "text-embedding-3-small"
    assert api.keys[-1] == f"Bearer {KEY}"
    assert api.failures == []


@pytest.mark.parametrize("answer", ["short", "empty", "repeated", "a page", "no json"])
def test_a_reply_without_one_vector_per_text_writes_nothing(api: Api, engine: Engine, answer: str) -> None:
    filled(engine, numbered(3))
    api.failures = [answer]
    with pytest.raises(ValueError, match=r"gave [023] vectors, not one for each of 3 texts"):
        embed_missing(engine, openai_embedder(base_url=api.url))
    assert len(embedded(engine)) == 0
    assert len(embed_missing(engine, openai_embedder(base_url=api.url))) == 3


def test_vectors_of_another_length_are_refused(api: Api, engine: Engine) -> None:
    filled(engine, numbered(3))
    api.failures = ["narrow"]
    with pytest.raises(DimensionError, match=r"\(3, 768\).*\(3, 1536\)"):
        embed_missing(engine, openai_embedder(base_url=api.url))


@pytest.mark.parametrize(("answer", "status"), [("refused", 400), ("unauthorized", 401)])
def test_a_refusal_is_told_at_once_without_key_or_content(api: Api, engine: Engine, answer: str, status: int) -> None:
    filled(engine, ["a private content"])
    api.failures = [answer]
    with pytest.raises(ContextkitError, match=str(status)) as caught:
        embed_missing(engine, openai_embedder(base_url=api.url))
    assert len(api.asked) == 1
    assert caught.value.__suppress_context__
    assert KEY not in str(caught.value)
    assert "private" not in str(caught.value)


def test_a_password_in_the_base_url_is_sent_and_shown_nowhere(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    known, url = b64encode(b"user:s/esame7").decode(), api.url.replace("//", "//user:s%2Fesame7@")
    monkeypatch.delenv("OPENAI_API_KEY")
    openai_embedder(base_url=url)(["a"])
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    embedder = openai_embedder()
    api.failures = ["unauthorized"]
    with pytest.raises(ContextkitError, match="401") as refused:
        embedder(["a"])
    assert api.keys == [f"Basic {known}"] * 2
    with pytest.raises(ValueError, match="base_url cannot be read") as unread:
        openai_embedder(base_url="http://user:esame7/@127.0.0.1")
    assert "/v1/embeddings" in caplog.text
    shown = caplog.text + shown_with_locals(refused.value) + shown_with_locals(unread.value)
    assert "esame7" not in shown
    assert known not in shown


@pytest.mark.parametrize("url", ["localhost:9/v1", "/v1", "ftp://localhost/v1", "5"])
def test_a_base_url_is_of_a_server(api: Api, url: str) -> None:
    with pytest.raises(ValueError, match="base_url cannot be read"):
        openai_embedder(base_url=url)


def shown_with_locals(error: BaseException) -> str:
    """What a traceback tells beyond the test's own frame."""
    assert error.__traceback__ is not None
    beyond = error.__traceback__.tb_next
    return "".join(TracebackException(type(error), error, beyond, capture_locals=True).format())


def test_what_does_not_pass_by_is_given_up(api: Api, engine: Engine) -> None:
    filled(engine, numbered(4))
    embedder = openai_embedder(base_url=api.url)
    embed_missing(engine, embedder, Message.version <= 2)
    api.failures = ["rate_limited"] * 100
    with pytest.raises(ContextkitError, match="429"):
        embed_missing(engine, embedder)
    assert len(api.asked) == 1 + 1 + embedders.RETRIES
    assert len(embedded(engine)) == 2


def test_a_wrong_address_is_told(api: Api) -> None:
    with pytest.raises(ContextkitError, match="404"):
        openai_embedder(base_url=f"{api.url}/elsewhere")(["a"])


def test_requests_stay_below_the_limits_of_the_api(api: Api) -> None:
    embedder = openai_embedder(base_url=api.url)
    many = numbered(5000)
    assert np.array_equal(np.asarray(embedder(many)), rows(many))
    api.asked.clear()
    api.bytes_per_token = 1  # the densest text there is
    dense = [f"{number}" * 7000 for number in range(100, 200, 2)]
    dense = [text[:8000] for text in dense]
    assert np.array_equal(np.asarray(embedder(dense)), rows(dense))
    assert sum(len(body["input"]) for body in api.asked) == len(dense)  # none was refused and sent again


def test_a_long_text_is_sent_whole_where_the_model_takes_it(api: Api, recwarn: pytest.WarningsRecorder) -> None:
    long = "words " * 5000
    assert np.array_equal(np.asarray(openai_embedder(base_url=api.url)(["a", long])), rows(["a", long]))
    assert len(api.asked) == 1
    assert not [warning for warning in recwarn if issubclass(warning.category, ContextkitWarning)]


@pytest.mark.parametrize("length", [50_000, 1_000_000])
def test_a_text_too_long_for_the_model_is_embedded_by_its_beginning_with_a_warning(api: Api, length: int) -> None:
    long = "words " * (length // 6) + "é"
    texts = ["a", "b", long, "c"]
    with pytest.warns(ContextkitWarning, match="beginning"):
        given = np.asarray(openai_embedder(base_url=api.url)(texts))
    assert np.array_equal(given[[0, 1, 3]], rows(["a", "b", "c"]))
    sent = max((body["input"] for body in api.asked if len(body["input"]) == 1), key=lambda texts: texts == [long])
    assert long.startswith(sent[0])
    (accepted,) = [body["input"][0] for body in api.asked if np.array_equal(rows(body["input"][:1])[0], given[2])]
    assert long.startswith(accepted)
    assert 8191 <= len(accepted.encode()) <= 4 * 8192


def test_the_large_model_is_asked_for_1536_numbers(api: Api) -> None:
    given = openai_embedder("text-embedding-3-large", base_url=api.url)(["a"])
    assert np.asarray(given).shape == (1, 1536)
    assert api.asked[0]["dimensions"] == 1536


def test_without_a_key_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ContextkitError, match="OPENAI_API_KEY"):
        openai_embedder()


def test_no_name_or_repr_shows_the_key(api: Api) -> None:
    assert KEY not in repr(openai_embedder(base_url=api.url))


# sentence-transformers


def test_shorter_vectors_are_padded_which_keeps_every_order() -> None:
    short = np.random.default_rng(0).normal(size=(20, 384)).astype(np.float32)
    long = _padded(short)
    assert long.shape == (20, 1536)
    assert long.dtype == np.float32
    assert np.allclose(long @ long.T, short @ short.T)
    assert np.allclose(np.linalg.norm(long[0] - long[1]), np.linalg.norm(short[0] - short[1]))


def test_longer_vectors_are_refused() -> None:
    with pytest.raises(DimensionError, match=r"3072.*1536"):
        _padded(np.ones((1, 3072)))


@pytest.mark.skipif(
    "CONTEXTKIT_SENTENCE_MODEL" not in os.environ,
    reason="needs sentence-transformers (6 GB) and CONTEXTKIT_SENTENCE_MODEL, the folder of a model",
)
def test_a_sentence_model_fills_a_database(engine: Engine) -> None:
    filled(engine, ["reset my password", "I forgot my login", "bake bread"])
    embed_missing(engine, sentence_embedder(os.environ["CONTEXTKIT_SENTENCE_MODEL"]))
    vectors = embedding_matrix(embedded(engine))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


# Extras


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("sklearn", "embed", hashing_embedder),
        ("openai", "openai", openai_embedder),
        ("sentence_transformers", "sentence-transformers", lambda: sentence_embedder("x")),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, make: Callable[[], Embedder]
) -> None:
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(MissingExtraError, match=rf"contextkit\[{extra}\]"):
        make()


def test_importing_the_module_imports_nothing_heavy() -> None:
    heavy = ["openai", "sklearn", "sentence_transformers", "scipy", "tqdm"]
    program = f"import contextkit.embedders, sys; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
