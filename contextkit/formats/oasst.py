"""OpenAssistant trees, JSON Lines: nested replies, or the flat form with a message per line.

What is not kept: languages, labels, reviews and emojis, and the ranks as numbers (the order of siblings is).

Written: the flat form, a line per message, the histories of a root merged as long as they say the same. The first of
siblings has rank 0, others have one as far as an import knew it. What is lost: names, token counts, embeddings, all but
one of contexts with equal histories, and a context whose history another one goes on from. What it cannot hold is
refused: system and tool messages, and calls.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Node, Row
from contextkit.formats.drafts import moment
from contextkit.formats.files import Source
from contextkit.formats.histories import History, HistoryNode, HistoryTree, Told
from contextkit.formats.units import id_of

ROLES = {"prompter": "user", "assistant": "assistant"}
SPEAKERS = {"user": "prompter", "assistant": "assistant"}
DELETED = datetime(1970, 1, 1, tzinfo=UTC)
"""Deleted from the beginning: the format does not say when. An import moves it to when the message was written."""

Placed = tuple[int, dict[str, Any]]


class _DefectiveError(Exception):
    """Carries the defect."""

    def __init__(self, line: int, place: str, reason: str) -> None:
        super().__init__(reason)
        self.defect = Defect(line, place, reason)


def matches(value: object) -> bool:
    """Whether a record is a tree or a message of OpenAssistant."""
    if not isinstance(value, dict):
        return False
    prompt = value.get("prompt")
    return (isinstance(prompt, dict) and "message_id" in prompt) or {"message_id", "text", "role"} <= value.keys()


def read(source: Source) -> Iterator[Conversation | Defect]:
    """Conversations, one per tree; the active path goes through the lowest ranks."""
    flat: dict[str, Placed] = {}
    for line, value in source.records():
        try:
            if isinstance(value, dict) and isinstance(value.get("prompt"), dict):
                yield _nested(line, value)
            else:
                message = _message(line, value)
                if message["message_id"] in flat:
                    yield Defect(line, "message_id", "it stands twice in the file")
                else:
                    flat[message["message_id"]] = (line, message)
        except _DefectiveError as error:
            yield error.defect
    yield from _flat(flat)


def _nested(line: int, tree: dict[str, Any]) -> Conversation:
    prompt = tree["prompt"]
    found: list[Placed] = []
    parents: dict[str, str | None] = {}
    waiting: list[tuple[Any, str | None]] = [(prompt, None)]
    while waiting:
        value, parent = waiting.pop()
        message = _message(line, value)
        if message["message_id"] in parents:
            raise _DefectiveError(line, "message_id", "it stands twice in the tree")
        parents[message["message_id"]] = parent
        found.append((line, message))
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            raise _DefectiveError(line, "replies", "it is no list")
        ordered = sorted((_message(line, reply) for reply in replies), key=_rank)
        waiting += [(reply, message["message_id"]) for reply in ordered[::-1]]
    key = tree.get("message_tree_id") or prompt["message_id"]
    if not isinstance(key, str):
        raise _DefectiveError(line, "message_tree_id", "it is no text")
    return _conversation(key, found, parents)


def _flat(messages: dict[str, Placed]) -> Iterator[Conversation | Defect]:
    """Give a conversation per root, whatever order the lines have."""
    replies: dict[str, list[Placed]] = {}
    roots: list[Placed] = []
    left = dict(messages)
    for line, message in messages.values():
        parent = message.get("parent_id")
        if parent is None:
            roots.append((line, message))
        elif parent in messages:
            replies.setdefault(parent, []).append((line, message))
        else:
            yield Defect(line, "parent_id", "no message of the file has this id")
    by_tree: dict[str, list[Placed]] = {}
    for line, message in roots:
        by_tree.setdefault(message.get("message_tree_id") or message["message_id"], []).append((line, message))
    for key, starts in by_tree.items():
        found: list[Placed] = []
        parents: dict[str, str | None] = {}
        waiting = _ranked(starts)[::-1]
        while waiting:
            line, message = waiting.pop()
            id_ = message["message_id"]
            left.pop(id_, None)
            found.append((line, message))
            parents[id_] = message.get("parent_id")
            waiting += _ranked(replies.get(id_, []))[::-1]
        try:
            yield _conversation(key, found, parents)
        except _DefectiveError as error:
            yield error.defect
    for line, message in left.values():
        if message.get("parent_id") in messages:
            yield Defect(line, "parent_id", "the message hangs on one that is left out, or on itself")


def _conversation(key: str, found: list[Placed], parents: dict[str, str | None]) -> Conversation:
    nodes = []
    ranked: dict[str | None, list[tuple[float, str]]] = {}  # of siblings, the first of each rank
    for line, message in found:
        id_, rank = message["message_id"], message.get("rank")
        siblings = ranked.setdefault(parents[id_], [])
        below = next((key for before, key in reversed(siblings) if rank is not None and before < rank), None)
        nodes.append(_node(line, message, parents[id_], below))
        if rank is not None and (not siblings or siblings[-1][0] < rank):
            siblings.append((rank, id_))
    return Conversation(key, None, nodes, _first_leaf(nodes))


def _first_leaf(nodes: list[Node]) -> str | None:
    """Give the leaf that is reached by taking the first of the siblings everywhere."""
    leaf: str | None = None
    for node in nodes:  # depth first, so the first path comes first
        if node.parent != leaf:
            break
        leaf = node.key
    return leaf


def _node(line: int, message: dict[str, Any], parent: str | None, below: str | None) -> Node:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _DefectiveError(line, "role", f"the role {role!r:.40} is none of {', '.join(ROLES)}")
    text, model = message.get("text"), message.get("model_name")
    if text is None and message.get("deleted"):
        text = ""
    if not isinstance(text, str):
        raise _DefectiveError(line, "text", "it is missing, or no text")
    if not (model is None or isinstance(model, str)):
        raise _DefectiveError(line, "model_name", "it is no text")
    created_at = _time(line, message.get("created_date"))
    deleted_at = (created_at or DELETED) if message.get("deleted") else None
    row = Row(ROLES[role], text, model=model)
    return Node(message["message_id"], parent, (row,), created_at, deleted_at, below)


def _message(line: int, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _DefectiveError(line, "", "a message is an object")
    for name in ("message_id", "parent_id", "message_tree_id"):
        given = value.get(name)
        if not (given is None or isinstance(given, str)) or (name == "message_id" and not given):
            raise _DefectiveError(line, name, "it is missing, or no text")
    rank = value.get("rank")
    # NaN is no number: it has no place among others. A union would be made anew, which takes long.
    if not (rank is None or (isinstance(rank, (int, float)) and rank == rank)):
        raise _DefectiveError(line, "rank", "it is no number")
    return value


def _ranked(siblings: list[Placed]) -> list[Placed]:
    return sorted(siblings, key=lambda placed: _rank(placed[1]))


def _rank(message: dict[str, Any]) -> tuple[bool, float]:
    rank = message.get("rank")
    return rank is None, rank or 0


def _time(line: int, value: object) -> datetime | None:
    try:
        return moment(value, "created_date")
    except DefectiveError as error:
        raise _DefectiveError(line, error.place, error.reason) from None


def write(histories: Iterable[History]) -> Iterator[dict[str, Any]]:
    """A line for each message, those of one root one after the other.

    Raises:
        ValueError: a message is no user's or assistant's, or a tool call.
    """
    for _, family in groupby(histories, attrgetter("root_id")):
        tree, ids = HistoryTree(), list[str]()
        ranks: list[int | None] = []
        used: set[str] = set()
        for history in family:
            for node in tree.add(history.messages):
                parent = None if node.parent is None else ids[node.parent.number]
                ids.append(_new_id(node.told.message_id, parent, used))
                ranks.append(_rank_of(node, tree, ranks))
                yield _line(node.told, ids[-1], parent, ids[0], ranks[-1])


def _new_id(message_id: str, parent: str | None, used: set[str]) -> str:
    # A message may follow different ones, where a fork by copy has edited those before it.
    id_ = message_id if message_id not in used else id_of(f"{parent}/{message_id}")
    used.add(id_)
    return id_


def _rank_of(node: HistoryNode, tree: HistoryTree, ranks: list[int | None]) -> int | None:
    """Give 0 to the first of siblings, and one more than the one that an import knew to be preferred."""
    siblings = tree.after(node.parent)
    if node is next(iter(siblings)):
        return 0
    preferred = node.preferred_among(siblings)
    rank = None if preferred is None else ranks[preferred.number]
    return None if rank is None else rank + 1


def _line(told: Told, id_: str, parent: str | None, tree: str, rank: int | None) -> dict[str, Any]:
    if told.role not in SPEAKERS or told.is_call:
        what = "a tool call" if told.is_call else f"a {told.role} message"
        raise ValueError(
            f"context {told.context_id} has {what}, and oasst holds only texts of users and assistants; "
            "leave such contexts out by a condition, or take another format"
        )
    return {
        "message_id": id_,
        "parent_id": parent,
        "message_tree_id": tree,
        "created_date": told.created_at.isoformat(),
        "text": told.content,
        "role": SPEAKERS[told.role],
        "rank": rank,
        "deleted": False,
        "model_name": told.model,
    }
