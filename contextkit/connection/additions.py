"""What the user added to an engine of `connect`: its URL does not say it, and only its pool's connections follow."""

from typing import Any

from sqlalchemy import Engine

LISTENERS = "contextkit_listeners"
"""The execution option that says how many listeners `connect` itself put on an engine."""

_ENGINE_EVENTS = ("before_cursor_execute", "before_execute", "begin", "engine_connect")
_POOL_EVENTS = ("checkout", "connect", "first_connect")
_DIALECT_EVENTS = ("do_connect", "do_execute", "do_execute_no_params")


def note_listeners(engine: Engine) -> None:
    """Note that the listeners on an engine are contextkit's own; those on all engines are not."""
    own = sum(len(event) - len(event.parent_listeners) for event in _events(engine))
    engine.update_execution_options(**{LISTENERS: own})


def is_added_to(engine: Engine) -> bool:
    """Tell whether an engine has listeners or execution options besides those noted.

    Listeners that only learn what has happened do not count: they change nothing of what a statement sees.
    """
    options = engine.get_execution_options()
    return len(options) > 2 or sum(map(len, _events(engine))) != options[LISTENERS]


def _events(engine: Engine) -> list[Any]:
    heard = ((engine, _ENGINE_EVENTS), (engine.pool, _POOL_EVENTS), (engine.dialect, _DIALECT_EVENTS))
    return [getattr(target.dispatch, name) for target, names in heard for name in names]
