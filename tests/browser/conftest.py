"""A real browser, and what it notices of a page: requests, scripts that ran, boxes that were left."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine

from contextkit import load_sample
from tests.conftest import fresh_engine
from tests.hostile import MARK
from tests.secret_texts import PASSWORD

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright  # noqa: E402 # skipped without

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]
SIZE: Any = {"width": 1280, "height": 900}
PATIENCE = 30_000
LEAVES_ITS_BOX = """box => {
  const outer = box.getBoundingClientRect(), left = [];
  for (const element of box.querySelectorAll('*')) {
    let {left: l, right: r, top: t, bottom: b} = element.getBoundingClientRect();
    for (let above = element.parentElement; above !== box.parentElement; above = above.parentElement) {
      if (getComputedStyle(above).overflow === 'visible') continue;
      const clip = above.getBoundingClientRect();
      [l, r, t, b] = [Math.max(l, clip.left), Math.min(r, clip.right), Math.max(t, clip.top), Math.min(b, clip.bottom)];
    }
    if (l >= r || t >= b) continue;
    if (l < outer.left - 1 || r > outer.right + 1 || t < outer.top - 1 || b > outer.bottom + 1)
      left.push(element.outerHTML.slice(0, 200));
  }
  return left;
}"""
"""Elements that show something outside of a box, what their own boxes cut off left aside."""


@dataclass
class Watched:
    """A page, and what was noticed of it."""

    page: Page
    foreign: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def check_harmless(self, box: str) -> None:
        """Content ran no script, loaded nothing and drew nothing outside of the boxes of a selector."""
        assert self.dialogs == []
        assert [frame.evaluate(f"window.{MARK}") for frame in self.page.frames] == [None] * len(self.page.frames)
        assert self.foreign == []
        boxes = self.page.locator(box).all()
        assert boxes
        for element in boxes:
            assert element.evaluate(LEAVES_ITS_BOX) == []


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport=SIZE)
    yield watch(context)
    context.close()


def watch(context: BrowserContext) -> Watched:
    """A new page that reaches only this machine."""
    context.set_default_timeout(PATIENCE)
    watched = Watched(context.new_page())

    def decide(route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("data", "blob", "file") or address.hostname == "127.0.0.1":
            route.continue_()
        else:
            watched.foreign.append(route.request.url)
            route.abort()

    def dismiss(dialog: Any) -> None:
        watched.dialogs.append(dialog.message)
        dialog.dismiss()

    context.route("**/*", decide)
    context.on("dialog", dismiss)
    return watched


@pytest.fixture(scope="session")
def database(server_url: str, migrated: str) -> Iterator[Engine]:
    """A database for all pages of the run."""
    yield from fresh_engine(server_url, migrated)


def free_port() -> int:
    with closing(socket.socket()) as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


@dataclass(frozen=True)
class Studio:
    """`contextkit db studio`, running."""

    process: "subprocess.Popen[str]"
    url: str
    runtime: Path


@dataclass(frozen=True)
class Lab:
    """JupyterLab, running: its folder, and the address of a notebook in it."""

    folder: Path
    address: str


@pytest.fixture(scope="session")
def studio(database: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The studio on a database with the sample, until it is ended or the run is; the user's own kernel is broken."""
    load_sample(database)
    runtime, data = tmp_path_factory.mktemp("runtime"), tmp_path_factory.mktemp("data")
    kernel = data / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "another", "language": "python"}')
    environment = os.environ | {
        "BROWSER": "true",
        "DATABASE_URL": database.url.set(password=PASSWORD).render_as_string(hide_password=False),
        "JUPYTER_PATH": str(data),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "TMPDIR": str(runtime),
    }
    command = [sys.executable, "-m", "contextkit", "db", "studio", "--port", str(free_port())]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said, process.communicate()[1]
        yield Studio(process, said.group(), runtime)
    finally:
        process.send_signal(signal.SIGINT)  # none where it has ended
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab without a user's settings, over a folder of its own."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    token = secrets.token_hex()
    settings = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(home / part) for name, part in settings.items()}
    environment |= {"JUPYTER_TOKEN": token, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "is running at" in line:
                break
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Lab(folder, f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}")
    finally:
        process.terminate()
        process.wait(timeout=30)
