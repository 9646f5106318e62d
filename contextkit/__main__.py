"""`python -m contextkit` is the command `contextkit`."""

from contextkit.cli import app

if __name__ == "__main__":
    app()
