"""Steps from frame to frame, for `DataFrame.pipe`."""

from typing import Any

import pandas as pd

from contextkit.formats import openai
from contextkit.formats.histories import messages_of


def with_turn(history: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `turn`: 1 from the first user message of a history on, 2 from the second, ...

    What comes before the first user message, such as a system message, is turn 0.

    Args:
        history: from `history_df` (of one or several contexts) or `messages_df`, in its order.

    >>> with_turn(pd.DataFrame({"context_id": list("aaab"), "role": ["system", "user", "assistant", "user"]}))
      context_id       role  turn
    0          a     system     0
    1          a       user     1
    2          a  assistant     1
    3          b       user     1
    """
    asks = (history["role"] == "user").astype("int64")
    return history.assign(turn=asks.groupby(history["context_id"]).cumsum())


def to_openai(history: pd.DataFrame) -> list[dict[str, Any]]:
    """The messages of one history as dicts, as the API of OpenAI and of what is compatible takes them.

    An assistant's calls join its text right before them as `tool_calls`. Tool definitions that an import kept (system
    messages with the tool name `tools` or `functions`) are a parameter of their own in the API and are left out. Names
    and arguments are as they are stored. The API refuses a result whose call is not there, as a window may have it.

    Args:
        history: of one context, from `history_df` or `window_df`; at least role and content.

    Raises:
        ValueError: the frame has several contexts, or no role or content.

    >>> to_openai(pd.DataFrame({"role": ["user", "assistant"], "content": ["Hi", "Hello"]}))
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if missing := sorted({"role", "content"} - set(history.columns)):
        raise ValueError(f"a history has the columns role and content, and here is no {' and no '.join(missing)}")
    if "context_id" in history and history["context_id"].nunique() > 1:
        raise ValueError("the frame has several contexts; choose one, or go through groupby('context_id')")
    _, messages = openai.split_definitions(messages_of(history))
    return openai.written(messages)
