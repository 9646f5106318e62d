"""ShareGPT: an array or JSON Lines of conversations of `from` and `value`, with `system`, `tools`, and two answers.

Ids are given as for `openai` where the file has none. Calls and results carry no ids in this format: the n-th call of a
conversation is named `call_n`, and results answer the calls before them in order. Tool definitions become a system
message with the tool name `tools`. What is not kept: everything else beside the conversation.

Written: JSON Lines, a line per history. What is lost, beside what `openai` loses: ids of calls, so that results answer
the calls before them in order; the spelling of their arguments; and where the tool definitions stood. Turns are as the
messages are, and so do not always alternate, as some trainers want it.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Row
from contextkit.formats.files import Source
from contextkit.formats.histories import History, Told
from contextkit.formats.turns import Branches, as_json, read_each, read_json, text_of

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
CALLS = ("function_call", "tool_call")


def matches(value: object) -> bool:
    """Whether a record is a conversation of `from` and `value`."""
    turns = value.get("conversations") if isinstance(value, dict) else None
    return isinstance(turns, list) and all(isinstance(turn, dict) and "from" in turn for turn in turns)


def read(source: Source) -> Iterator[Conversation | Defect]:
    """Conversations, one per record; of two answers the chosen one is the active path."""
    return read_each(source, _conversation)


def _conversation(value: Any, seen: dict[str, int]) -> Conversation:
    if not isinstance(value, dict) or not isinstance(value.get("conversations"), list):
        raise DefectiveError("conversations", "it is missing, or no list")
    branches, calls = Branches(), _Calls()
    if system := text_of(value.get("system"), "system"):
        branches.add([Row("system", system)])
    if tools := value.get("tools"):
        branches.add([Row("system", tools if isinstance(tools, str) else as_json(tools), tool_name="tools")])
    for number, turn in enumerate(value["conversations"]):
        branches.add(_rows(turn, f"conversations[{number}]", calls))
    end, before, first = branches.end, calls, len(branches.nodes)
    for name in ("chosen", "rejected"):
        if value.get(name) is None:
            continue
        branches.end, calls = end, before.copy()
        preferred = branches.nodes[first].key if len(branches.nodes) > first else None
        answers = value[name] if isinstance(value[name], list) else [value[name]]
        for number, turn in enumerate(answers):
            branches.add(_rows(turn, f"{name}[{number}]", calls), None if number else preferred)
        branches.close()
    return branches.conversation(value.get("id"), seen)


class _Calls:
    """Names the calls of a conversation and hands the names to their results."""

    def __init__(self, made: int = 0, open_: deque[tuple[str, str | None]] | None = None) -> None:
        self.made, self.open = made, open_ or deque()

    def copy(self) -> "_Calls":
        return _Calls(self.made, self.open.copy())

    def call(self, name: str | None) -> str:
        self.made += 1
        self.open.append((f"call_{self.made}", name))
        return self.open[-1][0]

    def result(self) -> tuple[str | None, str | None]:
        return self.open.popleft() if self.open else (None, None)


def _rows(turn: Any, place: str, calls: _Calls) -> list[Row]:
    if not isinstance(turn, dict):
        raise DefectiveError(place, "a turn is an object")
    speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        raise DefectiveError(f"{place}.value", "it is missing, or no text")
    if isinstance(speaker, str) and speaker in CALLS:
        return _call_rows(text, calls)
    if not isinstance(speaker, str) or speaker not in ROLES:
        known = ", ".join((*ROLES, *CALLS))
        raise DefectiveError(f"{place}.from", f"the role {speaker!r:.40} is none of {known}")
    if ROLES[speaker] == "tool":
        id_, name = calls.result()
        return [Row("tool", text, id_, name)]
    return [Row(ROLES[speaker], text)]


def _call_rows(text: str, calls: _Calls) -> list[Row]:
    """Give a row per call; what is no JSON of name and arguments is one call, as it is."""
    parsed = read_json(text)
    listed: list[Any] = parsed if isinstance(parsed, list) and parsed else [parsed]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in listed):
        return [Row("assistant", text, calls.call(None))]
    rows = []
    for call in listed:
        arguments = call.get("arguments", {})
        content = arguments if isinstance(arguments, str) else as_json(arguments)
        rows.append(Row("assistant", content, calls.call(call["name"]), call["name"]))
    return rows


def write(histories: Iterable[History]) -> Iterator[dict[str, Any]]:
    """A record for each history."""
    for history in histories:
        record: dict[str, Any] = {}
        messages = list(history.messages)
        if (tools := next((told for told in messages if _defines_tools(told)), None)) is not None:
            messages.remove(tools)
        if messages and messages[0].role == "system" and messages[0].tool_name is None and messages[0].content:
            record["system"] = messages.pop(0).content
        if tools is not None:
            record["tools"] = tools.content
        yield record | {"conversations": list(_turns(messages))}


def _defines_tools(told: Told) -> bool:
    return told.role == "system" and told.tool_name == "tools" and told.content != ""


def _turns(messages: list[Told]) -> Iterator[dict[str, str]]:
    """Give a turn for each message, and one for calls in a row."""
    for is_call, group in groupby(messages, attrgetter("is_call")):
        if is_call:
            yield from ({"from": "function_call", "value": value} for value in _values(list(group)))
        else:
            yield from ({"from": SPEAKERS[told.role], "value": told.content} for told in group)


def _values(calls: list[Told]) -> list[str]:
    """Give the calls as JSON; each as it is stored, where one has no name."""
    if any(call.tool_name is None for call in calls):
        return [call.content for call in calls]
    made = [{"name": call.tool_name, "arguments": _arguments(call.content)} for call in calls]
    return [as_json(made[0] if len(made) == 1 else made)]


def _arguments(content: str) -> Any:
    value = read_json(content)
    return value if isinstance(value, dict) else content
