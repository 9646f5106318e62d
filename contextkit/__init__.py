"""LLM conversations in PostgreSQL, as pandas DataFrames: forks resolved, time travel, vector neighbors."""

import lazy_loader

# The names stand in __init__.pyi, where type checkers and editors read them too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
