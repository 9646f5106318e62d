"""Generated exports, each with the defects that real ones have; every word in them is invented."""

import gzip
import json
import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
EPOCH = 1_750_000_000.25


def gpt_message(role: str, content: str | Json, **fields: Any) -> Json:
    """A ChatGPT message; `name` goes to its author, text becomes a content of parts."""
    author = {"role": role, "name": fields.pop("name", None), "metadata": {}}
    if isinstance(content, str):
        content = {"content_type": "text", "parts": [content]}
    return {"author": author, "content": content, "recipient": "all", "weight": 1.0, "metadata": {}} | fields


def gpt_conversation(key: str, nodes: Iterable[tuple[str, str | None, Json | None]], **fields: Any) -> Json:
    """A ChatGPT conversation of (node, parent, message), children in that order."""
    mapping: dict[str, Json] = {}
    for name, parent, message in nodes:
        mapping[name] = {"id": name, "parent": parent, "children": [], "message": message}
        if parent in mapping:
            mapping[parent]["children"].append(name)
    return {
        "title": f"About {key}",
        "create_time": EPOCH,
        "conversation_id": key,
        "id": key,
        "mapping": mapping,
    } | fields


def chatgpt_conversations() -> list[Json]:
    """Three conversations: a fork with hidden nodes, tools of all kinds, and one without messages."""
    hidden = {"is_visually_hidden_from_conversation": True}
    tea = gpt_conversation(
        "gpt-tea",
        [
            ("client-created-root", None, None),
            ("sys", "client-created-root", gpt_message("system", "", metadata=hidden, weight=0)),
            (
                "ctx",
                "sys",
                gpt_message("user", {"content_type": "user_editable_context", "user_profile": "a gardener"}),
            ),
            ("q", "ctx", gpt_message("user", "Which tea is mild?", create_time=EPOCH)),
            ("a1", "q", gpt_message("assistant", "White tea.", metadata={"model_slug": "m-1"}, create_time=None)),
            ("a2", "q", gpt_message("assistant", "Try oolong.", metadata={"model_slug": "m-2"}, create_time=EPOCH + 9)),
            ("think", "q", gpt_message("assistant", {"content_type": "thoughts", "thoughts": [{"content": "hm"}]})),
            ("recap", "think", gpt_message("assistant", {"content_type": "reasoning_recap", "content": "2 s"})),
            ("a3", "recap", gpt_message("assistant", "Green tea, briefly.")),
            ("q2", "a1", gpt_message("user", "And how hot?")),
        ],
        current_node="a3",
    )
    tools = gpt_conversation(
        "gpt-tools",
        [
            ("root", None, None),
            ("q", "root", gpt_message("user", {"content_type": "multimodal_text", "parts": [
                {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}, "Count the boats."]})),
            ("call", "q", gpt_message("assistant", {"content_type": "code", "language": "python", "text": "len(boats)"},
                                      recipient="python")),
            ("out", "call", gpt_message("tool", {"content_type": "execution_output", "text": "3"}, name="python")),
            ("more", "out", gpt_message("tool", {"content_type": "system_error", "name": "E", "text": "late"},
                                        name="python")),
            ("look", "more", gpt_message("assistant", 'search("boats")', recipient="browser")),
            ("page", "look", gpt_message("tool", {"content_type": "tether_browsing_display", "result": "one page",
                                                  "summary": None}, name="browser")),
            ("quote", "page", gpt_message("tool", {"content_type": "tether_quote", "url": "https://example.org",
                                                   "title": "Boats", "text": "Three."}, name="browser")),
            ("new", "quote", gpt_message("assistant", {"content_type": "hologram"})),
            ("end", "new", gpt_message("assistant", "Three boats.")),
        ],
        current_node=None,
        title=None,
        create_time=None,
    )  # fmt: skip
    return [tea, tools, gpt_conversation("gpt-empty", [("root", None, None)])]


def random_chatgpt(count: int, part: float = 1.0) -> list[Json]:
    """Random trees of all kinds of nodes; a part has the first nodes of each, its order and current node its own."""
    made = []
    for number in range(count):
        chance = random.Random(number)
        nodes: list[tuple[str, str | None, Json | None]] = [("root", None, None)]
        for place in range(chance.randint(1, 70)):
            parent = nodes[-1 if chance.random() < 0.75 else chance.randrange(len(nodes))][0]
            nodes.append((f"n{place}", parent, random_gpt_message(chance, f"{number}-{place}")))
        nodes = nodes[: max(1, round(part * len(nodes)))]
        chance = random.Random(f"{number} {part}")
        current = chance.choice([None, nodes[-1][0], chance.choice(nodes)[0]])
        conversation = gpt_conversation(f"gpt-{number}", nodes, current_node=current)
        for node in conversation["mapping"].values():
            chance.shuffle(node["children"])
        names = chance.sample(list(conversation["mapping"]), len(nodes))
        made.append(conversation | {"mapping": {name: conversation["mapping"][name] for name in names}})
    return made


def random_gpt_message(chance: random.Random, text: str) -> Json | None:
    """A message of any kind with a text of its own, or none; times in no order, or null."""
    image = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
    kinds: list[tuple[str, Any, Json]] = [
        *[("user", text, {}), ("assistant", text, {"metadata": {"model_slug": f"m-{chance.randint(1, 3)}"}})] * 5,
        ("user", {"content_type": "multimodal_text", "parts": [image, text, ""]}, {}),
        ("user", {"content_type": "user_editable_context", "user_profile": text}, {}),
        ("assistant", {"content_type": "code", "text": text}, {"recipient": "python"}),
        ("assistant", text, {"recipient": "browser"}),
        ("assistant", "", {"recipient": "browser"}),
        ("assistant", {"content_type": "thoughts", "thoughts": [{"content": text}]}, {}),
        ("assistant", {"content_type": "reasoning_recap", "content": text}, {}),
        ("assistant", {"content_type": "hologram"}, {}),
        ("assistant", " ", {}),
        ("assistant", text, {"weight": 0}),
        ("tool", {"content_type": "execution_output", "text": chance.choice(["", text])}, {"name": "python"}),
        ("tool", {"content_type": "tether_browsing_display", "result": text}, {"name": "browser"}),
        ("tool", {"content_type": "tether_quote", "url": "u", "title": "t", "text": text}, {"name": "browser"}),
        ("system", text, {"metadata": {"is_visually_hidden_from_conversation": True}}),
        ("system", text, {}),
    ]  # fmt: skip
    role, content, fields = chance.choice(kinds)
    time = chance.choice([None, EPOCH + chance.randint(0, 1000)])
    return None if chance.random() < 0.03 else gpt_message(role, content, create_time=time, **fields)


def write_chatgpt(path: Path, conversations: list[Json] | None = None) -> Path:
    """Write a ChatGPT export: a .json, a .zip of two parts beside other files, or the same as a folder."""
    conversations = chatgpt_conversations() if conversations is None else conversations
    return _write(path, {
        "conversations-000.json": conversations[:1], "conversations-001.json": conversations[1:],
        "user.json": {"id": "u"}, "message_feedback.json": [{"rating": "up"}], "chat.html": "<html></html>",
    }, conversations)  # fmt: skip


def claude_message(key: str, sender: str, text: str = "", blocks: list[Json] | None = None, **fields: Any) -> Json:
    """A Claude.ai message; without blocks its content is its text."""
    content = [{"type": "text", "text": text}] if blocks is None else blocks
    message = {"uuid": key, "sender": sender, "text": text, "content": content, "attachments": [], "files": []}
    return message | {"created_at": "2026-03-01T10:00:00.5Z", "updated_at": "2026-03-01T10:00:00.5Z"} | fields


def claude_conversation(key: str, messages: list[Json], **fields: Any) -> Json:
    """A Claude.ai conversation."""
    times = {"created_at": "2026-03-01T09:00:00Z", "updated_at": "2026-03-02T09:00:00Z"}
    return {
        "uuid": key,
        "name": f"About {key}",
        "account": {"uuid": "acc"},
        **times,
        "chat_messages": messages,
    } | fields


def claude_conversations() -> list[Json]:
    """Three conversations: a tree by pointers, a list with tools and empty texts, and one without messages."""
    root = "00000000-0000-4000-8000-000000000000"
    tree = claude_conversation(
        "cl-tree",
        [
            claude_message("q", "human", "Name a river.", parent_message_uuid=root),
            claude_message("a1", "assistant", "The Elbe.", parent_message_uuid="q"),
            claude_message("a2", "assistant", "The Loire.", parent_message_uuid="q"),
            claude_message("q2", "human", "Its source?", parent_message_uuid="a1"),
            claude_message("edit", "human", "Name a lake.", parent_message_uuid=root),
        ],
        current_leaf_message_uuid="a2",
    )
    blocks = [
        {"type": "thinking", "thinking": "I should look."},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"town": "Ulm"}},
        {"type": "tool_result", "tool_use_id": "t1", "name": "weather", "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_use", "id": None, "name": "clock", "input": {}},
        {"type": "tool_result", "tool_use_id": None, "name": None, "content": "noon"},
        {"type": "text", "text": "Rain at noon."},
        {"type": "image", "file": "x"},
    ]
    listed = claude_conversation(
        "cl-list",
        [
            claude_message("q", "human", "", [], attachments=[{"file_name": "", "extracted_content": "pasted"}],
                           files=[{"file_name": "map.png"}]),
            claude_message("a", "assistant", "", blocks),
            claude_message("nothing", "human", "", []),
            claude_message("b", "assistant", "Old export.", []),
        ],
        name="",
    )  # fmt: skip
    return [tree, listed, claude_conversation("cl-empty", [])]


def write_claude(path: Path, conversations: list[Json] | None = None) -> Path:
    """Write a Claude.ai export: a .json, a .zip beside other files, or the same as a folder."""
    conversations = claude_conversations() if conversations is None else conversations
    return _write(path, {
        "conversations.json": conversations, "users.json": [{"uuid": "u"}], "projects.json": [{"uuid": "p"}],
    }, conversations)  # fmt: skip


def code_line(kind: str, key: str, parent: str | None, content: str | list[Json] = "", **fields: Any) -> Json:
    """A line of a session; `reply` is its message's id, `tokens` the output's."""
    message: Json = {"role": kind, "content": content}
    if kind == "assistant":
        message |= {"id": fields.pop("reply", f"msg-{key}"), "model": "opus", "type": "message"}
        message["usage"] = {"input_tokens": 5, "output_tokens": fields.pop("tokens", 7)}
    line = {"type": kind, "uuid": key, "parentUuid": parent, "sessionId": "s1", "isSidechain": False}
    line["timestamp"] = "2026-05-01T08:00:00.000Z"
    return line | ({"message": message} if kind in ("user", "assistant") else {}) | fields


def call(key: str, name: str = "read") -> Json:
    """A block that calls a tool."""
    return {"type": "tool_use", "id": key, "name": name, "input": {"n": key}}


def result(key: str, content: Any = "done") -> Json:
    """A block with a tool's result."""
    return {"type": "tool_result", "tool_use_id": key, "content": content}


def claude_code_session() -> list[Json]:
    """A session with every defect that one file can have, but no malformed line."""
    text = {"type": "text", "text": "I read both."}
    return [
        {"type": "file-history-snapshot", "messageId": "x", "snapshot": {}},
        {"type": "summary", "summary": "Two files", "leafUuid": "end"},
        {"type": "queue-operation", "operation": "enqueue", "sessionId": "s1"},
        code_line("user", "meta", None, "Caveat: invented", isMeta=True),
        code_line("user", "u1", "meta", "Read two files."),
        code_line("assistant", "r-think", "u1", [{"type": "thinking", "thinking": "hm"}], reply="m1", tokens=1),
        code_line("assistant", "r-text", "r-think", [text], reply="m1", tokens=40),
        code_line("assistant", "r-call1", "r-text", [call("t1")], reply="m1", tokens=40),
        code_line("assistant", "r-call2", "r-call1", [call("t2")], reply="m1", tokens=40),
        code_line("progress", "p1", "r-call1"),
        code_line("user", "res1", "p1", [result("t1")]),
        code_line("user", "res2", "r-call2", [result("t2", [{"type": "text", "text": "two"}, {"type": "image"}])]),
        code_line("user", "res2", "r-call2", [result("t2", "the same line again")]),
        code_line("assistant", "a2", "res2", [{"type": "text", "text": "Both read."}], tokens=9),
        code_line("user", "u-first", "a2", "First wording"),
        code_line("user", "u-second", "a2", "Second wording"),
        code_line("system", "sys", "u-second", subtype="turn_duration"),
        code_line("system", "cb", None, subtype="compact_boundary", logicalParentUuid="sys"),
        code_line("user", "cs", "cb", "Summary of it all", isCompactSummary=True),
        code_line("assistant", "end", "cs", "Going on.", model="x"),
        code_line("user", "side1", None, "Look around", isSidechain=True),
        code_line("assistant", "side2", "side1", "Looked.", isSidechain=True),
        code_line("user", "ag1", "end", "Agent's task", isSidechain=True, agentId="ag"),
        code_line("user", "lost", "nowhere", "After a lost line"),
        code_line("hologram", "new", "end"),
    ]  # fmt: skip


@dataclass
class RandomSession:
    """Lines of a session as they come: replies over several lines, noise between, and every defect at random."""

    name: str
    chance: random.Random
    lines: list[Json] = field(default_factory=list)
    ends: list[str | None] = field(default_factory=lambda: [None])
    """Of each turn, the line that the next one hangs on."""
    lasts: list[int] = field(default_factory=lambda: [0])
    """Of each turn, the number of lines at its end."""

    def add(self, kind: str, parent: str | None, content: Any = "", **fields: Any) -> str:
        key = f"{self.name}-{len(self.lines)}"
        time = f"2026-05-01T{len(self.lines) // 60:02}:{len(self.lines) % 60:02}:00.000Z"
        content = f"{key} says" if content == "text" else content
        given: Json = {"sessionId": self.name, "timestamp": time} | fields
        self.lines.append(code_line(kind, key, parent, content, **given))
        return key

    def noise(self, parent: str | None) -> str | None:
        """A line of a dropped kind that the next one hangs on, perhaps."""
        kinds: list[tuple[str, Json]] = [
            ("progress", {}), ("attachment", {}), ("hologram", {}), ("system", {"subtype": "turn_duration"}),
            ("user", {"isMeta": True}),
        ]  # fmt: skip
        kind, fields = self.chance.choice(kinds)
        return self.add(kind, parent, "noise", **fields) if self.chance.random() < 0.3 else parent

    def turn(self, *, after: str | None = None) -> None:
        """A question and its reply, below the last turn, an earlier one, or none."""
        chance = self.chance
        parent = after or (self.ends[-1] if chance.random() < 0.8 else chance.choice(self.ends))
        parent = self.noise(parent)
        if chance.random() < 0.08:
            parent = self.add("system", None, subtype="compact_boundary", logicalParentUuid=parent)
            parent = self.add("user", parent, "text", isCompactSummary=True)
        if chance.random() < 0.05:
            parent = f"lost-{len(self.lines)}"
        self.ends.append(self.reply(self.noise(self.add("user", parent, "text"))))
        self.lasts.append(len(self.lines))
        if chance.random() < 0.2:
            self.lines.append(chance.choice(self.lines) | {"timestamp": "2026-05-01T00:00:00.000Z"})
        if chance.random() < 0.15:
            side = {"isSidechain": True} | chance.choice([{}, {"agentId": f"{self.name}-agent-{len(self.lines)}"}])
            task = self.add("user", self.ends[-1] if "agentId" in side else None, "text", **side)
            self.add("assistant", task, [{"type": "text", "text": f"{task} done"}], **side)
        if chance.random() < 0.2:
            self.lines.append({"type": "queue-operation", "sessionId": self.name})

    def reply(self, parent: str | None) -> str | None:
        """The lines of a reply, then the results of its calls in any order, each below its call or the last line."""
        chance, reply = self.chance, f"reply-{self.name}-{len(self.lines)}"
        pending = []
        for number in range(chance.randint(1, 5)):
            key = f"{self.name}-{len(self.lines)}"
            block = chance.choice([
                {"type": "thinking", "thinking": key}, {"type": "text", "text": f"{key} tells"}, call(f"t-{key}"),
                call(f"t-{key}", "grep"),
            ])  # fmt: skip
            before = {"type": "text", "text": f"{key} looks"}
            blocks = [before, block] if chance.random() < 0.2 else [block]
            parent = self.add("assistant", parent, blocks, reply=reply, tokens=10 * number + 1)
            pending += [(block["id"], parent)] if block["type"] == "tool_use" else []
        last = parent
        results = []
        for called, line in chance.sample(pending, len(pending)):
            content = [result(called, chance.choice([f"{called} gave", [{"type": "text", "text": f"{called} gave"}]]))]
            results.append(self.add("user", self.noise(chance.choice([line, last])), content))
        return chance.choice(results) if results else last

    def fork(self, name: str, *, resumed: bool) -> "RandomSession":
        """A session that begins with the lines of this one up to a turn's end: the same, or with ids of their own."""
        made = RandomSession(name, random.Random(name))
        number = self.chance.randrange(1, len(self.ends))
        end, last = self.ends[number], self.lasts[number]
        for line in self.lines[:last]:
            if line.get("isSidechain") is False:
                made.lines.append(line | {"sessionId": name} if resumed else line | {
                    "sessionId": name, "uuid": f"{name}-of-{line['uuid']}",
                    "parentUuid": line["parentUuid"] and f"{name}-of-{line['parentUuid']}",
                    "forkedFrom": {"sessionId": self.name, "messageUuid": line["uuid"]},
                })  # fmt: skip
        made.turn(after=end if resumed else f"{name}-of-{end}")
        return made


def random_sessions(count: int, turns: int, more: int = 0) -> dict[str, list[Json]]:
    """Lines of sessions by name, each with a fork of it and a resumed copy; then all go on for more turns."""
    made: list[RandomSession] = []
    for number in range(count):
        session = RandomSession(f"s{number}", random.Random(number))
        for _ in range(turns):
            session.turn()
        forks = [session.fork(f"a-fork{number}", resumed=False), session.fork(f"z-resumed{number}", resumed=True)]
        made += [session, *forks]
        for fork in forks:
            for _ in range(turns // 4):
                fork.turn()
    for session in made:
        for _ in range(more):
            session.turn()
    return {session.name: session.lines for session in made}


def write_sessions(folder: Path, sessions: dict[str, list[Json]]) -> Path:
    """Write a folder of sessions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in sessions.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def write_claude_code(folder: Path) -> Path:
    """Write a folder of four sessions: the one above, a fork of it, a resumed copy that goes on, a malformed one."""
    first = claude_code_session()
    shared = [line for line in first if line["type"] in ("user", "assistant")][1:9]
    fork = [line | {"sessionId": "a-fork", "uuid": f"f-{line['uuid']}", "parentUuid": f"f-{line['parentUuid']}",
                    "forkedFrom": {"sessionId": "s1", "messageUuid": line["uuid"]}} for line in shared]  # fmt: skip
    tail = code_line("user", "f-new", f"f-{shared[-1]['uuid']}", "Another way", sessionId="a-fork")
    copied = [line | {"sessionId": "b-resumed"} for line in first if "uuid" in line and not line.get("isSidechain")]
    later = "2026-05-02T08:00:00.000Z"
    goes_on = code_line("user", "b-new", "end", "Next day", sessionId="b-resumed", timestamp=later)
    wrong = [code_line("user", "w1", None, "fine", sessionId="wrong"),
             code_line("user", "w2", "w1", "robot", sessionId="wrong", message={"role": "robot", "content": "x"}),
             code_line("user", "w3", None, "fine", sessionId="wrong", isSidechain=True, agentId="good")]  # fmt: skip
    files = {"s1": first, "a-fork": [*fork, tail], "b-resumed": [*copied, goes_on], "wrong": wrong}
    write_sessions(folder, files)
    (folder / "settings.json").write_text('{"not": "a session"}', encoding="utf-8")
    return folder


def _write(path: Path, files: dict[str, Any], whole: Any) -> Path:
    texts = {name: data if isinstance(data, str) else json.dumps(data) for name, data in files.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in texts.items():
                archive.writestr(f"export/{name}", text)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(json.dumps(whole).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(whole), encoding="utf-8")
    else:
        path.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (path / name).write_text(text, encoding="utf-8")
    return path
