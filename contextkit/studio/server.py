"""Voilà with settings of its own: one notebook, this machine only, nothing from other hosts."""

import logging
import secrets
import signal
import sys
import tempfile
import webbrowser
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_runtime_dir
from tornado.ioloop import IOLoop
from traitlets.config import Config
from voila.app import Voila

DEFAULT_PORT = 8866
PORTS_TRIED = 50
# Scripts of the page itself are inline, and JupyterLab's extensions compile theirs. What content asks for elsewhere
# is not loaded whatever it got into the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)
REDIRECT = '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={}"><title>studio</title>'


def run(port: int | None) -> None:
    """Serve the notebook of this folder until Ctrl-C."""
    folder = Path(__file__).parent
    settings = {
        "allow_template_override": "NO",
        "allow_theme_override": "NO",
        "file_allowlist": [],
        "kernel_spec_manager_class": OwnKernel,
    }
    studio = Studio(
        config=Config(VoilaConfiguration=settings),
        config_file_paths=[],  # a user's settings for Voilà may open it to others
        ip="127.0.0.1",
        log_level=logging.ERROR,
        notebook_path=str(folder / "studio.ipynb"),
        port=DEFAULT_PORT if port is None else port,
        port_retries=PORTS_TRIED if port is None else 0,
        token=secrets.token_urlsafe(32),
        tornado_settings={"headers": {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}},
    )
    studio.initialize([])
    studio.template_paths.insert(0, str(folder))
    studio.start()


class OwnKernel(KernelSpecManager):
    """The kernel of the Python that runs this, whatever kernels are installed: another may not have contextkit."""

    def _kernel_dirs_default(self) -> list[str]:
        return []


class Studio(Voila):  # type: ignore[misc]  # Voilà is untyped
    """Voilà that says where it is, and opens a browser without telling other users the token."""

    page: Path | None = None

    def launch_browser(self) -> None:
        """Print the address, which now is known, and open it."""
        # An interrupt ends the loop between two of its steps: raised within one, it could leave kernels behind.
        loop = IOLoop.current()
        signal.signal(signal.SIGINT, lambda *_: loop.add_callback_from_signal(loop.stop))
        url = f"http://127.0.0.1:{self.port}/?token={self.token}"
        sys.stdout.write(f"contextkit studio is at {url}\nCtrl-C ends it.\n")
        sys.stdout.flush()
        # By a file that others cannot read, as the browser's command line is seen by all.
        folder = Path(jupyter_runtime_dir())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", prefix="contextkit-", suffix=".html", dir=folder, delete=False) as file:
            file.write(REDIRECT.format(url))
        self.page = Path(file.name)
        webbrowser.open(self.page.as_uri())

    def stop(self) -> None:
        """End the kernels, and remove the file; a second interrupt ends at once."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.page is not None:
            self.page.unlink(missing_ok=True)
        super().stop()
