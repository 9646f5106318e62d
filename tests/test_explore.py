"""What the widget reads and shows, without a browser; tests/browser has what a browser makes of it."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine, Text, cast, event, insert, update

import contextkit
from contextkit import (
    Context,
    LineageError,
    Message,
    MissingExtraError,
    NotFoundError,
    ReadOnlyError,
    add_context,
    append_messages,
    create_index,
    delete_context,
    explore,
    fork_context,
    load_sample,
    messages_df,
    neighbors_df,
)
from contextkit.explore import listing as listings
from contextkit.explore import pages, views
from contextkit.explore.finding import Search
from contextkit.explore.lines import HERE, context_lines, tree_lines
from contextkit.explore.listing import Listing, find, following, preceding
from contextkit.explore.pages import PAGE, read_family, read_history, read_neighbors
from contextkit.explore.widget import Explorer
from contextkit.queries import ORDERS

START = datetime(2026, 1, 1, tzinfo=UTC)
STRANGER = "00000000-0000-4000-8000-000000000000"
VECTOR_OIDS = "select oid from pg_type where typname in ('vector', 'halfvec')"
LINE_NAMES = {name: getattr(contextkit, name) for name in contextkit.__all__} | {"cast": cast, "Text": Text}


def add_contexts(engine: Engine, count: int, **fields: Any) -> list[str]:
    """So many contexts, three of each instant and count."""
    rows = [
        {
            "name": f"context {place}",
            "created_at": START + timedelta(minutes=place // 3),
            "updated_at": START - timedelta(minutes=place // 3),
            "message_count": place // 3,
            "total_tokens": -place // 3,
        }
        | fields
        for place in range(count)
    ]
    with engine.begin() as connection:
        return list(connection.execute(insert(Context).returning(Context.id), rows).scalars())


def set_columns(engine: Engine, context_id: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(Context).where(Context.id == context_id).values(**values))


def long_history(engine: Engine, messages: int) -> str:
    context_id = add_context(engine, "long")
    append_messages(engine, context_id, [{"role": "user", "content": f"number {n}"} for n in range(messages)])
    return context_id


@dataclass
class Sent:
    """What went to the server, and what came back."""

    statements: list[str] = field(default_factory=list)
    most_rows: int = 0
    types: set[int] = field(default_factory=set)


@contextmanager
def recorded(engine: Engine) -> Iterator[Sent]:
    sent = Sent()

    def note(_connection: Any, cursor: Any, statement: str, *_: object) -> None:
        sent.statements.append(statement)
        if cursor.description:
            sent.most_rows = max(sent.most_rows, cursor.rowcount)
            sent.types |= {column.type_code for column in cursor.description}

    event.listen(engine, "after_cursor_execute", note)
    yield sent
    event.remove(engine, "after_cursor_execute", note)


@pytest.fixture
def vector_types(engine: Engine) -> set[int]:
    with engine.connect() as connection:
        return set(connection.exec_driver_sql(VECTOR_OIDS).scalars())


@pytest.fixture(scope="module")
def sample(shared: Engine) -> Engine:
    load_sample(shared)
    return shared


def sample_id(engine: Engine, name: str) -> str:
    contexts = contextkit.contexts_df(engine, Context.name == name)
    return str(contexts["context_id"].item())


def ids(listing: Listing) -> list[str]:
    return listing.page.frame["context_id"].tolist()


# What is sent


def browse(explorer: Explorer, together: tuple[str, str]) -> None:
    """Do everything that the widget can do."""
    for name, values in {
        "text": ("con", "%", "00000000-0000", ""),
        "within": ("messages", "names and ids"),
        "kind": ("forks", "roots", "all contexts"),
        "order": (*ORDERS, "newest"),
        "include_deleted": (True, False),
    }.items():
        for value in values:
            explorer.asked[name].value = value
    explorer.asked["within"].value, explorer.asked["text"].value = "messages", "number"
    explorer.asked["text"].value = ""
    explorer.next.click()
    explorer.previous.click()
    for context_id in together:
        for view in ("transcript", "fork tree", "neighbors", "transcript"):
            explorer.views.value = view
            explorer.show((context_id,))
            for turn in (explorer.later, explorer.earlier):
                if not turn.disabled:
                    turn.click()
    explorer.show(together)
    assert explorer.error.value == ""


def test_no_row_has_an_embedding_and_no_answer_is_longer_than_a_page(engine: Engine, vector_types: set[int]) -> None:
    add_contexts(engine, 3 * PAGE)
    long = long_history(engine, 3 * PAGE)
    add_contexts(engine, 2 * PAGE, parent_id=long, fork_version=1)
    with recorded(engine) as sent:
        browse(Explorer(engine), (long, fork_context(engine, long)))
    assert len(sent.statements) > 60
    assert PAGE < sent.most_rows <= PAGE + 1
    assert not sent.types & vector_types


def test_no_statement_names_the_embedding_unless_neighbors_are_asked_for(engine: Engine) -> None:
    long = long_history(engine, 3)
    other = fork_context(engine, long)
    with recorded(engine) as sent:
        browse(Explorer(engine), (long, other))
        named = [statement for statement in sent.statements if "embedding" in statement]
    with recorded(engine) as asked:
        read_neighbors(engine, read_history(engine, long).frame["message_id"].iloc[0])
    assert set(named) == {statement for statement in asked.statements if "embedding" in statement}


def test_it_writes_nothing(reader: Engine, engine: Engine) -> None:
    together = (long_history(engine, 3), long_history(engine, 4))
    browse(Explorer(reader), together)
    with pytest.raises(ReadOnlyError):
        add_context(reader)


# The listing


@pytest.mark.parametrize("order", ORDERS)
def test_pages_have_every_context_once_in_order_though_many_are_tied(engine: Engine, order: Any) -> None:
    add_contexts(engine, 2 * PAGE + 7)
    listing = find(engine, Search(order=order))
    seen, firsts = ids(listing), [listing.first]
    while listing.page.more:
        listing = following(engine, listing)
        seen += ids(listing)
        firsts.append(listing.first)
    frame = contextkit.contexts_df(engine).sort_values([ORDERS[order].key, "context_id"], ascending=False)
    assert seen == frame["context_id"].tolist()
    assert firsts == [0, PAGE, 2 * PAGE]
    assert listing.summary == f"contexts {2 * PAGE + 1} to {2 * PAGE + 7}, the last"


def test_one_comes_back_to_the_page_before_though_newer_contexts_were_added(engine: Engine) -> None:
    add_contexts(engine, 3 * PAGE)
    second = following(engine, find(engine, Search()))
    add_contexts(engine, PAGE, created_at=START + timedelta(days=400))
    assert ids(preceding(engine, following(engine, second))) == ids(second)


def test_a_page_that_ends_the_listing_has_nothing_after_it(engine: Engine) -> None:
    add_contexts(engine, PAGE)
    assert not find(engine, Search()).page.more


def test_contexts_are_counted_unless_they_are_very_many_or_all_messages_would_be_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pages, listings):
        monkeypatch.setattr(module, "MOST_COUNTED", PAGE + 1)
    contexts = add_contexts(engine, PAGE + 1)
    assert find(engine, Search()).summary == f"contexts 1 to {PAGE} of {PAGE + 1}"
    for context_id in contexts:
        append_messages(engine, context_id, [{"role": "user", "content": "number"}])
    assert find(engine, Search("number", within="messages")).summary == f"contexts 1 to {PAGE}; more follow"
    add_contexts(engine, 1)
    assert find(engine, Search()).summary == f"contexts 1 to {PAGE} of more than {PAGE + 1}"
    assert find(engine, Search("nothing")).summary == "no context"


def test_a_next_page_whose_contexts_went_meanwhile_says_so(engine: Engine) -> None:
    contexts = add_contexts(engine, PAGE + 1)
    first = find(engine, Search())
    for context_id in set(contexts) - set(ids(first)):
        delete_context(engine, context_id)
    assert following(engine, first).summary == "no context"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("100%", {"100% sure"}),
        ("a_b", {"a_b"}),
        ("A_B", {"a_b"}),
        ("\\", {"back\\slash"}),
        ("/", {"sl/ash"}),
        ("'", set()),
    ],
)
def test_a_text_is_looked_for_as_it_is(engine: Engine, text: str, found: set[str]) -> None:
    for name in ("100% sure", "1000 sure", "a_b", "axb", "back\\slash", "sl/ash"):
        add_context(engine, name)
    assert set(find(engine, Search(text)).page.frame["name"]) == found


def test_a_part_of_an_id_finds_the_context(engine: Engine) -> None:
    first, second = add_context(engine, "one"), add_context(engine)
    assert ids(find(engine, Search(first[3:].upper()))) == [first]
    assert ids(find(engine, Search(second))) == [second]


def test_words_are_looked_for_in_messages_that_are_not_deleted(sample: Engine) -> None:
    found = find(sample, Search('"invalid byte" -pandas', within="messages")).page.frame
    assert set(found["context_id"]) == set(contextkit.search_df(sample, '"invalid byte" -pandas', k=99)["context_id"])
    assert len(found) > 1


@pytest.mark.parametrize(
    "search",
    [
        Search(),
        Search("csv"),
        Search("e"),
        Search("'\"\\\u202e", kind="roots"),
        Search("invalid byte", within="messages"),
        Search(kind="forks", order="most messages"),
        Search(kind="roots", order="most tokens", include_deleted=True),
        Search(order="last changed"),
    ],
)
def test_the_line_of_a_listing_gives_the_same_rows(sample: Engine, search: Search) -> None:
    listing = find(sample, search)
    while True:
        frame = eval(listing.code, LINE_NAMES | {"engine": sample})
        pd.testing.assert_frame_equal(frame.reset_index(drop=True), listing.page.frame, check_index_type=False)
        if not listing.page.more:
            break
        listing = following(sample, listing)


def test_a_name_of_control_characters_is_shown_as_escapes_on_one_line(engine: Engine) -> None:
    add_context(engine, "a\x1b[31m\u202eb\nc" + "d" * 10_000)
    ((line, _),) = context_lines(find(engine, Search()).page.frame)
    assert line.startswith("a\\x1b[31m\\u202eb cddd")
    assert len(line) < 80


# The fork tree


def test_a_family_is_read_from_its_root_to_its_last_fork(engine: Engine) -> None:
    root = long_history(engine, 3)
    child = fork_context(engine, root, 2, "child")
    sibling, grandchild = fork_context(engine, root, 1, "sibling"), fork_context(engine, child, 1, "grandchild")
    long_history(engine, 1)
    set_columns(engine, add_context(engine), parent_id=root)  # no fork: it has no fork_version
    delete_context(engine, child)
    for context_id in (root, child, sibling, grandchild):
        page = read_family(engine, context_id)
        depths = dict(zip(page.frame["context_id"], page.frame["depth"], strict=True))
        assert depths == {root: 0, child: 1, sibling: 1, grandchild: 2}
        assert not page.more


def test_the_line_of_a_fork_tree_gives_its_contexts(sample: Engine) -> None:
    name = "import: CSV script, a mail when it fails"
    view = views.fork_tree(sample, sample_id(sample, name))
    frame = eval(view.code, LINE_NAMES | {"engine": sample})
    assert set(frame["context_id"]) == {context_id for _, context_id in view.lines}
    assert len(frame) == 5


def test_of_a_large_family_the_nearest_relatives_are_read_each_with_its_parent(engine: Engine) -> None:
    chain = [long_history(engine, 1)]
    for _ in range(5):
        chain.append(fork_context(engine, chain[-1]))
    for parent in (chain[0], chain[3]):
        add_contexts(engine, PAGE, parent_id=parent, fork_version=1)
    own = add_contexts(engine, 4, parent_id=chain[4], fork_version=1)
    page = read_family(engine, chain[4])
    found = page.frame.set_index("context_id")
    assert page.more
    assert {*chain[:6], *own} <= set(found.index)
    assert set(found["parent_id"].dropna()) <= set(found.index)
    assert chain[0] not in found["parent_id"].drop(chain[1]).tolist()  # relatives of the parent are nearer


def test_a_chain_of_forks_longer_than_a_page_is_cut_above(engine: Engine) -> None:
    chain = [long_history(engine, 1)]
    for _ in range(PAGE + 10):
        chain.append(fork_context(engine, chain[-1]))
    page = read_family(engine, chain[-1])
    assert page.frame["context_id"].tolist() == chain[: -PAGE - 1 : -1]
    lines = tree_lines(page.frame, chain[-1])
    assert [context_id for _, context_id in lines] == chain[-PAGE:]


def test_a_tree_is_drawn_with_the_place_marked() -> None:
    rows = [("r", "root", None), ("a", "first", "r"), ("b", "second", "a"), ("c", "third", "r")]
    family = pd.DataFrame(rows, columns=["context_id", "name", "parent_id"])
    family = family.assign(created_at=range(4), message_count=[1, 2, 3, 4], deleted_at=[pd.NaT, pd.NaT, START, pd.NaT])
    family["fork_version"] = pd.array([None, 1, 1234, 1], dtype="Int64")
    lines = tree_lines(family, "b")
    assert [line for line, _ in lines] == [
        "root  1 message",
        "├─ first  2 messages, forked at version 1",
        f"│  └─ ✕ second  3 messages, forked at version 1,234{HERE}",
        "└─ third  4 messages, forked at version 1",
    ]
    assert [context_id for _, context_id in lines] == ["r", "a", "b", "c"]


def test_a_tree_deeper_than_python_recurses_is_drawn() -> None:
    count = 2 * sys.getrecursionlimit()
    names = [str(place) for place in range(count)]
    family = pd.DataFrame({"context_id": names, "name": names, "parent_id": [None, *names[:-1]]})
    family = family.assign(created_at=range(count), message_count=1, deleted_at=pd.NaT, fork_version=1)
    assert [context_id for _, context_id in tree_lines(family, "0")] == names


# The history and the neighbors


def test_a_history_is_read_a_page_at_a_time(engine: Engine) -> None:
    context_id = long_history(engine, 2 * PAGE + 3)
    contents, start, more = list[str](), 0, True
    while more:
        page = read_history(engine, context_id, start)
        view = views.transcript(engine, context_id, start)
        frame = eval(view.code, LINE_NAMES | {"engine": engine})
        pd.testing.assert_frame_equal(frame.reset_index(drop=True), page.frame)
        contents += page.frame["content"].tolist()
        start, more = start + PAGE, page.more
    assert contents == [f"number {n}" for n in range(2 * PAGE + 3)]
    assert view.note == f"messages {2 * PAGE + 1} to {2 * PAGE + 3}"


def test_a_history_that_cannot_be_read_says_why(engine: Engine) -> None:
    first, second = add_context(engine), add_context(engine)
    for one, another in ((first, second), (second, first)):
        set_columns(engine, one, parent_id=another, fork_version=1)
    gone = long_history(engine, 1)
    delete_context(engine, gone)
    reads: list[Callable[..., Any]] = [read_history, read_family]
    for read in reads:
        with pytest.raises(LineageError):
            read(engine, first)
        with pytest.raises(NotFoundError):
            read(engine, STRANGER)
    with pytest.raises(NotFoundError, match="deleted"):
        read_history(engine, gone)
    assert len(read_history(engine, gone, include_deleted=True).frame) == 1
    assert read_history(engine, add_context(engine)).frame.empty


def test_neighbors_that_an_index_leaves_out_are_there(sample: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    create_index(sample, progress=False)
    monkeypatch.setattr(pages, "FEW_ROWS", 0)
    real = pages._by_index
    monkeypatch.setattr(pages, "_by_index", lambda *arguments: real(*arguments).head(3))
    message_id = messages_df(sample, Message.embedding.is_not(None))["message_id"].iloc[0]
    near = read_neighbors(sample, message_id)
    assert near["message_id"].tolist() == neighbors_df(sample, message_id)["message_id"].tolist()
    assert near.attrs["mode"] == "exact"


@pytest.mark.parametrize("few", [pages.FEW_ROWS, 0])
def test_neighbors_are_those_of_neighbors_df_by_an_index_and_without(
    sample: Engine, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_index(sample, progress=False)
    monkeypatch.setattr(pages, "FEW_ROWS", few)
    asked = contextkit.messages_df(sample, Message.embedding.is_not(None))["message_id"].iloc[::20]
    for message_id in asked:
        near, frame = read_neighbors(sample, message_id), neighbors_df(sample, message_id)
        assert near["message_id"].tolist() == frame["message_id"].tolist()
        assert near["distance"].tolist() == pytest.approx(frame["distance"].tolist())
    assert near.attrs["mode"] == ("index" if few == 0 else "exact")


def test_a_message_without_an_embedding_has_no_neighbors_and_says_so(sample: Engine) -> None:
    bare = contextkit.messages_df(sample, Message.embedding.is_(None))["message_id"].iloc[0]
    view = views.neighbors(sample, bare)
    assert view.lines == []
    assert view.note.startswith("none: the message has no embedding")


# Two contexts


def test_where_two_histories_part_is_where_diff_df_says(sample: Engine) -> None:
    contexts = contextkit.contexts_df(sample)
    forks = contexts[contexts["parent_id"].isin(contexts["context_id"])]
    unrelated = zip(contexts["context_id"][:3], contexts["context_id"][-3:], strict=True)
    for left, right in [*zip(forks["parent_id"], forks["context_id"], strict=True), *unrelated]:
        frame, parting = contextkit.diff_df(sample, left, right), pages.read_parting(sample, left, right)
        counted = {side: frame.attrs[side]["messages"] for side in ("left", "right", "shared")}
        assert parting.shared == counted["shared"]
        assert parting.left == counted["left"] + counted["shared"]
        assert parting.right == counted["right"] + counted["shared"]


def test_histories_do_not_part_where_a_named_call_has_an_id_on_one_side_only(engine: Engine) -> None:
    sides = [add_context(engine), add_context(engine)]
    for context_id, tool_call_id in zip(sides, ("1", None), strict=True):
        call = {"role": "assistant", "content": "{}", "tool_name": "weather", "tool_call_id": tool_call_id}
        append_messages(engine, context_id, [call, {"role": "user", "content": "Thanks"}])
    assert contextkit.diff_df(engine, *sides).attrs["shared"]["messages"] == 2
    assert pages.read_parting(engine, *sides).shared == 2


def test_of_long_histories_what_follows_where_they_part_is_shown(engine: Engine) -> None:
    left = long_history(engine, 3 * PAGE)
    right = fork_context(engine, left, PAGE)
    append_messages(engine, right, [{"role": "user", "content": "another question"}])
    view = views.difference(engine, left, right)
    assert view.note.startswith("50 messages in common; of what follows 25 of 100 and 1 of 1;")
    assert "another question" in view.html
    assert f"number {PAGE}<" in view.html
    assert f"number {PAGE - 1}<" not in view.html


# The widget


def test_choosing_shows_a_transcript_its_tree_its_neighbors_and_a_difference(sample: Engine) -> None:
    explorer = Explorer(sample)
    explorer.asked["text"].value = "CSV script"
    (mail, *_) = [id_ for line, id_ in explorer.contexts.options if "a mail when" in line]
    explorer.contexts.value = (mail,)
    assert "Simple enough. Thanks!" in explorer.html.value
    assert mail in explorer.code.value
    explorer.views.value = "fork tree"
    assert explorer.tree.options[-1][0].endswith(HERE)
    explorer.views.value = "neighbors"
    assert "0.000" in explorer.near.options[0][0]
    explorer.near.value = explorer.near.options[3][1]
    explorer.open.click()
    explorer.views.value = "transcript"
    assert explorer.near.options[3][1] in explorer.code.value
    explorer.contexts.value = (mail, explorer.contexts.options[-1][1])
    assert "diff_df" in explorer.code.value
    assert explorer.views.disabled


def test_turning_shows_every_message_of_a_history_of_long_ones(engine: Engine) -> None:
    context_id = add_context(engine, "long")
    messages = [{"role": "user", "content": f"number {n}; {'x' * 10_000}"} for n in range(PAGE + 10)]
    append_messages(engine, context_id, messages)
    explorer, pages_seen = Explorer(engine), list[list[str]]()
    explorer.show((context_id,))
    pages_seen.append(shown_numbers(explorer))
    while not explorer.later.disabled:
        explorer.later.click()
        pages_seen.append(shown_numbers(explorer))
    assert [number for page in pages_seen for number in page] == [str(n) for n in range(PAGE + 10)]
    for page in pages_seen[-2::-1]:
        explorer.earlier.click()
        assert shown_numbers(explorer) == page
    assert explorer.earlier.disabled


def shown_numbers(explorer: Explorer) -> list[str]:
    return re.findall(r"<p>number (\d+);", explorer.html.value)


def test_what_could_not_be_read_is_read_by_the_next_click(engine: Engine) -> None:
    long = long_history(engine, 3 * PAGE)
    explorer = Explorer(engine)
    explorer.show((long,))
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages rename to away")
    explorer.later.click()
    assert explorer.error.value
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table away rename to messages")
    explorer.later.click()
    assert explorer.note.value == f"messages {PAGE + 1} to {2 * PAGE}; more follow"


def test_the_first_question_is_what_neighbors_are_asked_for(sample: Engine) -> None:
    explorer = Explorer(sample)
    explorer.views.value = "neighbors"
    explorer.show((sample_id(sample, "import: CSV upload fails at umlauts"),))
    assert explorer.messages.label.split()[:2] == ["1", "user"]
    before = explorer.near.options
    explorer.messages.index = 2
    assert explorer.near.options != before


def test_what_goes_wrong_is_told_and_gone_with_the_next_click(engine: Engine) -> None:
    long_history(engine, 1)
    explorer = Explorer(engine)
    explorer.asked["text"].value = "a\0"
    assert "NUL" in explorer.error.value
    explorer.asked["text"].value = ""
    assert explorer.error.value == ""
    with engine.begin() as connection:
        connection.exec_driver_sql("drop table messages")
    explorer.show((explorer.contexts.options[0][1],))
    assert "messages" in explorer.error.value


def test_a_database_without_tables_opens_and_says_so(empty_url: str) -> None:
    engine = contextkit.connect(empty_url)
    assert "upgrade" in Explorer(engine).error.value
    engine.dispose()


def test_names_are_shown_as_text(engine: Engine) -> None:
    add_context(engine, "<img src=x onerror=alert(1)>")
    explorer = Explorer(engine)
    explorer.show((explorer.contexts.options[0][1],))
    assert "<img" not in explorer.title.value
    assert "&lt;img" in explorer.title.value


def test_without_ipywidgets_it_says_which_extra_to_install(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(MissingExtraError, match="notebook"):
        explore(engine)
