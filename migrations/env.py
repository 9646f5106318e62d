"""What Alembic runs: on the connection that contextkit.migrate gives, else on one of its own."""

from alembic import context
from sqlalchemy import Connection

from contextkit.comparison import environment_options
from contextkit.connection import connect
from contextkit.migrate import LOCK, direct_transaction


def run_with(connection: Connection) -> None:
    context.configure(connection=connection, **environment_options(connection))
    with context.begin_transaction():
        context.run_migrations()


def run_offline() -> None:
    context.configure(dialect_name="postgresql", literal_binds=True, **environment_options())
    with context.begin_transaction():
        context.execute(LOCK)
        context.run_migrations()


def run_alone() -> None:
    engine = connect(write=True)
    try:
        with direct_transaction(engine) as connection:
            run_with(connection)
    finally:
        engine.dispose()


if context.is_offline_mode():
    run_offline()
elif "connection" in context.config.attributes:
    run_with(context.config.attributes["connection"])
else:
    run_alone()
