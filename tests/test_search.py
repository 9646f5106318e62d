"""Searches by words, by meaning and by both, against SQL of their own and a fusion of ten lines."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike
from sqlalchemy import Engine, event, or_, text, update
from sqlalchemy.exc import OperationalError

from contextkit import (
    Context,
    ContextkitWarning,
    DimensionError,
    Message,
    ReadOnlyError,
    SchemaError,
    add_context,
    append_messages,
    connect,
    create_text_index,
    delete_context,
    delete_messages,
    fork_context,
    forks_df,
    messages_df,
    neighbors_df,
    search_df,
)
from contextkit.queries import SEARCHED_CHARACTERS
from tests.conftest import _fresh

ENGLISH = [
    "The connection to the database was refused",
    "Databases refuse connections from unknown hosts",
    "My cat sleeps on the warm database server",
    "Unknown cats are refused at the door",
    "A hundred % of the users said: it's 'fine' \\o/ (really)",
    "How to install Docker on Linux?",
    "Docker images are large. An image of Linux is small.",
    "The large image of a cat",
    "The small image of a dog, and the dog again, and the dog",
    "sort the list of images by name",
]
GERMAN = ["Die Häuser am See sind alt", "Ein altes Haus am See", "Das Boot liegt am Steg"]
EN, DE = Context.name == "english", Context.name == "german"
RANKED = ["rank", "text_rank", "semantic_rank", "relevance", "distance"]


def letters(texts: list[str], /) -> ArrayLike:
    """An embedder: which letters a text has, how often."""
    matrix = np.zeros((len(texts), 1536), np.float32)
    for row, content in zip(matrix, texts, strict=True):
        for letter in content.lower().encode():
            row[letter] += 1
    return matrix


def write(engine: Engine, contents: list[str], name: str | None = None, *, embedded: bool = True) -> pd.DataFrame:
    vectors = np.asarray(letters(contents)) if embedded else [None] * len(contents)
    rows = [{"role": "user", "content": at, "embedding": row} for at, row in zip(contents, vectors, strict=True)]
    if not embedded:
        rows = [{"role": "user", "content": content} for content in contents]
    return append_messages(engine, add_context(engine, name), rows)


@pytest.fixture(scope="module")
def corpus(server_url: str, migrated: str) -> Iterator[Engine]:
    """A database for the tests that only read."""
    for url in _fresh(server_url, migrated):
        engine = connect(url, write=True)
        write(engine, ENGLISH, "english")
        write(engine, GERMAN, "german")
        write(engine, ["a cat without an embedding"], "unembedded", embedded=False)
        gone = write(engine, ["a deleted cat", "a live cat"], "with deleted")
        delete_messages(engine, gone["message_id"][0])
        delete_context(engine, write(engine, ["a cat in a deleted context"], "deleted")["context_id"][0])
        words = np.random.default_rng(0).choice(["red", "green", "blue", "cyan"], (150, 5))
        write(engine, [" ".join(row) for row in words], "colors")
        engine.dispose()
        reader = connect(url)
        yield reader
        reader.dispose()


def contents(found: pd.DataFrame) -> list[str]:
    return sorted(found["content"])


# By words


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("database connection", [0, 1]),
        ("CONNECTED databases", [0, 1]),
        ("refusing", [0, 1, 3]),
        ('"database connection"', []),
        ('"unknown cats"', [3]),
        ('"cats unknown"', []),
        ("docker or dog", [5, 6, 8]),
        ("image -docker", [7, 8, 9]),
        ("image -docker -cat", [8, 9]),
        ('image -"large image"', [6, 8, 9]),
        ('"large image" or "sort the list"', [7, 9]),
        ("cat unicorn", []),
        ("the cat", [2, 3, 7]),
    ],
)
def test_a_text_is_searched_as_in_a_web_search(corpus: Engine, asked: str, expected: list[int]) -> None:
    assert contents(search_df(corpus, asked, EN)) == sorted(ENGLISH[place] for place in expected)


def test_a_language_inflects_its_words_and_passes_over_its_own(corpus: Engine) -> None:
    assert contents(search_df(corpus, "das alte Haus", language="german")) == sorted(GERMAN[:2])
    assert contents(search_df(corpus, "Häuser", DE, language="german")) == sorted(GERMAN[:2])
    assert contents(search_df(corpus, "Häuser", DE)) == GERMAN[:1]
    assert contents(search_df(corpus, "Häuser", DE, language="simple")) == GERMAN[:1]
    with pytest.warns(ContextkitWarning, match="no word that a search in german looks for"):
        assert len(search_df(corpus, "das am", DE, language="german")) == 0
    assert len(search_df(corpus, "am", DE, language="simple")) == 3


@pytest.mark.parametrize(("asked", "pattern"), [("image or dog", "image|dog"), ("red or green", r"\mred|green")])
def test_relevance_and_order_are_those_of_plain_sql_with_ties_by_id(corpus: Engine, asked: str, pattern: str) -> None:
    sql = """
        select m.id::text, ts_rank_cd(to_tsvector('english', content), websearch_to_tsquery('english', :asked), 1)
        from messages m join contexts c on c.id = context_id
        where m.deleted_at is null and c.deleted_at is null and content ~* :pattern
    """
    with corpus.connect() as connection:
        rows = connection.execute(text(sql), {"asked": asked, "pattern": pattern}).all()
    expected = sorted((-relevance, id_) for id_, relevance in rows)
    found = search_df(corpus, asked, k=500)
    assert found["message_id"].tolist() == [id_ for _, id_ in expected]
    assert found["relevance"].to_numpy() == pytest.approx([-negative for negative, _ in expected])
    assert found["rank"].tolist() == found["text_rank"].tolist() == list(range(1, len(expected) + 1))
    assert found["relevance"].nunique() < len(found) or asked != "red or green"
    for k in (1, 3, 10, 25):
        pd.testing.assert_frame_equal(search_df(corpus, asked, k=k), found.head(k))


def test_words_that_stand_close_together_are_more_relevant(corpus: Engine) -> None:
    assert search_df(corpus, "large image", EN)["content"].tolist() == [ENGLISH[7], ENGLISH[6]]


@pytest.mark.parametrize(
    "asked",
    [
        "cat'; drop table messages; --",
        'cat "',
        "cat ''",
        "\\cat\\",
        "cat \\' or 1=1",
        "cat %s %(x)s %%",
        "cat :x ::text",
        "cat & | ! <-> ( )",
        "cat:* <2>",
        "cat $1 {} {0}",
        "\u202ecat\ufeff\U0001f408",
    ],
)
@pytest.mark.filterwarnings("ignore::contextkit.ContextkitWarning")
def test_no_text_breaks_a_search(corpus: Engine, asked: str) -> None:
    for mode in ("text", "semantic", "hybrid"):
        found = search_df(corpus, asked, mode=mode, embedder=letters)  # type: ignore[arg-type]
        assert mode == "text" or len(found) == 10
    assert len(messages_df(corpus)) == 165


def test_quotes_and_percents_are_only_characters(corpus: Engine) -> None:
    for asked in ("it's fine", "'fine' % :", "hundred % users", "\\o/ really"):
        assert contents(search_df(corpus, asked, EN)) == [ENGLISH[4]]


def test_conditions_hold_and_mistakes_are_refused(corpus: Engine) -> None:
    assert contents(search_df(corpus, "cat", Context.name != "english")) == ["a cat without an embedding", "a live cat"]
    assert contents(search_df(corpus, "cat", EN, Message.version > 4)) == [ENGLISH[7]]
    for embedder in (None, letters):
        with pytest.raises(TypeError, match="a condition is a SQLAlchemy expression"):
            search_df(corpus, "cat", True, embedder=embedder)  # type: ignore[arg-type]


def test_deleted_messages_and_those_of_deleted_contexts_are_out(corpus: Engine) -> None:
    for mode in ("text", "semantic", "hybrid"):
        found = search_df(corpus, "cat", Context.name.in_(["deleted", "with deleted"]), mode=mode, embedder=letters)  # type: ignore[arg-type]
        assert contents(found) == ["a live cat"]


def test_an_enum_role_is_searched_like_text(engine: Engine) -> None:
    write(engine, ENGLISH)
    with engine.begin() as connection:
        connection.execute(text("create type role as enum ('user', 'assistant')"))
        connection.execute(text("alter table messages alter role type role using role::role"))
    found = search_df(engine, "cat", Message.role == "user", embedder=letters)
    assert found["role"].tolist() == ["user"] * 10


# Long contents


def many_words(characters: int) -> str:
    return "".join(f"{number:06x} " for number in range(16**5 * 8, 16**5 * 8 + characters // 7 + 1))[:characters]


def test_a_content_with_too_many_words_is_searched_in_its_beginning_and_counted(engine: Engine) -> None:
    long = many_words(800_000)
    write(engine, ["needle " + long, long + " needle", "short needle"], "first")
    write(engine, [long, "needle"], "second")
    gone = write(engine, [long])
    delete_messages(engine, gone["message_id"])
    with engine.connect() as connection, pytest.raises(OperationalError, match="too long for tsvector"):
        connection.execute(text("select to_tsvector('english', content) from messages")).all()
    found = search_df(engine, "needle")
    assert [content[:12] for content in contents(found)] == ["needle", "needle 80000", "short needle"]
    assert found.attrs["truncated"] == 3
    assert search_df(engine, "needle", Context.name == "second").attrs["truncated"] == 1
    assert search_df(engine, "needle", embedder=letters).attrs["truncated"] == 3
    last = long[: SEARCHED_CHARACTERS - 7].split()[-1]
    beyond = long[SEARCHED_CHARACTERS + 7 :].split()[1]
    assert (len(search_df(engine, last)), len(search_df(engine, beyond))) == (3, 0)
    assert create_text_index(engine)["created"]


def test_no_letters_and_no_compounds_are_too_many(engine: Engine) -> None:
    random = np.random.default_rng(0)
    pairs = np.array([chr(0x20000 + number) for number in random.integers(0, 40_000, 200_000)]).reshape(-1, 2)
    pairs = ["".join(pair) for pair in pairs]
    compounds = [" ".join(map("-".join, batched(pairs, size))) for size in (2, 3, 40)]
    write(engine, [*compounds, f"needle {compounds[0]}"], embedded=False)
    with engine.connect() as connection, pytest.raises(OperationalError, match="too long for tsvector"):
        connection.execute(text("select to_tsvector('english', left(content, 250000)) from messages")).all()
    found = search_df(engine, "needle")
    assert (len(found), found.attrs["truncated"]) == (1, 4)


def batched(items: list[str], size: int) -> list[list[str]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def test_only_what_is_longer_than_what_is_searched_counts_as_truncated(engine: Engine) -> None:
    end = " needle"
    write(engine, ["ä" * (SEARCHED_CHARACTERS - len(end)) + end, "ä" * (SEARCHED_CHARACTERS + 1 - len(end)) + end])
    for asked in ("needle", "needl"):  # whole in one, cut by a letter in the other
        found = search_df(engine, asked, language="simple")
        assert len(found) == 1
        assert found.attrs["truncated"] == 1


# The index


def plan_of_search(engine: Engine, asked: str, language: str) -> str:
    """How the server runs the search by words, as it is sent."""
    plans: list[str] = []

    def explain(connection: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        if "ts_rank_cd" in sql and not sql.startswith("explain"):
            cursor = connection.connection.cursor()
            plans.append("\n".join(row[0] for row in cursor.execute(f"explain {sql}", parameters).fetchall()))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        search_df(engine, asked, language=language)
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    (plan,) = plans
    return plan


def test_a_search_takes_the_index_of_its_language_and_finds_the_same(engine: Engine) -> None:
    write(engine, [f"{word} {place}" for place in range(30) for word in (*ENGLISH, *GERMAN)], embedded=False)
    names = {"english": "contextkit_text_english_idx", "german": "contextkit_text_german_idx"}
    without = {language: search_df(engine, "image or haus", language=language, k=400) for language in names}
    for language, name in names.items():
        assert name not in plan_of_search(engine, "images", language)
        made = create_text_index(engine, language)
        assert made[["name", "language", "created"]].tolist() == [name, language, True]
        assert made["size"] > 0
        with engine.begin() as connection:
            connection.execute(text("analyze messages"))
        assert f"Bitmap Index Scan on {name}" in plan_of_search(engine, "images", language)
        pd.testing.assert_frame_equal(search_df(engine, "image or haus", language=language, k=400), without[language])
    assert len(without["english"]) == 150
    assert "contextkit_text" not in plan_of_search(engine, "images", "simple")
    assert not create_text_index(engine)["created"]


def test_an_index_of_words_is_there_once_however_many_build_it(engine: Engine) -> None:
    write(engine, ENGLISH)
    with ThreadPoolExecutor(4) as executor:
        made = [future.result()["created"] for future in [executor.submit(create_text_index, engine) for _ in range(4)]]
    assert sorted(made) == [False, False, False, True]


def test_what_is_left_of_an_index_of_words_is_built_anew(engine: Engine) -> None:
    write(engine, ENGLISH)
    create_text_index(engine)
    with engine.begin() as connection:
        invalid = "update pg_index set indisvalid = false where indexrelid = 'contextkit_text_english_idx'::regclass"
        connection.execute(text(invalid))
    assert create_text_index(engine)["created"]
    assert not create_text_index(engine)["created"]


@pytest.mark.parametrize("asked", ["docker " + "-" * 200, "- " * 3000 + "docker", "docker -", "--docker-- docker"])
def test_a_minus_before_no_word_says_nothing(engine: Engine, asked: str) -> None:
    write(engine, ENGLISH)
    found = search_df(engine, asked)
    assert len(found) == (0 if asked.startswith("--") else len(search_df(engine, "docker")))


def test_half_of_a_surrogate_pair_is_told(engine: Engine) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        search_df(engine, "\ud800")


def test_an_index_of_words_needs_a_language_and_an_engine_for_writing(engine: Engine, reader: Engine) -> None:
    with pytest.raises(ValueError, match="language is one of"):
        create_text_index(engine, "klingon")
    with pytest.raises(ReadOnlyError):
        create_text_index(reader)


def test_any_name_of_a_configuration_is_taken_as_it_is(engine: Engine) -> None:
    write(engine, ENGLISH)
    for name in ("O'Brien", 'of "mine"', "100%s :x", "Upper"):
        quoted = name.replace('"', '""')
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f'create text search configuration "{quoted}" (copy = english)'.replace("%", "%%")
            )
        assert len(search_df(engine, "cats", language=name)) == 3
        assert create_text_index(engine, name)["created"]
        assert not create_text_index(engine, name)["created"]


# By meaning


def test_a_semantic_search_is_a_search_for_the_embedding_of_the_text(corpus: Engine) -> None:
    asked: list[list[str]] = []

    def recording(texts: list[str], /) -> ArrayLike:
        asked.append(texts)
        return letters(texts)

    found = search_df(corpus, "warm cats", EN, k=6, mode="semantic", embedder=recording)
    assert asked == [["warm cats"]]
    expected = neighbors_df(corpus, np.asarray(letters(["warm cats"]))[0], EN, k=6)
    columns = ["rank", "distance", *messages_df(corpus).columns]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert found["semantic_rank"].tolist() == found["rank"].tolist()
    assert found[["text_rank", "relevance"]].isna().all(axis=None)
    assert found.attrs["mode"] == "semantic"
    assert found.attrs["neighbors"]["mode"] == expected.attrs["mode"]


# By both


def fused(lists: list[list[str]], k: int) -> list[str]:
    """Reciprocal rank fusion, as the paper has it."""
    sums: dict[str, float] = {}
    for ids in lists:
        for rank, id_ in enumerate(ids, 1):
            sums[id_] = sums.get(id_, 0) + 1 / (60 + rank)
    return [id_ for _, id_ in sorted((-total, id_) for id_, total in sums.items())][:k]


@pytest.mark.parametrize(
    ("asked", "k"), [("red or cyan", 10), ("red", 3), ("green blue", 60), ("cat", 40), ("blue", 1)]
)
def test_a_hybrid_search_fuses_both_lists_by_reciprocal_ranks(corpus: Engine, asked: str, k: int) -> None:
    depth = max(100, 2 * k)
    words = search_df(corpus, asked, k=depth)
    meaning = search_df(corpus, asked, k=depth, mode="semantic", embedder=letters)
    found = search_df(corpus, asked, k=k, embedder=letters)
    assert found["message_id"].tolist() == fused([words["message_id"].tolist(), meaning["message_id"].tolist()], k)
    assert found["rank"].tolist() == list(range(1, k + 1))
    for name, value, side in (("text_rank", "relevance", words), ("semantic_rank", "distance", meaning)):
        expected = side.set_index("message_id")[["rank", value]].reindex(found["message_id"]).reset_index(drop=True)
        assert found[name].astype(float).equals(expected["rank"].astype(float))
        assert found[value].equals(expected[value])
    assert (found.attrs["mode"], found.attrs["depth"]) == ("hybrid", depth)


def test_equal_sums_stand_by_message_id(engine: Engine) -> None:
    ids = [str(uuid.UUID(int=number)) for number in (4, 2, 3, 1)]
    context = add_context(engine)
    # By words 1 before 2, by meaning the other way round; the other two are alike.
    rows = ["cat", "cat cat", "dog", "dog"]
    append_messages(engine, context, [{"role": "user", "content": row, "embedding": np.ones(1536)} for row in rows])
    vectors = np.eye(1536, dtype=np.float32)[[0, 1, 2, 2]] * [[0], [1], [3], [3]]
    vectors[:, 5] = 1
    with engine.begin() as connection:
        for place, (id_, vector) in enumerate(zip(ids, vectors, strict=True), 1):
            change = text("update messages set id = :id, embedding = cast(:vector as vector) where version = :place")
            connection.execute(change, {"id": id_, "vector": str(vector.tolist()), "place": place})
    found = search_df(engine, "cat", embedder=lambda _: vectors[:1])
    assert found["message_id"].tolist() == [ids[1], ids[0], ids[3], ids[2]]
    assert found["text_rank"].tolist() == [1, 2, pd.NA, pd.NA]
    assert found["semantic_rank"].tolist() == [2, 1, 3, 4]
    assert len(search_df(engine, "dog", k=1)) == 1
    assert search_df(engine, "dog")["message_id"].tolist() == [ids[3], ids[2]]


def test_a_message_without_an_embedding_is_found_by_its_words(corpus: Engine) -> None:
    found = search_df(corpus, '"without an embedding"', k=1000, embedder=letters)
    assert found["content"].value_counts()["a cat without an embedding"] == 1
    row = found[found["content"] == "a cat without an embedding"].iloc[0]
    assert row["text_rank"] == 1
    assert pd.isna(row["semantic_rank"])
    assert np.isnan(row["distance"])
    assert len(found) == len(messages_df(corpus)) == 165


def test_no_mode_gives_fewer_rows_than_there_are(corpus: Engine) -> None:
    live, embedded, cats = 165, 164, 5
    for k in (4, 99, 101, 150, 165, 1000):
        assert len(search_df(corpus, "cat", k=k)) == min(k, cats)
        assert len(search_df(corpus, "cat", k=k, mode="semantic", embedder=letters)) == min(k, embedded)
        assert len(search_df(corpus, "cat", k=k, embedder=letters)) == min(k, live)


# Modes, columns, attrs


def test_auto_is_hybrid_with_an_embedder_and_text_without(corpus: Engine) -> None:
    for embedder, mode in ((None, "text"), (letters, "hybrid")):
        found = search_df(corpus, "cat", embedder=embedder)
        assert found.attrs["mode"] == mode
        pd.testing.assert_frame_equal(found, search_df(corpus, "cat", mode=mode, embedder=embedder))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["text", "semantic", "hybrid"])
@pytest.mark.parametrize("asked", ["cat", "unicorn"])
def test_every_mode_has_the_same_columns_full_or_empty(corpus: Engine, mode: Any, asked: str) -> None:
    found = search_df(corpus, asked, mode=mode, embedder=letters)
    of_messages = messages_df(corpus)
    assert list(found.columns) == [*RANKED, *of_messages.columns]
    assert found.dtypes[:5].astype(str).tolist() == ["int64", "Int64", "Int64", "float64", "float64"]
    pd.testing.assert_series_equal(found.dtypes[5:], of_messages.dtypes)
    pd.testing.assert_index_equal(found.index, pd.RangeIndex(len(found)))
    stored = of_messages.set_index("message_id").loc[found["message_id"]].reset_index()
    pd.testing.assert_frame_equal(found[of_messages.columns], stored[of_messages.columns])
    none = search_df(corpus, asked, Message.version < 0, mode=mode, embedder=letters)
    assert len(none) == 0
    pd.testing.assert_series_equal(none.dtypes, found.dtypes)


def test_attrs_say_what_was_asked_and_what_ran_and_go_into_parquet(corpus: Engine, tmp_path: Path) -> None:
    found = search_df(corpus, "cat", EN, k=np.int64(2), embedder=letters)  # type: ignore[arg-type]
    neighbors = found.attrs.pop("neighbors")
    asked = {"where": 1, "k": 2, "mode": "auto", "embedder": True, "language": "english"}
    assert found.attrs == {
        "function": "search_df",
        "asked": asked,
        "mode": "hybrid",
        "depth": 100,
        "searchable": True,
        "truncated": 0,
        "rows": 2,
    }
    assert neighbors["rows"] == 10
    assert "asked" not in neighbors
    found.attrs["neighbors"] = neighbors
    assert json.loads(json.dumps(found.attrs)) == found.attrs
    found.to_parquet(tmp_path / "found.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "found.parquet"), found)


def test_a_text_of_stop_words_finds_nothing_by_words_and_says_so(corpus: Engine) -> None:
    for asked in ("the of", "?!", "-", "to be or not to be"):
        with pytest.warns(ContextkitWarning, match="no word that a search in english looks for") as caught:
            found = search_df(corpus, asked)
        assert caught[0].filename == __file__
        assert len(found) == 0
        assert (found.attrs["mode"], found.attrs["searchable"]) == ("text", False)
        with pytest.warns(ContextkitWarning, match="nothing was searched by words"):
            both = search_df(corpus, asked, embedder=letters)
        assert (both.attrs["mode"], both.attrs["searchable"]) == ("semantic", False)
        pd.testing.assert_frame_equal(both, search_df(corpus, asked, mode="semantic", embedder=letters))


# What is refused


def failing(_texts: list[str], /) -> ArrayLike:
    raise RuntimeError("mine")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"text": ""}, ValueError, "the text is blank"),
        ({"text": " \n"}, ValueError, "the text is blank"),
        ({"text": "a\0b"}, ValueError, "holds a NUL character"),
        ({"text": None}, TypeError, "a text to search for is a str, not NoneType"),
        ({"text": ["cat"]}, TypeError, "a text to search for is a str, not list"),
        ({"text": "cat " * 5001}, ValueError, "up to 20,000 characters, not 20,004"),
        ({"mode": "semantic"}, ValueError, "mode semantic needs an embedder"),
        ({"mode": "hybrid"}, ValueError, "mode hybrid needs an embedder; pass the one that"),
        ({"mode": "exact"}, ValueError, "mode is one of auto, text, semantic, hybrid, not 'exact'"),
        ({"mode": None}, ValueError, "mode is one of"),
        ({"embedder": "openai"}, TypeError, "an embedder is a callable from texts to vectors, not str"),
        ({"embedder": lambda _: np.ones((1, 5))}, DimensionError, r"gave the shape \(1, 5\)"),
        ({"embedder": lambda _: np.ones((2, 1536))}, ValueError, r"gave the shape \(2, 1536\)"),
        ({"embedder": lambda _: np.zeros((1, 1536))}, ValueError, "the query is all zero"),
        ({"embedder": lambda _: np.full((1, 1536), np.nan)}, ValueError, "NaN"),
        ({"embedder": failing}, RuntimeError, "mine"),
        ({"language": "klingon"}, ValueError, "language is one of arabic, .*english, .*simple.*, not 'klingon'"),
        ({"language": "English"}, ValueError, "language is one of"),
        ({"language": "english'; drop table messages; --"}, ValueError, "language is one of"),
        ({"language": None}, ValueError, "language is one of"),
        ({"mode": "semantic", "embedder": letters, "language": "klingon"}, ValueError, "language is one of"),
    ]
    + [({"k": value}, ValueError, "k is a whole number") for value in (0, -1, 1.5, True, "3", None)],
)
def test_what_cannot_be_searched_is_refused(
    corpus: Engine, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        search_df(corpus, **({"text": "the cat's secret"} | arguments))
    assert "secret" not in str(caught.value)


def test_a_database_without_tables_says_what_to_do(empty_url: str) -> None:
    engine = connect(empty_url)
    with pytest.raises(SchemaError, match="upgrade"):
        search_df(engine, "cat")
    engine.dispose()


def test_a_long_text_has_as_many_words_as_postgresql_takes(corpus: Engine) -> None:
    assert len(search_df(corpus, "b " * 10_000)) == 0
    assert len(search_df(corpus, " ".join(f"{letter}-" for letter in "bcdfghjklm" * 600) + "cat")) == 0
    assert len(search_df(corpus, "cat " * 5001, mode="semantic", embedder=letters)) == 10


# Copies


def test_the_condition_that_leaves_copies_out_leaves_out_nothing_else(engine: Engine) -> None:
    """The recipe of the README: every live text of a family of forks stays, once."""
    root = write(engine, ["one cat", "two cats", "three cats"])
    forks = {
        "copy": ["one cat", "two cats", "cat after a copy"],
        "copy of the copy": ["one cat", "two cats", "cat after a copy", "another cat after both"],
        "edited": ["one cat", "two cats, edited", "three cats"],
        "renumbered": ["a renumbered cat", "a second one, cat"],
        "of the reference": ["one cat", "two cats", "cat by reference", "cat after both ways"],
        "no version": ["one cat"],
        "no parent": ["one cat"],
        "of a deleted context": ["a cat that only the copy has"],
        "of a deleted message": ["a cat deleted in the parent"],
    }
    written = {name: write(engine, rows) for name, rows in forks.items()}
    gone = write(engine, forks["of a deleted context"])["context_id"][0]
    partly = write(engine, forks["of a deleted message"])
    of_root = root["context_id"][0]
    reference = fork_context(engine, of_root, 2)
    append_messages(engine, reference, [{"role": "user", "content": "cat by reference"}])
    parents = {
        "copy": (of_root, 2),
        "copy of the copy": (written["copy"]["context_id"][0], 3),
        "edited": (of_root, 2),
        "renumbered": (of_root, 3),
        "of the reference": (reference, 3),
        "no version": (of_root, None),
        "no parent": (None, 2),
        "of a deleted context": (gone, 1),
        "of a deleted message": (partly["context_id"][0], 1),
    }
    with engine.begin() as connection:
        for name, (parent_id, version) in parents.items():
            fork = update(Context).where(Context.id == written[name]["context_id"][0])
            connection.execute(fork.values(parent_id=parent_id, fork_version=version))
    delete_context(engine, gone)
    delete_messages(engine, partly["message_id"])

    families = forks_df(engine)[["context_id", "root_id", "depth", "fork_version"]]
    rows = messages_df(engine, Context.id.in_(families["context_id"])).merge(families, on="context_id")
    again = rows.sort_values("depth").duplicated(["root_id", "version", "role", "content"])
    copies = rows.loc[again & (rows["version"] <= rows["fork_version"]), "message_id"]
    no_copies = Message.id.not_in(copies)

    every = search_df(engine, "cat", k=100)["content"].tolist()
    found = search_df(engine, "cat", no_copies, k=100)["content"].tolist()
    left_out = ["one cat", "two cats"] * 3 + ["one cat", "cat after a copy", "cat by reference"]
    assert sorted([*found, *left_out]) == sorted(every)
    assert set(found) == set(every)
    near = neighbors_df(engine, np.asarray(letters(["one cat"]))[0], no_copies, k=100)
    assert sorted([*near["content"], "cat by reference"]) == sorted(found)
    assert sorted(search_df(engine, "cat", no_copies, k=100, embedder=letters)["content"]) == sorted(found)


def test_versions_alone_do_not_tell_what_is_a_copy(engine: Engine) -> None:
    root = write(engine, ["one cat", "two cats"])["context_id"][0]
    for rows, version in ((["a renumbered cat"], 2), (["a cat of a fork without a version"], None)):
        fork = update(Context).where(Context.id == write(engine, rows)["context_id"][0])
        with engine.begin() as connection:
            connection.execute(fork.values(parent_id=root, fork_version=version))
    shorter = or_(Context.parent_id.is_(None), Message.version > Context.fork_version)
    assert sorted(search_df(engine, "cat", shorter)["content"]) == ["one cat", "two cats"]
