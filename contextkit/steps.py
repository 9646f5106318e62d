"""Steps from frame to frame, for `DataFrame.pipe`."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contextkit.dtypes import embedding_matrix
from contextkit.formats import openai
from contextkit.formats.histories import messages_of

AXES_TRIED = 20
ROUNDS = 8


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


def with_projection(messages: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns `projection_x` and `projection_y`: where each embedding lies on a map of all of them.

    The two are the first principal components (PCA), so distances on the map are lower bounds of those between the
    embeddings. Rows without an embedding have null in both. The same rows always give the same map. Other tools that
    draw maps, embedding-atlas among them, take columns of these names.

    Args:
        messages: with embeddings, from `messages_df` or `history_df`.

    Raises:
        ValueError: the frame has no embeddings; load it with embeddings=True.
    """
    matrix = embedding_matrix(messages)
    has_embedding = ~np.isnan(matrix).any(axis=1)
    places = np.full((len(matrix), 2), np.nan)
    if has_embedding.any():
        embeddings = matrix[has_embedding]
        centered = embeddings - embeddings.mean(axis=0)
        places[has_embedding] = centered @ _principal_axes(centered)
    return messages.assign(projection_x=places[:, 0], projection_y=places[:, 1])


def _principal_axes(centered: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two directions of most variance: subspace iteration, then the SVD within the subspace.

    See Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithm 4.4. A whole
    SVD of 50,000 embeddings takes minutes, this a second.
    """
    length = centered.shape[1]
    start = np.random.default_rng(0).standard_normal((length, min(AXES_TRIED, length)))
    axes: NDArray[np.float32] = start.astype(np.float32)
    for _ in range(ROUNDS):
        axes, _ = np.linalg.qr(centered.T @ (centered @ axes))
    within = centered @ axes
    axes = axes @ np.linalg.svd(within.T @ within)[0][:, :2]
    largest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
    axes *= np.sign(largest)  # a direction and its opposite are as good: always take the same
    return axes


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
