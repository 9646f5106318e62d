"""Steps from frame to frame, for `DataFrame.pipe`."""

import pandas as pd


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
