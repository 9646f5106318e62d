"""Pairs of answers to one prompt, from where the contexts of a fork tree part."""

from collections.abc import Iterable, Iterator
from itertools import combinations, groupby
from operator import attrgetter
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from contextkit.formats.histories import (
    HistoryNode,
    HistoryTree,
    Told,
    families_df,
    histories_of,
    history_frames,
)
from contextkit.formats.openai import split_definitions, written
from contextkit.queries import Condition

DTYPES = {
    "prompt": "object",
    "answer_1": "object",
    "answer_2": "object",
    "model_1": "str",
    "model_2": "str",
    "context_id_1": "str",
    "context_id_2": "str",
    "preferred": "Int64",
}


def preferences_df(engine: Engine, *where: Condition) -> pd.DataFrame:
    """One row per pair of answers to the same prompt: where histories of one root part at assistants' messages.

    Histories are the effective ones, without deleted messages, and part where they say different things: so it does
    not matter how a fork is written, and equal answers are no pair. Three answers are three pairs.

    Args:
        engine: from `connect`.
        where: conditions on Context and Message, as for `contexts_df`; both answers are of contexts that meet them.

    Returns:
        prompt (the messages before, as `to_openai` gives them), answer_1 and answer_2 (likewise, up to the next
        message of a user), model_1, model_2, context_id_1, context_id_2, preferred. Answers are in the order of
        siblings: by the creation of the first contexts that have them, so of an import the active one is first.
        preferred is 1 (or 2) where one import knew that its source prefers that answer to the other: by an OpenAI
        preference line, ShareGPT's chosen and rejected, OpenAssistant's ranks; else null. Ordered by the creation of
        roots and contexts.

    Raises:
        LineageError: the parents of a context form a cycle.

    >>> pairs = preferences_df(engine)
    >>> pairs[["model_1", "model_2", "preferred"]]
           model_1      model_2  preferred
    0  atlas-large     birch-7b       <NA>
    1   cedar-code  atlas-large       <NA>
    >>> [message["role"] for message in pairs["prompt"][0]]
    ['system', 'user', 'assistant', 'tool', 'assistant', 'user']
    """
    families = families_df(engine, *where)
    rows: list[dict[str, Any]] = []
    for _, family in groupby(histories_of(history_frames(engine, families), families), attrgetter("root_id")):
        tree = HistoryTree()
        for history in family:
            tree.add(history.messages)
        for parent in (None, *tree.nodes):
            rows += _pairs(parent, [node for node in tree.after(parent) if node.told.role == "assistant"])
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in DTYPES.items()})
    frame.attrs = {"function": "preferences_df", "asked": {"where": len(where)}}
    return frame


def _pairs(parent: HistoryNode | None, siblings: list[HistoryNode]) -> Iterator[dict[str, Any]]:
    if len(siblings) < 2:
        return
    prompt = _messages(_before(parent))
    answers = [_messages(_answer(node)) for node in siblings]
    above = {node: set(_preferred(node, siblings)) for node in siblings}
    for (first, answer_1), (second, answer_2) in combinations(zip(siblings, answers, strict=True), 2):
        if answer_1 != answer_2:
            yield {
                "prompt": list(prompt),
                "answer_1": answer_1,
                "answer_2": answer_2,
                "model_1": first.told.model,
                "model_2": second.told.model,
                "context_id_1": first.told.context_id,
                "context_id_2": second.told.context_id,
                "preferred": 1 if first in above[second] else 2 if second in above[first] else None,
            }


def _preferred(node: HistoryNode, siblings: list[HistoryNode]) -> Iterator[HistoryNode]:
    """Give the siblings that an import knew to be preferred to a node, each preferred to the one before."""
    preferred = node.preferred_among(siblings)
    while preferred is not None:
        yield preferred
        preferred = preferred.preferred_among(siblings)


def _messages(messages: Iterable[Told]) -> list[dict[str, Any]]:
    return written(split_definitions(messages)[1])


def _before(node: HistoryNode | None) -> list[Told]:
    told = []
    while node is not None:
        told.append(node.told)
        node = node.parent
    return told[::-1]


def _answer(node: HistoryNode | None) -> Iterator[Told]:
    """Give the messages up to the next of a user, in the first history that goes on."""
    while node is not None and node.told.role != "user":
        yield node.told
        node = next(iter(node.after.values()), None)
