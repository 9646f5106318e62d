"""What examples in docstrings find: the public names, and `engine`, on a database with the sample for each of them."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

import contextkit
from contextkit.server import EmbeddedServer


@pytest.fixture(scope="session")
def sample_url() -> Iterator[str]:
    """URL of a database with the sample that others are copied from."""
    home = Path(tempfile.mkdtemp(prefix="contextkit-tests-"))
    home.chmod(0o711)
    server = EmbeddedServer(home)
    server.join()
    engine = contextkit.connect(server.url, write=True)
    contextkit.upgrade(engine)
    contextkit.load_sample(engine)
    engine.dispose()
    yield server.url
    server.leave()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def names_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> Iterator[None]:
    """Names that a docstring's example finds."""
    test = getattr(request.node, "dtest", None)
    if test is None:
        yield
        return
    doctest_namespace |= {name: getattr(contextkit, name) for name in contextkit.__all__}
    if not any("engine" in example.source for example in test.examples):
        yield
        return
    url = make_url(request.getfixturevalue("sample_url"))
    name = f"example_{abs(hash(request.node.nodeid))}"
    with psycopg.connect(url.set(database="template1").render_as_string(hide_password=False), autocommit=True) as admin:
        admin.execute(f"create database {name} template postgres strategy file_copy")
    engine = contextkit.connect(url.set(database=name), write=True)
    doctest_namespace["engine"] = engine
    yield
    engine.dispose()
