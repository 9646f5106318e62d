"""Claude Code's sessions: one `*.jsonl`, or a folder of them.

Kept: texts of user and assistant lines, tool calls (content: the input as JSON) and their results, the summary that
stands after a compaction. A block that is no text is named in brackets ("[image]"). Each line is a node with its
`uuid` as key; the lines of one API reply (one `message.id`) and the results of its calls, which hang on different
lines of it, are put one below the other in the file's order; the reply's output tokens are counted once, on its last
line. A session is a conversation, named by its title or summary, and goes on below a `compact_boundary`
(`logicalParentUuid`).

A side chain is a conversation of its own, per agent or, without an agent's id, per first line; an agent begins
without the session's history, so it is a root also where its first line has a parent there. A line that stands in
several files (`forkedFrom`, or the same `uuid` in a resumed session) belongs to the session it comes from, as far as
that is among the files: the original, else the one that ends first; what goes on below it in the others is linked to
it. In one file the first of equal lines counts. A line whose parent is nowhere is a root. Which session a line is
given to may change with a later copy of the folder; its message id is made of its `uuid` alone, so it is stored once.

Dropped, children moving up to the nearest kept ancestor: thinking, `isMeta` lines, system lines, progress,
attachments and every line of another type than user and assistant (snapshots, queue operations, types of tomorrow);
also files of a folder that are not `*.jsonl`. A chain with a malformed line is a Defect, one that is no JSON or no
object counts to the session itself. The files of a folder are read twice, the first time for who comes from whom.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from contextkit.formats.claude import message_rows
from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Row
from contextkit.formats.drafts import Draft, field, grow, leaf_below, moment

if TYPE_CHECKING:
    from contextkit.formats.files import Source

KINDS = ("user", "assistant")
NAMES = {"custom-title": "customTitle", "ai-title": "aiTitle", "summary": "summary"}
Owners = dict[str, tuple[str, str]]  # of a line, the keys of the conversation and the node that keep it


@dataclass(slots=True)
class Survey:
    """What a file has to do with others."""

    own: set[str] = attribute(default_factory=set)
    copied: set[str] = attribute(default_factory=set)
    wanted: set[str] = attribute(default_factory=set)
    ends_at: str = ""


@dataclass(slots=True)
class Chain:
    """A conversation in the making.

    `anchors`: of a line, the nearest one at or above it that is an assistant's or is kept. `reply_of`: the reply that
    a line is part of or has a result for; `tails`: a reply's last line so far, its results included. `results`: lines
    that are results; `answered`: ids of calls that have one. `tokens`: a reply's last line with rows, and its output
    tokens.
    """

    name: str | None = None
    drafts: dict[str, Draft] = attribute(default_factory=dict)
    tools: dict[str, str] = attribute(default_factory=dict)
    anchors: dict[str | None, str | None] = attribute(default_factory=dict)
    reply_of: dict[str | None, str] = attribute(default_factory=dict)
    tails: dict[str, str] = attribute(default_factory=dict)
    results: set[str] = attribute(default_factory=set)
    answered: set[str] = attribute(default_factory=set)
    tokens: dict[str, tuple[str, int]] = attribute(default_factory=dict)
    defect: Defect | None = None


def matches(value: object) -> bool:
    """Whether a file's first value is a line of this format."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return False
    marks = ({"sessionId"}, {"uuid", "parentUuid"}, {"leafUuid"}, {"messageId", "snapshot"})
    return any(names <= value.keys() for names in marks)


def read(source: "Source") -> Iterator[Conversation | Defect]:
    """Conversations of the sessions and of their side chains; what a conversation continues comes before it."""
    files = list(source.files())
    titles: dict[str, str] = {}
    if len(files) > 1:
        files = [file for file in files if file.name.removesuffix(".gz").endswith(".jsonl")]
        files = origins_first(files, [survey(file, titles) for file in files])
    owners: Owners = {}
    for file in files:
        yield from conversations(file, owners, titles)


def survey(file: "Source", titles: dict[str, str]) -> Survey:
    """Which lines a file has, which of them are copies, and which it names but does not have."""
    found = Survey()
    for _, value in file.records():
        if not isinstance(value, dict):
            continue
        note_title(value, titles)
        uuid, fork, time = value.get("uuid"), value.get("forkedFrom"), value.get("timestamp")
        origin = fork.get("messageUuid") if isinstance(fork, dict) else None
        copied = isinstance(fork, dict) or value.get("sessionId") != stem(file)
        if isinstance(uuid, str):
            (found.copied if copied else found.own).add(uuid)
        parents = (origin, value.get("parentUuid"), value.get("logicalParentUuid"))
        found.wanted.update(parent for parent in parents if isinstance(parent, str))
        found.ends_at = max(found.ends_at, time) if isinstance(time, str) else found.ends_at
    return found


def origins_first(files: "list[Source]", surveys: list[Survey]) -> "list[Source]":
    """The files by when they end, each after those that it continues."""

    def rank(number: int) -> tuple[str, str]:
        return surveys[number].ends_at, files[number].name

    numbers = sorted(range(len(files)), key=rank)
    homes: dict[str, int] = {}
    for number in numbers:
        homes.update((uuid, number) for uuid in surveys[number].own if uuid not in homes)
    for number in numbers:
        homes.update((uuid, number) for uuid in surveys[number].copied if uuid not in homes)
    done: dict[int, None] = {}
    stack, seen = numbers[::-1], set[int]()
    while stack:
        number = stack[-1]
        if number in seen:
            done[stack.pop()] = None
            continue
        seen.add(number)
        before = {homes[uuid] for uuid in surveys[number].wanted if uuid in homes} - seen
        stack.extend(sorted(before, key=rank, reverse=True))
    return [files[number] for number in done]


def stem(file: "Source") -> str:
    """A file's name without folders and endings."""
    return PurePosixPath(file.name).name.split(".jsonl")[0]


def note_title(value: object, titles: dict[str, str]) -> None:
    """Keep a title by the session or the line that it is given to."""
    if not isinstance(value, dict):
        raise DefectiveError("", f"object expected, {type(value).__name__} found")
    kind = value.get("type")
    if isinstance(kind, str) and kind in NAMES and isinstance(value.get(NAMES[kind]), str):
        titles[f"{kind}:{value.get('leafUuid' if kind == 'summary' else 'sessionId')}"] = value[NAMES[kind]]


def conversations(file: "Source", owners: Owners, titles: dict[str, str]) -> Iterator[Conversation | Defect]:
    """Conversations of one file, the session's first; adds its lines to the owners."""
    chains = {"": Chain()}
    sides: dict[str, str] = {}
    sessions: dict[str, None] = {}
    for line, value in file.records():
        chain = chains[""]
        try:
            note_title(value, titles)
            if given := field(value, "sessionId", str):
                sessions[given] = sessions.pop(given, None)
            if value.get("isSidechain") is True and (side := side_of(value, sides)):
                chain = chains.setdefault(side, Chain(f"agent {side}" if value.get("agentId") else "side chain"))
            add_line(chain, value, owners)
        except DefectiveError as error:
            chain.defect = chain.defect or Defect(line, error.place, error.reason)
    session = stem(file) if stem(file) in sessions or not sessions else next(reversed(sessions))
    for side, chain in chains.items():
        made = chain.defect or finished(chain, session, side, owners, titles)
        if isinstance(made, Defect) or made.nodes:
            yield made


def side_of(value: dict[str, Any], sides: dict[str, str]) -> str:
    """The agent of a side chain's line, else the chain's first line."""
    uuid, parent = field(value, "uuid", str) or "", field(value, "parentUuid", str) or ""
    side: str = field(value, "agentId", str) or sides.get(parent, uuid)
    if uuid:
        sides[uuid] = side
    return side


def add_line(chain: Chain, value: dict[str, Any], owners: Owners) -> None:
    """Add a line to its chain, unless it is there or in another conversation already."""
    kind, key = field(value, "type", str), field(value, "uuid", str)
    if key is None and kind in KINDS:
        raise DefectiveError("uuid", "a message without an id")
    if key is None or key in chain.drafts or key in owners:
        return
    origin = field(field(value, "forkedFrom", dict) or {}, "messageUuid", str, "forkedFrom.")
    if origin in owners:
        owners[key] = owners[origin]
        return
    parent = field(value, "parentUuid", str) or field(value, "logicalParentUuid", str)
    rows, message = list[Row](), dict[str, Any]()
    if kind in KINDS and value.get("isMeta") is not True:
        message = field(value, "message", dict) or {}
        rows = message_rows(message, key, chain.tools)
    reply = field(message, "id", str, "message.") if kind == "assistant" else None
    parent = chain_parent(chain, key, parent, reply, rows)
    chain.drafts[key] = Draft(key, parent, tuple(rows), moment(value.get("timestamp"), "timestamp"))
    if reply and rows:
        tokens = field(field(message, "usage", dict, "message.") or {}, "output_tokens", int, "message.usage.")
        if tokens is not None:
            chain.tokens[reply] = (key, tokens)


def chain_parent(chain: Chain, key: str, parent: str | None, reply: str | None, rows: list[Row]) -> str | None:
    """The parent of a line: its own, or within a reply and the results of its calls the line before it there."""
    anchor = chain.anchors.get(parent)
    chain.anchors[key] = key if rows or reply else anchor
    group = chain.reply_of.get(anchor)
    answers = {row.tool_call_id or "" for row in rows if row.role == "tool"}
    result = bool(answers) and not answers & chain.answered
    if group and (result or reply == group):
        chain.reply_of[key] = group
        if result:
            chain.results.add(key)
            chain.answered |= answers
        parent, chain.tails[group] = chain.tails[group], key
    elif group and anchor in chain.results:
        parent = chain.tails[group]
    if reply and key not in chain.reply_of:
        chain.reply_of[key] = reply
        chain.tails[reply] = key
    return parent


def finished(chain: Chain, session: str, side: str, owners: Owners, titles: dict[str, str]) -> Conversation | Defect:
    """The conversation of a chain, its lines added to the owners; a Defect where its parents form a cycle."""
    for key, tokens in chain.tokens.values():
        draft = chain.drafts[key]
        draft.rows = (*draft.rows[:-1], replace(draft.rows[-1], token_count=tokens))
    name = f"{session}/{side}" if side else session
    try:
        nodes, spots, links = grow(chain.drafts.values(), owners)
    except DefectiveError as error:
        return Defect(None, "parentUuid", f"line {error.place:.60}: {error.reason}")
    for key, spot in spots.items():
        if key in chain.results:  # what goes on from one of a reply's results has all of them
            spot = spots[chain.tails[chain.reply_of[key]]]
        if spot is not None:
            owners[key] = (name, spot) if isinstance(spot, str) else spot
    title = chain.name or title_of(chain, session, titles)
    last = spots[next(reversed(chain.drafts))] if chain.drafts else None
    active = leaf_below(nodes, last) or (nodes[-1].key if nodes else None)
    if side:
        links = {root: to for root, to in links.items() if to[0] == name}
    return Conversation(name, title, nodes, active, nodes[0].created_at if nodes else None, links, shares_nodes=True)


def title_of(chain: Chain, session: str, titles: dict[str, str]) -> str | None:
    """The session's given title, else its last summary, else its made-up title."""
    summaries = [titles[f"summary:{key}"] for key in chain.drafts if f"summary:{key}" in titles]
    given = [titles.get(f"custom-title:{session}"), *summaries[::-1], titles.get(f"ai-title:{session}")]
    return next((title for title in given if title), None)
