"""OpenAI chat JSON Lines, as for fine-tuning and preference tuning: a list of messages per line.

Neither lines nor messages have ids of their own. A line is known again by its `id` where it has one, else by its
first messages up to the first of the user, and by how many lines of the file begin like it so far: equal lines are
several conversations, and a line that has grown is the same one as long as lines keep their order. Messages are
known by their content and all that stands before them: an edited one is a sibling, and nothing is lost.

Tool definitions become a system message with the tool name `tools`. What is not kept: weights, names of users,
log probabilities, and of parts that are no text all but their type and address.

Written: a line per history, which may end with a message of the user. An assistant's calls join the text or the calls
right before them; tool definitions become `tools` of the line; a call or a result that needs a name and has none is
`unnamed`. Names and arguments are as they are stored, whatever a server allows. What is lost: which contexts are forks
of which, names, ids, times, token counts, models and embeddings, and place and spelling of the tool definitions.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Row
from contextkit.formats.files import Source
from contextkit.formats.histories import History, Told
from contextkit.formats.turns import Branches, as_json, read_each, read_json, text_of

ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
OUTPUTS = ("preferred_output", "non_preferred_output")
DEFINITIONS = ("tools", "functions")
UNNAMED = "unnamed"


def matches(value: object) -> bool:
    """Whether a record is a line of messages, or of two outputs to one input."""
    if not isinstance(value, dict):
        return False
    messages = value.get("messages")
    chat = isinstance(messages, list) and all(isinstance(item, dict) and "role" in item for item in messages)
    return chat or ("input" in value and any(name in value for name in OUTPUTS))


def read(source: Source) -> Iterator[Conversation | Defect]:
    """Conversations, one per line; of a preference line the preferred output is the active path."""
    return read_each(source, _conversation)


def _conversation(value: Any, seen: dict[str, int]) -> Conversation:
    if not isinstance(value, dict):
        raise DefectiveError("", "a line is an object")
    given = value if "messages" in value else value.get("input")
    if not isinstance(given, dict):
        raise DefectiveError("messages", "it is missing")
    place = "messages" if given is value else "input.messages"
    model = text_of(value.get("model"), "model")
    branches = Branches()
    for name in DEFINITIONS:
        if given.get(name):
            branches.add([Row("system", as_json(given[name]), tool_name=name)])
    _add(branches, given.get("messages"), place, model)
    outputs = [name for name in OUTPUTS if value.get(name) is not None] if given is not value else []
    end, before = branches.end, len(branches.nodes)
    for name in outputs:
        branches.end = end
        preferred = branches.nodes[before].key if len(branches.nodes) > before else None
        _add(branches, value[name], name, model, preferred)
        branches.close()
    return branches.conversation(value.get("id"), seen)


def _add(branches: Branches, messages: Any, place: str, model: str | None, preferred: str | None = None) -> None:
    if not isinstance(messages, list):
        raise DefectiveError(place, "it is no list of messages")
    for number, message in enumerate(messages):
        branches.add(_rows(message, f"{place}[{number}]", model), None if number else preferred)


def _rows(message: Any, place: str, model: str | None) -> list[Row]:
    """Give the text's row, then one for each tool call."""
    if not isinstance(message, dict):
        raise DefectiveError(place, "a message is an object")
    given = message.get("role")
    if not isinstance(given, str) or given not in ROLES:
        raise DefectiveError(f"{place}.role", f"the role {given!r:.40} is none of {', '.join(ROLES)}")
    role = ROLES[given]
    content = _content(message, f"{place}.content")
    if role == "tool":
        call = text_of(message.get("tool_call_id"), f"{place}.tool_call_id")
        return [Row(role, content or "", call, text_of(message.get("name"), f"{place}.name"))]
    if role != "assistant":
        if content is None:
            raise DefectiveError(f"{place}.content", "it is missing")
        return [Row(role, content)]
    model = text_of(message.get("model"), f"{place}.model") or model
    calls = _calls(message, place, model)
    return ([Row(role, content or "", model=model)] if content or not calls else []) + calls


def _calls(message: dict[str, Any], place: str, model: str | None) -> list[Row]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DefectiveError(f"{place}.tool_calls", "it is no list")
    if message.get("function_call"):  # the form before tool_calls, without ids
        calls = [*calls, {"function": message["function_call"]}]
    return [_call(call, f"{place}.tool_calls[{number}]", model) for number, call in enumerate(calls)]


def _call(call: Any, place: str, model: str | None) -> Row:
    function = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DefectiveError(f"{place}.function", "it is missing, or has no name")
    arguments = function.get("arguments", function.get("input", ""))
    text = arguments if isinstance(arguments, str) else as_json(arguments)
    return Row("assistant", text, text_of(call.get("id"), f"{place}.id"), function["name"], model=model)


def _content(message: dict[str, Any], place: str) -> str | None:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(_part(part, f"{place}[{number}]") for number, part in enumerate(content))
    return text_of(content, place) if content is not None else text_of(message.get("refusal"), place)


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise DefectiveError(place, "a part is an object with a type")
    kind = part["type"]
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return str(part[name])
    inner = part.get(kind)
    address = inner.get("url") if isinstance(inner, dict) else None
    shown = isinstance(address, str) and not address.startswith("data:")
    return f"[{kind}: {address}]" if shown else f"[{kind}]"


def write(histories: Iterable[History]) -> Iterator[dict[str, Any]]:
    """A line for each history."""
    for history in histories:
        definitions, messages = split_definitions(history.messages)
        yield {"messages": written(messages)} | definitions


def split_definitions(messages: Iterable[Told]) -> tuple[dict[str, Any], list[Told]]:
    """Tool definitions by what they are called in a request, and the messages that are left."""
    definitions: dict[str, Any] = {}
    left = []
    for told in messages:
        parsed = None
        if told.role == "system" and told.tool_name in DEFINITIONS and told.tool_name not in definitions:
            parsed = read_json(told.content)
        if isinstance(parsed, list):
            definitions[str(told.tool_name)] = parsed
        else:
            left.append(told)
    return definitions, left


def written(messages: Iterable[Told]) -> list[dict[str, Any]]:
    """The messages as the API has them."""
    made: list[dict[str, Any]] = []
    for told in messages:
        if not told.is_call:
            made.append(_message(told))
        elif told.tool_call_id is None:  # the form before tool_calls
            made.append({"role": "assistant", "content": None, "function_call": _function(told)})
        else:
            if not made or not _takes_calls(made[-1]):
                made.append({"role": "assistant", "content": None})
            call = {"id": told.tool_call_id, "type": "function", "function": _function(told)}
            made[-1].setdefault("tool_calls", []).append(call)
    return made


def _takes_calls(message: dict[str, Any]) -> bool:
    """Whether a call may join; a message without any text would not come back beside a call."""
    return message["role"] == "assistant" and bool("tool_calls" in message or message["content"])


def _function(told: Told) -> dict[str, str]:
    return {"name": told.tool_name or UNNAMED, "arguments": told.content}


def _message(told: Told) -> dict[str, Any]:
    if told.role != "tool":
        return {"role": told.role, "content": told.content}
    if told.tool_call_id is None:  # the form before tool_calls
        return {"role": "function", "name": told.tool_name or UNNAMED, "content": told.content}
    name = {} if told.tool_name is None else {"name": told.tool_name}
    return {"role": "tool", "tool_call_id": told.tool_call_id, **name, "content": told.content}
