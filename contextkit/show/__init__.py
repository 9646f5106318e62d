"""Conversations to look at: HTML for notebooks that no content can turn against its reader, text for terminals."""

from contextkit.show.sides import show_diff
from contextkit.show.transcript import show

__all__ = ["show", "show_diff"]
