"""Messages that a text asks for: by its words, by its meaning, or by both."""

import re
import warnings
from collections.abc import Hashable
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from sqlalchemy import Engine, Row

from contextkit.arrow import fetch
from contextkit.asked import check_terms
from contextkit.building import opened
from contextkit.connection import translated_errors
from contextkit.dtypes import to_frame
from contextkit.embed import Embedder, checked_vectors
from contextkit.errors import ContextkitWarning
from contextkit.models import is_storable
from contextkit.neighbors import neighbors_df
from contextkit.queries import (
    Condition,
    drop_sql,
    select_languages,
    select_text_index,
    select_text_matches,
    select_text_notes,
    text_index,
)

SearchMode = Literal["auto", "text", "semantic", "hybrid"]

RANKED = {"text_rank": "Int64", "semantic_rank": "Int64", "relevance": "float64", "distance": "float64"}
FUSION_CONSTANT = 60
FUSION_DEPTH = 100
MOST_ROWS = 2**31 - 1
LONE_MINUS = re.compile(r"-(?=[\s-]|$)")
"""One before no word; for each of a row of them PostgreSQL needs stack."""
ASKED_CHARACTERS = 20_000
"""With some times more words PostgreSQL runs out of stack."""


def search_df(
    engine: Engine,
    text: str,
    *where: Condition,
    k: int = 10,
    mode: SearchMode = "auto",
    embedder: Embedder | None = None,
    language: str = "english",
) -> pd.DataFrame:
    """The k live messages that a text asks for, best first, never fewer while more match.

    By words (text), as web searches do: all of them have to occur, "quoted ones" in that order, `or` between words
    asks for either, a minus before one for none of it (other minuses are passed over). Words are compared as
    `language` inflects them, and its stop words (the, of) are passed over. PostgreSQL's full text search does it
    (websearch_to_tsquery, ranked by ts_rank_cd), in the first 125,000 characters of a message.

    By meaning (semantic): `neighbors_df` of the text's embedding by cosine distance. It finds messages without one
    word of the text, and has no end: what is far away follows what is near. Messages without an embedding are
    left out.

    By both (hybrid): reciprocal rank fusion. A message counts the sum of 1 / (60 + rank) over the two lists that it
    is in, each taken to a depth of max(100, 2 k): Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms
    Condorcet and individual Rank Learning Methods, SIGIR 2009.

    Args:
        engine: from `connect`.
        text: what to look for.
        where: conditions on Message and Context.
        k: most messages.
        mode: text, semantic, hybrid, or auto: hybrid with an embedder, else text.
        embedder: the one that the messages were embedded with; for semantic and hybrid.
        language: a text search configuration, such as english, german, or simple: no inflection, no stop words.

    Returns:
        rank (from 1), text_rank and relevance (larger is better) where found by words, semantic_rank and distance
        where found by meaning, else null, and the columns of `messages_df`; by rank, ties by message id. `attrs`
        tells the `mode` that ran, whether the text has any `searchable` word, how many contents were `truncated`
        for the search by words, and under `neighbors` how the embeddings were searched.

    Raises:
        ValueError: the text is blank or holds a NUL, the language or mode does not exist, no embedder is given
            where one is needed, or its vector is all zero.
        DimensionError: the embedder's vector is not 1536 long.

    >>> search_df(engine, "password -locked", k=3)[["rank", "role", "content"]]
       rank       role                                            content
    0     1  assistant  {"account_id": 20417, "resend": "password_reset"}
    1     2       tool  {"cleared": true, "sent": "password_reset", "e...
    2     3       user  The password reset link tells me it has expire...
    """
    check_terms(k, "cosine")
    _check_asked(text, mode, embedder)
    _check_language(engine, language)
    runs = ("text" if embedder is None else "hybrid") if mode == "auto" else mode
    depth = min(max(FUSION_DEPTH, 2 * int(k)), MOST_ROWS) if runs == "hybrid" else int(k)
    asked = {"where": len(where), "k": int(k), "mode": mode, "embedder": embedder is not None, "language": language}
    attrs: dict[Hashable, Any] = {"function": "search_df", "asked": asked, "mode": runs, "depth": depth}
    lists = []
    if runs != "semantic":
        lists.append(_by_words(engine, text, where, depth, language))
        if not lists[0].attrs["searchable"]:
            warnings.warn(
                f"the text has no word that a search in {language} looks for, only such as it passes over; "
                "nothing was searched by words",
                ContextkitWarning,
                stacklevel=2,
            )
            attrs["mode"] = "semantic" if runs == "hybrid" else runs
    if runs != "text" and embedder is not None:
        lists.append(_by_meaning(engine, text, where, depth, embedder))
    frame = _fused(lists, int(k))
    done = {name: value for found in lists for name, value in found.attrs.items()}
    frame.attrs = {**attrs, **done, "rows": len(frame)}
    return frame


def create_text_index(engine: Engine, language: str = "english", *, progress: bool = True) -> pd.Series:
    """The index that `search_df` uses for words in a language, as a Series; built now unless it is there.

    Reading and writing go on meanwhile. It is built as `create_index` builds, and like there an interrupt leaves
    nothing of it. Searches use it by themselves. To drop it, run `drop index concurrently` with its name.

    Args:
        engine: from `connect(write=True)`.
        language: a text search configuration, as for `search_df`.
        progress: a bar, once it takes longer than two seconds.

    Returns:
        name, language, size (bytes) and created: False if the index was there.

    Raises:
        ValueError: the language does not exist.
        ReadOnlyError: the engine was opened for reading.
    """
    _check_language(engine, language)
    name, create = text_index(language)
    with opened(engine, progress=progress) as work:

        def find() -> Row[Any] | None:
            return work.connection.execute(select_text_index(name)).one_or_none()

        def valid() -> Row[Any] | None:
            found = find()
            return found if found is not None and found.valid else None

        def drop_rest() -> None:
            if find() is not None and valid() is None:
                work.run(drop_sql(name))

        found = work.lock(unless=valid)
        if found is None:
            drop_rest()
            with work.undone_by(drop_rest):
                work.run(create)
        size = int((found or find()).size)  # type: ignore[union-attr]
        return pd.Series({"name": name, "language": language, "size": size, "created": found is None}, dtype=object)


def _by_words(engine: Engine, text: str, where: tuple[Condition, ...], k: int, language: str) -> pd.DataFrame:
    text = LONE_MINUS.sub(" ", text)
    with translated_errors(), engine.connect() as connection:
        words, truncated = connection.execute(select_text_notes(text, *where, language=language)).one()
    # Without words no message matches, and comparing all of them takes long.
    statement = select_text_matches(text, *where, k=k if words else 0, language=language)
    found = to_frame(fetch(engine, statement, bulk=False)).rename(columns={"rank": "text_rank"})
    found.attrs = {"searchable": words > 0, "truncated": truncated}
    return found


def _by_meaning(engine: Engine, text: str, where: tuple[Condition, ...], k: int, embedder: Embedder) -> pd.DataFrame:
    (vector,) = checked_vectors(embedder([text]), 1)
    found = neighbors_df(engine, vector, *where, k=k)
    said = {name: value for name, value in found.attrs.items() if name not in ("function", "asked")}
    found = found.rename(columns={"rank": "semantic_rank"})
    found.attrs = {"neighbors": said}
    return found


def _fused(lists: list[pd.DataFrame], k: int) -> pd.DataFrame:
    """The k messages of ranked lists with the largest sum of reciprocal ranks, ties by id."""
    messages = [name for name in lists[0] if name not in RANKED]
    # By id, which the stable sort below keeps among equals.
    each = pd.concat(lists).groupby("message_id", as_index=False).first()
    frame = each.reindex(columns=[*RANKED, *messages]).astype(RANKED)
    ranks = frame[["text_rank", "semantic_rank"]].astype(float)
    fusion = (1 / (FUSION_CONSTANT + ranks)).sum(axis=1)
    best = np.argsort(-fusion.to_numpy(), kind="stable")[:k]
    frame = frame.iloc[best].reset_index(drop=True)
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return frame


def _check_asked(text: str, mode: str, embedder: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a text to search for is a str, not {type(text).__name__}")
    if not text.strip():
        raise ValueError("the text is blank; give words to search for")
    if not is_storable(text):
        raise ValueError("the text holds a NUL character or half of a surrogate pair, as no message does; remove it")
    if mode not in get_args(SearchMode):
        raise ValueError(f"mode is one of {', '.join(get_args(SearchMode))}, not {mode!r}")
    if mode in ("semantic", "hybrid") and embedder is None:
        raise ValueError(f"mode {mode} needs an embedder; pass the one that the messages were embedded with")
    if embedder is not None and not callable(embedder):
        raise TypeError(f"an embedder is a callable from texts to vectors, not {type(embedder).__name__}")
    if mode != "semantic" and len(text) > ASKED_CHARACTERS:
        raise ValueError(
            f"a text is searched by words up to {ASKED_CHARACTERS:,} characters, not {len(text):,}; "
            "shorten it, or take mode='semantic'"
        )


def _check_language(engine: Engine, language: str) -> None:
    with translated_errors(), engine.connect() as connection:
        known = connection.execute(select_languages()).scalars().all()
    if language not in known:
        raise ValueError(f"language is one of {', '.join(known)}, not {language!r:.40}")
