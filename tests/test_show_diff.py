from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from contextkit import (
    Context,
    NotFoundError,
    add_context,
    append_messages,
    contexts_df,
    diff_df,
    fork_context,
    forks_df,
    load_sample,
    show_diff,
)
from contextkit.show.rendered import Rendered
from contextkit.show.words import COMPARED_WORDS, Marks, differing_words
from tests.hostile import STORABLE
from tests.markup import Element, assert_harmless, parsed


def tree_of(rendered: Rendered) -> Element:
    return assert_harmless(rendered.html)


def user(content: str, **values: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **values}


def assistant(content: str, **values: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **values}


def two_forks(engine: Engine, left: list[dict[str, Any]], right: list[dict[str, Any]]) -> tuple[str, str]:
    """Forks of one context, which has three messages in common with both, and what each adds."""
    root = add_context(engine, "the root")
    append_messages(engine, root, [user("one"), assistant("two"), user("three"), assistant("four")])
    forks = fork_context(engine, root, 3, "the left"), fork_context(engine, root, 3, "the right")
    for fork, messages in zip(forks, (left, right), strict=True):
        append_messages(engine, fork, messages)
    return forks


def rows_of(rendered: Rendered) -> list[list[str]]:
    """Contents side by side, by row of the table."""
    (table,) = tree_of(rendered).all("table", "ck-diff")
    rows = [row for body in table.below("tbody") for row in body.below("tr")]
    pairs = [row.below("td") for row in rows if row.below("td")]
    return [["".join(content.text for content in cell.all("div", "ck-content")) for cell in pair] for pair in pairs]


def marked(rendered: Rendered) -> list[str]:
    return [mark.text for mark in tree_of(rendered).all("mark")]


def figures_of(rendered: Rendered) -> dict[str, list[str]]:
    (table,) = tree_of(rendered).all("table", "ck-figures")
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tr")[1:]}


def test_what_is_shared_is_folded_and_the_rest_stands_side_by_side_turn_by_turn(shared: Engine) -> None:
    left = [assistant("Paris"), user("and Italy?"), assistant("Rome")]
    right = [assistant("Lyon"), user("why?")]
    rendered = show_diff(shared, *two_forks(shared, left, right))
    (fold,) = tree_of(rendered).all("details", "ck-shared")
    assert [content.text for content in fold.all("div", "ck-content")] == ["one", "two", "three"]
    assert rows_of(rendered) == [["Paris", "Lyon"], ["and Italy?", "why?"], ["Rome", ""]]
    assert [head.text for head in tree_of(rendered).all("th") if "colspan" in head.attributes] == ["turn 2", "turn 3"]


def test_the_head_names_the_ancestor_and_where_they_part(shared: Engine) -> None:
    forks = two_forks(shared, [assistant("a")], [assistant("b")])
    root = contexts_df(shared, Context.id == forks[0])["parent_id"].item()
    (about,) = tree_of(show_diff(shared, *forks)).all("p", "ck-about")
    assert about.text == f"3 messages in common; they part after version 3; common ancestor: the root, {root}"


def test_the_head_compares_tokens_tools_and_models(shared: Engine) -> None:
    call = {"role": "assistant", "tool_call_id": "1", "tool_name": "weather", "content": "{}"}
    left = [assistant("a", token_count=1000, model="m-1"), call, call]
    forks = two_forks(shared, left, [assistant("b", token_count=400, model="m-2")])
    assert figures_of(show_diff(shared, *forks)) == {
        "context": list(forks),
        "messages": ["3", "1 (-2)"],
        "tokens": ["1,000", "400 (-600)"],
        "tools": ["weather (2)", "none"],
        "models": ["m-1", "m-2"],
    }


def test_words_that_differ_are_marked_within_markdown(shared: Engine) -> None:
    forks = two_forks(shared, [assistant("It is **very warm** in Rome.")], [assistant("It is **cold** in `Oslo`.")])
    rendered = show_diff(shared, *forks)
    assert marked(rendered) == ["very warm", "Rome", "cold", "Oslo"]
    assert tree_of(rendered).all("strong", "")[-1].all("mark")
    assert marked(show_diff(shared, forks[0], forks[0])) == []


def test_words_that_differ_are_marked_in_calls_and_results(shared: Engine) -> None:
    call = {"role": "assistant", "tool_call_id": "1", "tool_name": "weather"}
    result = {"role": "tool", "tool_call_id": "1"}
    left = [call | {"content": '{"in": "Rome"}'}, result | {"content": "warm today"}]
    right = [call | {"content": '{"in": "Oslo"}'}, result | {"content": "cold today"}]
    assert marked(show_diff(shared, *two_forks(shared, left, right))) == ["Rome", "warm", "Oslo", "cold"]


def test_within_a_turn_messages_of_one_kind_stand_side_by_side(shared: Engine) -> None:
    call = {"role": "assistant", "tool_call_id": "1", "tool_name": "weather", "content": "{}"}
    rendered = show_diff(shared, *two_forks(shared, [call, assistant("warm")], [assistant("cold")]))
    assert rows_of(rendered) == [["{}", ""], ["warm", "cold"]]


def test_contexts_without_common_content_are_shown_and_say_so(shared: Engine) -> None:
    forks = [add_context(shared), add_context(shared)]
    for fork, content in zip(forks, ("one", "other"), strict=True):
        append_messages(shared, fork, [user(content)])
    rendered = show_diff(shared, *forks)
    said = "no common content: the first messages differ already; no common ancestor"
    assert tree_of(rendered).all("p", "ck-about")[0].text == said
    assert said in rendered.text
    assert rows_of(rendered) == [["one", "other"]]
    assert f"< context {forks[0]}" in rendered.text


def test_contexts_without_messages_are_said_to_have_none(shared: Engine) -> None:
    empty, other = add_context(shared), add_context(shared)
    assert "no difference: neither has messages; no common ancestor" in show_diff(shared, empty, other).text
    append_messages(shared, other, [user("one")])
    for sides in ((empty, other), (other, empty)):
        assert "no common content: one has no messages; no common ancestor" in show_diff(shared, *sides).text


def test_equal_histories_say_so(shared: Engine) -> None:
    forks = two_forks(shared, [], [])
    rendered = show_diff(shared, *forks)
    assert tree_of(rendered).all("p", "ck-about")[0].text.startswith("no difference: both say the same in 3 messages")
    assert tree_of(rendered).all("table", "ck-diff") == []


def test_a_terminal_gets_both_sides_with_their_sign(shared: Engine) -> None:
    forks = two_forks(shared, [assistant("Paris"), user("Thanks")], [assistant("Lyon")])
    lines = show_diff(shared, *forks).text.splitlines()
    assert [line for line in lines if line.endswith(("Paris", "Lyon", "Thanks"))] == [
        "<     Paris",
        ">     Lyon",
        "<     Thanks",
    ]


def test_messages_past_the_limit_are_counted_on_both_sides_of_the_place(shared: Engine) -> None:
    root = add_context(shared)
    append_messages(shared, root, [user(f"shared {number}") for number in range(210)])
    forks = [fork_context(shared, root), fork_context(shared, root)]
    for fork in forks:
        append_messages(shared, fork, [user(f"{fork} {number}") for number in range(105)])
    rendered = show_diff(shared, *forks)
    assert "10 more messages before, in diff_df(engine, left, right)" in rendered.html
    assert "10 more messages after, in diff_df(engine, left, right)<" in rendered.html
    (fold,) = tree_of(rendered).all("details", "ck-shared")
    assert [content.text for content in fold.all("div", "ck-content")] == [f"shared {n}" for n in range(10, 210)]
    assert len(rows_of(rendered)) == 100


def test_a_turn_longer_than_a_page_is_shown_of_both_sides(shared: Engine) -> None:
    sides = [[assistant(f"{side} {number}") for number in range(150)] for side in ("left", "right")]
    rendered = show_diff(shared, *two_forks(shared, *sides))
    assert rows_of(rendered) == [[f"left {number}", f"right {number}"] for number in range(100)]
    assert "100 more messages after, in diff_df(engine, left, right)" in rendered.text


def test_hostile_content_and_names_leave_only_known_elements(engine: Engine) -> None:
    contents = [text[:4_000] for text in STORABLE.values()]
    forks = two_forks(engine, [assistant(text) for text in contents], [user(text[::-1]) for text in contents])
    assert_harmless(show_diff(engine, *forks).html)
    left, right = add_context(engine, "</h2><script>"), add_context(engine, "\u202eevil")
    for context_id in (left, right):
        append_messages(engine, context_id, [assistant(text, model="<b>", tool_name="<i>") for text in contents[:9]])
    append_messages(engine, right, [assistant("end", model="<script>")])
    assert "\\u202eevil" in tree_of(show_diff(engine, left, right)).text


def test_forks_of_every_kind_are_compared_with_their_parents(engine: Engine) -> None:
    load_sample(engine)
    forks = forks_df(engine)
    forks = forks[forks["parent_id"].isin(forks["context_id"])].groupby("written_by").head(1)
    assert list(forks["written_by"].value_counts()) == [1, 1, 1]
    for left, right in zip(forks["parent_id"], forks["context_id"], strict=True):
        rendered = show_diff(engine, left, right)
        frame = diff_df(engine, left, right)
        contents = tree_of(rendered).all("div", "ck-content")
        assert len(contents) == len(frame)
        assert len(rows_of(rendered)) <= len(frame[frame["side"] != "both"])


@pytest.mark.parametrize("side", [0, 1])
def test_a_context_that_is_not_there_is_refused(shared: Engine, side: int) -> None:
    ids = [add_context(shared), str(uuid4())]
    with pytest.raises(NotFoundError, match="no context has the id"):
        show_diff(shared, ids[side], ids[1 - side])


def test_marks_hold_neighboring_words_together_and_lose_no_character() -> None:
    text = " a, b  c <d> e\n"
    written = Marks({0, 1, 2, 5})(text)
    assert written == " <mark>a, b</mark>  c &lt;<mark>d</mark>&gt; e\n"
    assert parsed(written).text == text
    assert Marks(set())(text) == " a, b  c &lt;d&gt; e\n"


def test_marks_go_on_counting_from_one_text_to_the_next() -> None:
    marks = Marks({1, 2})
    assert [marks("a b"), marks("c d")] == ["a <mark>b</mark>", "<mark>c</mark> d"]


def test_long_stretches_that_differ_are_marked_throughout() -> None:
    left, right = ["a", "x"] * COMPARED_WORDS, ["a", "y"] * COMPARED_WORDS
    assert differing_words(left, right) == (set(range(1, len(left))), set(range(1, len(right))))
    assert differing_words(["a", *left, "b"], ["a", *left, "c"]) == ({len(left) + 1}, {len(left) + 1})
