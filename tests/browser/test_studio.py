"""The studio as a user has it: open, search, choose, fork tree, neighbors, difference, close."""

import signal
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil
import pytest
from playwright.sync_api import Browser
from sqlalchemy import Engine

from tests.browser.conftest import Studio, Watched, watch
from tests.secret_texts import PASSWORD_SHOWN


@pytest.fixture(scope="module")
def opened(browser: Browser, studio: Studio) -> Iterator[Watched]:
    """One page, and so one kernel, for all tests of the module."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    watched = watch(context)
    watched.page.goto(studio.url)
    yield watched
    context.close()


def test_it_is_driven_from_a_search_to_a_difference(opened: Watched) -> None:
    page = opened.page
    contexts = page.get_by_label("contexts")
    page.get_by_label("search").fill("CSV script")
    page.get_by_label("search").press("Enter")
    page.get_by_text("contexts 1 to 3, the last").wait_for()
    contexts.get_by_text("a mail when").click()
    page.get_by_role("heading", name="import: CSV script, a mail when it fails").wait_for()
    page.get_by_text("Simple enough. Thanks!").wait_for()

    page.get_by_role("button", name="fork tree").click()
    tree = page.get_by_label("fork tree")
    assert " ".join(tree.get_by_text("here").inner_text().split()).startswith("└─ import: CSV script, a mail when")
    tree.get_by_text("import: CSV file rejected with an encod").click()
    page.get_by_role("button", name="open", exact=True).click()
    page.get_by_role("heading", name="import: CSV file rejected with an encoding error").wait_for()

    page.get_by_role("button", name="neighbors").click()
    page.get_by_label("neighbors").get_by_text("0.000").first.wait_for()

    contexts.select_option(index=[0, 1])
    page.get_by_text("diff_df(engine").wait_for()
    page.get_by_role("heading", name=" and ").wait_for()


def test_it_asks_no_other_host(opened: Watched) -> None:
    assert opened.foreign == []


@pytest.mark.usefixtures("opened")
def test_no_list_of_processes_has_its_token_or_the_database(studio: Studio, database: Engine) -> None:
    token = studio.url.partition("token=")[2]
    assert len(token) > 32
    started = [psutil.Process(studio.process.pid), *psutil.Process(studio.process.pid).children(recursive=True)]
    words = " ".join(word for process in started for word in process.cmdline())
    assert "ipykernel" in words
    assert token not in words
    assert str(database.url.database) not in words
    assert not PASSWORD_SHOWN.search(words)
    (page,) = studio.runtime.glob("contextkit-*.html")
    assert token in page.read_text()
    assert page.stat().st_mode & 0o077 == 0


def test_without_the_token_it_shows_nothing(studio: Studio) -> None:
    assert urlsplit(studio.url).hostname == "127.0.0.1"
    with urlopen(studio.url.partition("?")[0]) as answer:
        assert "/login" in answer.url


@pytest.mark.usefixtures("opened")
def test_one_interrupt_ends_it_and_leaves_nothing(studio: Studio) -> None:
    started = psutil.Process(studio.process.pid).children(recursive=True)
    assert started
    studio.process.send_signal(signal.SIGINT)
    _, complaints = studio.process.communicate(timeout=30)
    assert studio.process.returncode == 0, complaints
    assert not [child for child in started if child.is_running()]
    assert list(studio.runtime.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(studio.url).port or 0))
