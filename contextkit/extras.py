"""Packages that come with an extra."""

from importlib import import_module
from types import ModuleType

from contextkit.errors import MissingExtraError


def needed(module: str, extra: str) -> ModuleType:
    """Give a module, or say which extra has it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
    raise MissingExtraError(f"{module.partition('.')[0]} is not installed; pip install 'contextkit[{extra}]'")
