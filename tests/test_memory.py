"""What a read takes, each in a process of its own whose memory nothing else has used."""

import subprocess
import sys

import pytest
from sqlalchemy import Engine

if sys.platform != "linux":
    pytest.skip("only Linux tells the peak of a process apart from that of its parent", allow_module_level=True)

WRITE = """
    with context as (insert into contexts (message_count) values (12000) returning id),
        vector as (select array_agg(random())::vector as embedding from generate_series(1, 1536))
    insert into messages (context_id, version, role, content, embedding)
    select context.id, version, 'user', repeat('content ', 500), vector.embedding
    from context, vector, generate_series(1, 12000) as version
"""
PRELUDE = """
import re, sys
from pathlib import Path
from contextkit import Message, connect, messages_batches, messages_df

def peak():
    # Not getrusage's, which starts with what the parent has.
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def size(frame):
    return frame.memory_usage(deep=True).sum()

engine = connect(sys.argv[1])
messages_df(engine, Message.version <= 500, embeddings=True)  # what is imported and kept is no part of a read
before = peak()
"""


@pytest.fixture(scope="module")
def url(shared: Engine) -> str:
    """A database of 12,000 messages, just written; they take 49 MB, and 123 MB with their vectors."""
    with shared.begin() as connection:
        connection.exec_driver_sql(WRITE)
    return shared.url.render_as_string(hide_password=False)


def printed(program: str, url: str) -> float:
    code = PRELUDE + program
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.parametrize("embeddings", [True, False])
def test_a_read_takes_at_most_1_3_times_its_result(url: str, embeddings: bool) -> None:
    program = f"frame = messages_df(engine, embeddings={embeddings}); print((peak() - before) / size(frame))"
    assert 0.3 < printed(program, url) < 1.3


def test_batches_take_two_of_them_and_what_is_on_its_way(url: str) -> None:
    program = """
sizes = []
for batch in messages_batches(engine, batch_rows=4_000, embeddings=True):
    sizes.append(size(batch))
print(peak() - before - 2 * max(sizes))
"""
    assert printed(program, url) < 32 * 2**20  # one of the batches has 41 MB
