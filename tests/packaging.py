"""Try the wheel and the sdist, without extras, on each Python that is here: `make package`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from contextkit.server import EmbeddedServer

CHECKOUT = Path(__file__).parents[1]
NEW_ENOUGH = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def main() -> None:
    """Build once, then try each artifact on each interpreter."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["CONTEXTKIT_HOME"] = str(Path(folder, "home"))
        Path(folder).chmod(0o711)
        subprocess.run([sys.executable, "-m", "build", "-o", folder, str(CHECKOUT)], check=True, capture_output=True)
        server = EmbeddedServer()
        server.join()
        try:
            for python in interpreters():
                for artifact in sorted(Path(folder).glob("contextkit-*")):
                    try_out(python, artifact, server.url)
        finally:
            server.leave()


def interpreters() -> Iterator[str]:
    """Each Python of a supported version, by its command."""
    for version in VERSIONS:
        command = f"python{version}"
        try:
            done = subprocess.run([command, "-c", NEW_ENOUGH], check=False, capture_output=True)
        except FileNotFoundError:
            done = None
        if done is None or done.returncode:
            print(f"{command}: not here")
        else:
            yield command


def try_out(python: str, artifact: Path, url: str) -> None:
    """Install into a new environment and run the smoke test from a folder that is not the checkout."""
    name = f"smoke_{python}_{artifact.suffix}".replace(".", "_")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    database = make_url(url).set(database=name).render_as_string(hide_password=False)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"DATABASE_URL": database}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, str(artifact), "-c", str(CHECKOUT / "constraints.txt")], check=True)
        # -P, as beside the test stands a folder that is named as a module of Python's.
        smoke = [f"{folder}/bin/python", "-P", str(CHECKOUT / "tests" / "smoke.py")]
        done = subprocess.run(smoke, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    print(f"{python}, {artifact.name}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
