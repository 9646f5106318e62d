"""`explore`: contexts to look at, in a notebook or in the studio."""

from typing import TYPE_CHECKING

from sqlalchemy import Engine

from contextkit.extras import needed

if TYPE_CHECKING:
    from ipywidgets import VBox


def explore(engine: Engine) -> "VBox":
    """Widget to browse a database: search contexts, read one, see its forks and neighbors, compare two.

    Choose a context for its transcript, its fork tree and the neighbors of its messages; choose two, with Ctrl, for
    their difference. Everything is read from the server when it is looked at, a page of 50 rows at a time, embeddings
    never; nothing is written. Each view shows the line of Python that gives its frame.

    Args:
        engine: from `connect`.

    Raises:
        MissingExtraError: ipywidgets is not installed.
    """
    needed("ipywidgets", "notebook")
    from contextkit.explore.widget import Explorer

    return Explorer(engine).view
