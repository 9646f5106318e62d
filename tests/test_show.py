import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markupsafe import Markup
from sqlalchemy import Engine

from contextkit import (
    Context,
    Message,
    append_messages,
    contexts_df,
    delete_messages,
    fork_context,
    history_df,
    load_sample,
    messages_df,
    show,
    window_df,
)
from contextkit.show.code import COLORING_SECONDS, LANGUAGES, Colored
from contextkit.show.entries import CHARACTERS, MESSAGES, PAGE_CHARACTERS
from contextkit.show.markdown import markdown, shown
from contextkit.show.rendered import Rendered
from tests.hostile import CASES, HOST, MARK
from tests.markup import Element, assert_harmless, parsed

LABELS = ["context_id", "name", "source_context_id", "role", "tool_call_id", "tool_name", "model"]


def frame_of(*messages: dict[str, Any]) -> pd.DataFrame:
    rows = [{"context_id": "c", "role": "user", "content": "Hi"} | message for message in messages]
    return pd.DataFrame(rows, dtype=object)  # pandas' own text takes no lone surrogates


def tree_of(rendered: Rendered) -> Element:
    return assert_harmless(rendered.html)


def items_of(rendered: Rendered) -> list[Element]:
    return tree_of(rendered).all("div", "ck-message")


def html_of(source: str) -> Markup:
    return markdown(source, shown, Colored())


def call(id_: str | None, content: str = "{}", name: str = "weather") -> dict[str, Any]:
    return {"role": "assistant", "tool_call_id": id_, "tool_name": name, "content": content}


def result(id_: str | None, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": content}


@pytest.fixture(scope="module")
def sample(shared: Engine) -> Engine:
    load_sample(shared)
    return shared


def context_id(engine: Engine, name: str) -> str:
    return str(contexts_df(engine, Context.name == name)["context_id"].item())


# Hostile content


@pytest.mark.parametrize("name", CASES)
def test_hostile_content_of_every_role_leaves_only_known_elements(name: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [{"role": "user"}, {"role": "tool"}, call("1"), result("1", ""), {"role": "assistant", "deleted_at": at}]
    rendered = show(frame_of(*(row | {"content": CASES[name]} for row in rows)))
    assert len(items_of(rendered)) == 4
    assert len(rendered.html) < 60 * (5 * CHARACTERS + 1_000)
    assert_printable(rendered.text)
    assert_printable("".join(tree_of(rendered).text.splitlines()))


@pytest.mark.parametrize("name", CASES)
def test_hostile_names_leave_only_known_elements(name: str) -> None:
    for column in LABELS:
        history = frame_of({}, call("1"), result("1", "sunny")).assign(inherited=True)
        history[column] = pd.Series([CASES[name]] * 3, dtype=object)
        rendered = show(history)
        assert_harmless(rendered.html)
        assert_printable(rendered.text)
        assert len(rendered.text) < 3_000


def assert_printable(text: str) -> None:
    unseen = [character for character in set(text) if not (character.isprintable() or character.isspace())]
    assert all(ord(character) > 0xFFFD or character in "\u200c\u200d\ufffe\uffff" for character in unseen)
    assert not {"\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028"} & set(text)
    text.encode()


@pytest.mark.parametrize("scheme", ["javascript:a", "data:text/html,a", "vbscript:a", "file:///a", "//a", "/a", "#a"])
@pytest.mark.parametrize("form", ["[x]({})", "![x]({})", "<{}>"])
def test_links_that_lead_elsewhere_than_to_pages_and_mail_stay_text(form: str, scheme: str) -> None:
    written = form.format(scheme)
    assert parsed(html_of(written)).text == written
    assert "<a" not in html_of(written)


@pytest.mark.parametrize("address", ["http://a.b/c", "HTTPS://a.b", "mailto:a@b.c"])
def test_links_to_pages_and_mail_tell_them_nothing_and_say_where_they_lead(address: str) -> None:
    (link,) = parsed(html_of(f"[x]({address})")).all("a")
    assert link.attributes == {"href": address, "title": address, "target": "_blank", "rel": "noopener noreferrer"}


@pytest.mark.parametrize("form", ["[x]()", "![x]()"])
def test_a_link_without_an_address_does_not_lead_to_the_page_that_it_stands_in(form: str) -> None:
    (link,) = parsed(html_of(form)).all("a")
    assert (link.attributes, link.text[-1]) == ({}, "x")


def test_an_image_is_a_link_and_within_a_link_its_text() -> None:
    assert parsed(html_of(f"![a cat](https://{HOST}/cat.png)")).all("a")[0].text == "image: a cat"
    (link,) = parsed(html_of("[![a cat](https://a.b/cat.png)](https://c.d)")).all("a")
    assert (link.attributes["href"], link.text) == ("https://c.d", "image: a cat")


def test_entities_bring_no_character_back_that_cannot_be_seen() -> None:
    assert parsed(html_of("&#x202e; &lt;b&gt;")).text == "\\u202e <b>"


def test_definitions_of_references_stay_to_be_seen() -> None:
    assert f"[1]: javascript:{MARK}" in parsed(html_of(f"[x][1]\n\n[1]: javascript:{MARK}")).text


def test_markdown_too_deep_for_its_parser_is_shown_as_it_is_written() -> None:
    deep = "> " * 100 + "deep"
    assert parsed(html_of(deep)).text == deep
    assert len(parsed(html_of("> " * 10 + "deep")).all("blockquote")) == 10


def test_a_table_of_more_cells_than_it_writes_is_shown_as_it_is_written() -> None:
    columns, quoted = 181, "> "
    for before in ("", quoted):
        lines = ["|" + "a|" * columns, "|" + "-|" * columns, *["x"] * 362]
        written = html_of("\n".join(before + line for line in lines))
        assert "<table>" not in written
        assert len(written) < 10_000
        assert parsed(written).text.strip() == "".join(lines)
    assert len(parsed(html_of("|a|b|\n|-|-|\n" + "|x|y|\n" * 100)).all("td")) == 200


@pytest.mark.parametrize("language", sorted(LANGUAGES))
@pytest.mark.parametrize("code", ["x = 'a' # <b>\n", "{[(" * 700, "\"'`/*" * 700, "a" * 2_000, " \n" * 1_000])
def test_colored_code_is_all_there(language: str, code: str) -> None:
    assert parsed(Colored()(code, language)).text == code


def test_code_is_colored_unless_it_is_long() -> None:
    assert len(parsed(Colored()("x = 1\n" * 100, "python")).all("span", "ck-number")) == 100
    assert Colored()("x = 1\n" * 1_000, "python") == "x = 1\n" * 1_000


def test_code_has_no_colors_once_those_of_the_page_took_long() -> None:
    page = Colored()
    assert "ck-number" in page("x = 1", "python")
    assert 0 < page.seconds < COLORING_SECONDS
    page.seconds = COLORING_SECONDS + 1
    assert page("x = 1", "python") == "x = 1"


def test_code_of_a_language_that_is_not_known_has_no_colors() -> None:
    assert Colored()("<b>", "brainfuck") == "&lt;b&gt;"


def test_the_style_reaches_nothing_outside() -> None:
    style = tree_of(show(frame_of({}))).all("style")[0].text
    selectors = re.findall(r"(?:^|\})\s*([^{}]+)\{", style)
    assert len(selectors) > 20
    assert [selector for selector in selectors if ".contextkit" not in re.sub(r":is\([^)]*\) ", "", selector)] == []


# What is shown


def test_messages_show_role_model_tokens_and_time() -> None:
    at = pd.Timestamp(datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    rendered = show(frame_of({"role": "assistant", "model": "m-1", "token_count": 1200, "created_at": at}))
    for form in (items_of(rendered)[0].text, rendered.text):
        for part in ("assistant", "m-1", "1,200 tokens", "2026-03-01 09:30 UTC", "Hi"):
            assert part in form


def test_inherited_messages_are_marked_and_so_are_the_places_where_forks_part(sample: Engine) -> None:
    fork = context_id(sample, "import: CSV script, a mail when it fails")
    history = history_df(sample, fork)
    rendered = show(history)
    inherited = ["ck-inherited" in item.attributes["class"] for item in items_of(rendered)]
    assert inherited == [True] * 12 + [False] * 3
    assert "inherited" in items_of(rendered)[11].text
    (list_,) = tree_of(rendered).all("ul", "ck-list")
    marks = [
        (place, child.text)
        for place, child in enumerate(list_.below("li"))
        if "ck-fork" in child.attributes.get("class", "")
    ]
    one, other = history["source_context_id"].unique()[:2]
    own = "fork point: the messages from here on are its own"
    assert marks == [(0, f"inherited from {one}"), (9, f"inherited from {other}"), (14, own)]
    assert rendered.text.count(f"-- {own} --\n\nuser | #13 |") == 1


def test_a_call_and_its_result_are_one_item_even_where_calls_are_parallel() -> None:
    rows = [call("1", '{"in": "Rome"}'), call("2", '{"in": "Oslo"}'), result("2", "snow"), result("1", "sun"), {}]
    items = items_of(show(frame_of(*rows)))
    assert len(items) == 3
    assert [len(item.all("details")) for item in items] == [1, 1, 0]
    assert "weather" in items[0].text
    assert [[pre.text for pre in item.all("pre")] for item in items[:2]] == [
        ['{"in": "Rome"}', "sun"],
        ['{"in": "Oslo"}', "snow"],
    ]
    assert 'tool call: weather {"in": "Rome"}\n    result: sun' in show(frame_of(*rows)).text


def test_calls_without_a_result_say_so_and_results_without_a_call_stand_alone() -> None:
    items = items_of(show(frame_of(result("0", "lost"), call("1"), result(None, "no id"))))
    assert [len(item.all("details")) for item in items] == [0, 1, 0]
    assert "no result here" in items[1].text
    assert "no result here" in show(frame_of(call("1"))).text


def test_a_result_written_after_the_fork_point_stays_there() -> None:
    rows = frame_of(call("1"), result("1", "sun")).assign(source_context_id=["a", "c"], inherited=[True, False])
    assert len(items_of(show(rows))) == 2


def test_deleted_messages_are_struck_through(engine: Engine) -> None:
    load_sample(engine)
    root = context_id(engine, "import: CSV file rejected with an encoding error")
    first = history_df(engine, root)["message_id"].iloc[:1]
    delete_messages(engine, first)
    rendered = show(history_df(engine, root, include_deleted=True))
    struck = [item for item in items_of(rendered) if item.all("del")]
    assert items_of(rendered)[0] in struck
    assert len(struck) == len(tree_of(rendered).all("del")) == 2  # the sample has one of its own
    assert "deleted 20" in struck[0].text
    assert not tree_of(show(history_df(engine, root))).all("del")


def test_a_deleted_result_says_so_in_both_forms() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    rendered = show(frame_of(call("1"), result("1", "sun") | {"deleted_at": at}))
    assert "result, deleted 2026-01-02 00:00 UTC: sun" in rendered.text
    assert "deleted 2026-01-02 00:00 UTC" in items_of(rendered)[0].text


def test_long_messages_are_folded_and_short_ones_are_not() -> None:
    items = items_of(show(frame_of({}, {"content": "word " * 1_000}, {"content": "line\n" * 50})))
    assert [len(item.all("details")) for item in items] == [0, 1, 1]
    assert items[1].all("summary")[0].text.endswith("… 5,000 characters")
    assert items[1].all("div", "ck-content")[0].text.split() == ["word"] * 1_000


def test_a_message_is_cut_where_the_rest_is_counted() -> None:
    rendered = show(frame_of({}, {"content": "x" * (CHARACTERS + 1_234)}))
    assert "… 1,234 more characters, in content.iloc[1] of the frame" in items_of(rendered)[1].text
    assert "… 19,234 more characters, in content.iloc[1] of the frame" in rendered.text


def test_messages_past_the_limit_are_counted_and_the_slice_named_shows_them() -> None:
    history = frame_of(*({"content": f"message {number}"} for number in range(450)))
    shown: list[str] = []
    rest = history
    while True:
        rendered = show(rest)
        shown += [item.all("div", "ck-content")[0].text for item in items_of(rendered)]
        left = re.search(r"(\d+) more messages of (\d+); show\(history\.iloc\[(\d+):\]\)", rendered.html)
        assert (left is None) == (left_in(rendered.text) is None)
        if left is None:
            break
        assert int(left[1]) == len(rest) - MESSAGES
        rest = rest.iloc[int(left[3]) :]
    assert shown == list(history["content"])


def left_in(text: str) -> object:
    return re.search(r"more messages of", text)


def test_many_long_messages_are_no_more_than_a_page_holds() -> None:
    rendered = show(frame_of(*({"content": "x" * 10**6} for _ in range(100))))
    assert len(items_of(rendered)) == PAGE_CHARACTERS // CHARACTERS
    assert "90 more messages of 100;" in rendered.html


def test_a_page_shows_at_least_one_message_and_an_empty_frame_none(sample: Engine) -> None:
    assert len(items_of(show(frame_of({"content": "x" * 10**6})))) == 1
    assert items_of(show(messages_df(sample, Message.content == "nobody wrote this"))) == []
    assert show(messages_df(sample, Message.content == "nobody wrote this")).text == "no messages"


def test_frames_of_no_rows_or_of_null_contents_are_shown_whole() -> None:
    assert show(pd.DataFrame({"role": [], "content": []})).text == "no messages"
    for contents in ([None, "x", "y"], [None, None, None]):
        rendered = show(pd.DataFrame({"role": ["user"] * 3, "content": contents}))
        assert len(items_of(rendered)) == 3
        assert "more message" not in rendered.text


def test_numbers_and_times_are_shown_alike_of_whatever_type_they_came() -> None:
    at = "2026-03-01 09:30:00+00:00"
    typed = show(frame_of({"position": 1, "token_count": 2, "created_at": pd.Timestamp(at)}, {}))
    assert "user | #1 | 2 tokens | 2026-03-01 09:30 UTC" in typed.text
    assert show(frame_of({"position": 1.0, "token_count": 2.0, "created_at": at}, {})).text == typed.text
    for column in ("position", "created_at"):
        with pytest.raises(ValueError, match=f"the column {column} of a history has"):
            show(frame_of({column: "soon"}))


def test_several_contexts_each_have_a_title_and_say_what_they_hold(sample: Engine) -> None:
    contexts = contexts_df(sample).head(2)
    history = history_df(sample, contexts["context_id"]).merge(contexts[["context_id", "name"]])
    rendered = show(history)
    titles = [title.text for title in tree_of(rendered).all("h2")]
    assert titles == list(contexts["name"])
    counts = history.groupby("context_id", sort=False)["token_count"].agg(["size", "sum"])
    for about, (id_, row) in zip(tree_of(rendered).all("p", "ck-about"), counts.iterrows(), strict=True):
        assert about.text.startswith(f"{id_}, {row['size']} messages, {row['sum']:,} tokens")


def test_other_frames_of_messages_are_shown(sample: Engine) -> None:
    fork = context_id(sample, "import: CSV script, a mail when it fails")
    window = window_df(sample, fork, 100)
    assert len(items_of(show(window))) == len(window)
    assert len(items_of(show(messages_df(sample).head(20).set_index("message_id")))) > 10


def test_lines_stay_lines_and_html_stays_text() -> None:
    (content,) = tree_of(show(frame_of({"content": "one\ntwo <b>"}))).all("div", "ck-content")
    assert len(content.all("br")) == 1
    assert content.text == "onetwo <b>"


def test_notebooks_get_both_forms_and_terminals_the_text() -> None:
    rendered = show(frame_of({}))
    assert rendered._repr_mimebundle_() == {"text/html": rendered.html, "text/plain": rendered.text}
    assert rendered._repr_html_() == rendered.html
    assert repr(rendered) == rendered.text == "context c\n1 message\n\nuser\n    Hi"


def test_a_saved_page_stands_alone_and_allows_nothing(tmp_path: Path) -> None:
    rendered = show(frame_of({"content": "你好"}).assign(name="<title>"))
    rendered.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>Transcript: &lt;title&gt;</title>" in page
    assert "default-src 'none'" in page
    assert "<h1><bdi>Transcript: &lt;title&gt;</bdi></h1>" in page
    assert rendered.html in page


def test_a_fork_of_ones_own_is_shown(engine: Engine) -> None:
    load_sample(engine)
    fork = fork_context(engine, context_id(engine, "import: CSV file rejected with an encoding error"), at_version=3)
    at = datetime.now(UTC) + timedelta(seconds=1)
    append_messages(engine, fork, [{"role": "user", "content": "Or so?", "created_at": at}])
    assert "fork point" in items_text(show(history_df(engine, fork)))


def items_text(rendered: Rendered) -> str:
    return tree_of(rendered).all("ul", "ck-list")[0].text


def test_what_is_no_frame_of_messages_is_refused(sample: Engine) -> None:
    with pytest.raises(TypeError, match="a history is a frame, as of history_df, not Engine"):
        show(sample)  # type: ignore[arg-type] # the point
    with pytest.raises(ValueError, match="no content and no role"):
        show(contexts_df(sample))
