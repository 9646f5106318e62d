"""Pairs of answers to one prompt, from where the contexts of a fork tree part."""

from collections.abc import Iterable, Iterator
from itertools import combinations, groupby
from operator import attrgetter
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from contextkit.formats.histories import Place, Told, Tree, families_df, histories_of, history_frames
from contextkit.formats.oasst import is_ranked_below
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

    Histories are the effective ones, without deleted messages, and part where role, content, call or model differ: so
    it does not matter how a fork is written, and equal answers are one. Three answers are three pairs.

    Args:
        engine: from `connect`.
        where: conditions on Context and Message, as for `contexts_df`; both answers are of contexts that meet them.

    Returns:
        prompt (the messages before, as `to_openai` gives them), answer_1 and answer_2 (likewise, up to the next
        message of a user), model_1, model_2, context_id_1, context_id_2, preferred. Answers are in the order of
        siblings: by the creation of the first contexts that have them, so of an import the active one is first.
        preferred is 1 where an import knew that its source prefers the first: an OpenAI preference line, ShareGPT's
        chosen and rejected, OpenAssistant's ranks; else null. Ordered by the creation of roots and contexts.

    Raises:
        LineageError: the parents of a context form a cycle.
    """
    families = families_df(engine, *where)
    rows: list[dict[str, Any]] = []
    for _, family in groupby(histories_of(history_frames(engine, families), families), attrgetter("root_id")):
        tree = Tree()
        for history in family:
            tree.add(history.messages)
        rows += _pairs(tree)
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in DTYPES.items()})
    frame.attrs = {"function": "preferences_df", "asked": {"where": len(where)}}
    return frame


def _pairs(tree: Tree) -> Iterator[dict[str, Any]]:
    for parent, after in [(None, tree.first), *((place, place.after) for place in tree.places)]:
        answers = [place for place in after.values() if place.told.role == "assistant"]
        prompt = _messages(_before(parent)) if len(answers) > 1 else []
        for first, second in combinations(answers, 2):
            yield {
                "prompt": prompt,
                "answer_1": _messages(_answer(first)),
                "answer_2": _messages(_answer(second)),
                "model_1": first.told.model,
                "model_2": second.told.model,
                "context_id_1": first.told.context_id,
                "context_id_2": second.told.context_id,
                "preferred": 1 if is_ranked_below(second.told) else None,
            }


def _messages(messages: Iterable[Told]) -> list[dict[str, Any]]:
    return written(split_definitions(messages)[1])


def _before(place: Place | None) -> list[Told]:
    told = []
    while place is not None:
        told.append(place.told)
        place = place.parent
    return told[::-1]


def _answer(place: Place | None) -> Iterator[Told]:
    """Give the messages up to the next of a user, in the first history that goes on."""
    while place is not None and place.told.role != "user":
        yield place.told
        place = next(iter(place.after.values()), None)
