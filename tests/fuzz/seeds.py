"""What fuzzing begins with: files that the tests make, of every format, in pieces small enough to change often."""

import gzip
import io
import json
import zipfile
from typing import Any

from contextkit.formats import FORMATS
from tests import hostile
from tests.fixtures_exports import (
    chatgpt_conversations,
    claude_code_session,
    claude_conversations,
    random_chatgpt,
    random_sessions,
)

MOST_BYTES = 5_200
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"word": "tide"}'}}
CHAT: list[Any] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "u"}}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "high"},
    {"role": "assistant", "function_call": {"name": "look", "arguments": "{}"}, "model": "m"},
    {"role": "function", "name": "look", "content": "low"},
]
TURNS: list[Any] = [
    {"from": "human", "value": "Look"},
    {"from": "function_call", "value": '[{"name": "look", "arguments": {"word": "tide"}}]'},
    {"from": "observation", "value": "high"},
    {"from": "gpt", "value": "It is high."},
]
FLAT: dict[str, Any] = {"role": "prompter", "text": "x", "created_date": "2024-01-01T00:00:00+00:00", "rank": None}
RECORDS: list[list[Any]] = [
    [{"id": 7, "messages": CHAT, "tools": [{"type": "function"}], "model": "m"}],
    [{"input": {"messages": CHAT[:2]}, "preferred_output": CHAT[-2:-1], "non_preferred_output": CHAT[4:5]}],
    [{"id": "s", "system": "Be short.", "tools": "[]", "conversations": TURNS}],
    [{"conversations": TURNS[:1], "chosen": TURNS[-1], "rejected": [TURNS[-1]]}],
    [FLAT | {"message_id": "a", "parent_id": None, "message_tree_id": "t"},
     FLAT | {"message_id": "b", "parent_id": "a", "role": "assistant", "rank": 1, "model_name": "m"},
     FLAT | {"message_id": "c", "parent_id": "a", "role": "assistant", "rank": 0, "deleted": True}],
    [{"message_tree_id": "t", "prompt": FLAT | {"message_id": "a", "replies": [
        FLAT | {"message_id": "b", "role": "assistant", "rank": 1, "replies": []},
        FLAT | {"message_id": "c", "role": "assistant", "rank": 0, "replies": []}]}}],
]  # fmt: skip


def json_seeds() -> list[bytes]:
    """Files of JSON records, a format each."""
    sessions = random_sessions(1, 2)
    records = [
        *RECORDS,
        *([conversation] for conversation in (*chatgpt_conversations(), *claude_conversations(), *random_chatgpt(8))),
        claude_code_session(),
        *sessions.values(),
        *(lines[:6] for lines in sessions.values()),
    ]
    made = ["\n".join(map(json.dumps, lines)).encode() for lines in records]
    return [text for text in made if len(text) <= MOST_BYTES]


def file_seeds() -> list[bytes]:
    """The same, packed in each way."""
    made = []
    for number, text in enumerate(json_seeds()[:8]):
        made += [text, b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), gzip.compress(text), b"[" + text + b"]"]
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", method) as archive:
                archive.writestr(f"export/{number}.json", text[:1_000])
                archive.writestr("a.jsonl.gz", gzip.compress(b'{"messages": []}\n'))
            made.append(packed.getvalue())
    return made


def text_seeds() -> list[bytes]:
    """Texts that attack whoever shows them, and some that are ids and vectors."""
    texts = [text for text in hostile.CASES.values() if len(text) <= 1_000]
    given = [
        "0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa",
        '["0B9CF5A41D4E4C0F8A55B4E1D6F8C1AA"]',
        "[1.5, -2]",
        "[[1], [2, 3]]",
    ]
    message = {"role": "tool", "content": "x", "tool_call_id": "c", "token_count": 3, "created_at": "2024-01-01"}
    return [text.encode("utf-8", "replace") for text in (*texts, *given, json.dumps(message))]


def seeds_of(target: str) -> list[bytes]:
    """Seeds of a target."""
    if target.startswith("read_"):
        matches = FORMATS[target.removeprefix("read_")].matches
        seeds = json_seeds()
        own = [seed for seed in seeds if any(matches(json.loads(line)) for line in seed.splitlines()[:3])]
        return own or seeds
    return file_seeds() if target == "files" else text_seeds()
