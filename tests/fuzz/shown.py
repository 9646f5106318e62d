"""Messages as HTML: well-formed, of known elements, nothing that runs, loads or styles."""

from collections.abc import Callable

from contextkit.show.code import Colored
from contextkit.show.markdown import markdown, shown
from tests.markup import assert_harmless


def rendered(data: bytes) -> None:
    """Render what a message says."""
    source = data.decode("utf-8", "replace")
    assert_harmless(f"<style></style>{markdown(source, shown, Colored())}")


TARGETS: dict[str, Callable[[bytes], None]] = {"markdown": rendered}
