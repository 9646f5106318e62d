"""`contextkit db studio`: the widget `explore` as a page of its own, served to this machine alone."""

import os

from contextkit.connection import connect, found_url
from contextkit.extras import needed


def serve(port: int | None = None) -> None:
    """Serve the page until Ctrl-C, print its address and open it.

    The database is that of `connect()`, which the page's kernel learns from the environment. The address has a token,
    new each time, which is given to no other program on its command line.

    Args:
        port: by default 8866, or one near it that is free.

    Raises:
        DatabaseUnavailableError: nothing answers.
        MissingExtraError: Voilà is not installed.
    """
    needed("voila", "studio")
    from contextkit.studio.server import run

    os.environ["DATABASE_URL"] = found_url()
    engine = connect()
    try:
        with engine.connect():
            pass  # what cannot be reached is better told here than on the page
        run(port)
    finally:
        engine.dispose()
