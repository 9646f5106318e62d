"""Databases as other writers leave them: one set of rows, in tables that each were made in a way of their own."""

from dataclasses import dataclass

from tests.test_migrate import DRIZZLE

ROOT, FORK, COPY, RENUMBERED, GONE, OTHER = (f"a0000000-0000-4000-8000-{place:012}" for place in range(1, 7))
ORDINARY = (ROOT, FORK, COPY, RENUMBERED, GONE, OTHER)
DAMAGED = "dddddddd"
"""How ids of what is damaged begin."""

CONTEXTS = f"""
    insert into contexts
        (id, name, created_at, updated_at, message_count, total_tokens, latest_version, parent_id, fork_version,
         deleted_at)
    values
        ('{ROOT}', 'root', '2026-01-01 00:00+00', '2026-01-01 00:00+00', 4, 21, 5, null, null, null),
        ('{FORK}', 'by reference', '2026-01-02 00:00+00', '2026-01-02 00:00+00', 2, 5, 4, '{ROOT}', 2, null),
        ('{COPY}', 'by copy', '2026-01-03 00:00+00', '2026-01-03 00:00+00', 3, 6, 3, '{ROOT}', 2, null),
        ('{RENUMBERED}', 'renumbered', '2026-01-04 00:00+00', '2026-01-04 00:00+00', 1, 2, 1, '{ROOT}', 2, null),
        ('{GONE}', 'deleted', '2026-01-05 00:00+00', '2026-01-05 00:00+00', 1, 0, 1, null, null,
            '2026-02-01 00:00+00'),
        ('{OTHER}', null, '2026-01-06 00:00+00', '2026-01-06 00:00+00', 2, 3, 2, null, null, null);
"""
MESSAGES = (
    # context, version, role, content, call, tool, tokens, model, deleted, embedded
    (ROOT, 1, "user", "What is the weather in Bonn?", None, None, 5, None, False, True),
    (ROOT, 2, "assistant", '{"city": "Bonn"}', "call_1", "weather", 7, "large", False, True),
    (ROOT, 3, "tool", "rain", "call_1", "weather", None, None, False, True),
    (ROOT, 4, "assistant", "It rains.", None, None, 9, "large", False, True),
    (ROOT, 5, "user", "never mind", None, None, 4, None, True, True),
    (FORK, 3, "tool", "sun", "call_1", "weather", 1, None, False, True),
    (FORK, 4, "assistant", "The sun shines.", None, None, 4, "small", False, False),
    (COPY, 1, "user", "What is the weather in Bonn?", None, None, 3, None, False, True),
    (COPY, 2, "assistant", '{"city": "Bonn"}', "call_1", "weather", 1, "large", False, True),
    (COPY, 3, "tool", "snow", "call_1", "weather", 2, None, False, True),
    (RENUMBERED, 1, "user", "And in Cologne?", None, None, 2, None, False, True),
    (GONE, 1, "user", "of no matter", None, None, None, None, False, True),
    (OTHER, 1, "system", "Speak in rhyme.", None, None, 3, None, False, True),
    (OTHER, 2, "user", "100% 'sure'\\; -- :yes", None, None, None, None, False, False),
)


def message_id(context_id: str, version: int) -> str:
    return f"b0000000-0000-4000-8{context_id[-3:]}-{version:012}"


def seed(dimensions: int | None) -> str:
    """SQL that writes the rows, with embeddings of so many numbers."""
    rows = [_message(place, dimensions, *row) for place, row in enumerate(MESSAGES, 1)]
    columns = (
        "id, context_id, version, created_at, role, content, tool_call_id, tool_name, token_count, model, deleted_at"
    )
    embedding = "" if dimensions is None else ", embedding"
    return f"{CONTEXTS}; insert into messages ({columns}{embedding}) values {', '.join(rows)};"


def _message(place: int, dimensions: int | None, context: str, version: int, *fields: object) -> str:
    *texts, deleted, embedded = fields
    values = [message_id(context, version), context, version, f"2026-01-01 00:{place:02}+00"]
    values += [*texts, "2026-02-01 00:00+00" if deleted else None]
    written = [_literal(value) for value in values]
    if dimensions is not None:
        numbers = f"select array_agg(cast(cos(g * {place}) as real) order by g) from generate_series(1, {dimensions}) g"
        written.append(f"cast(({numbers}) as vector)" if embedded else "null")
    return f"({', '.join(written)})"


def _literal(value: object) -> str:
    if value is None:
        return "null"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


@dataclass(frozen=True)
class Schema:
    """How a database came about. ROLE stands for a role of its own, DATABASE for its name."""

    tables: str | None = DRIZZLE
    """SQL that makes the tables; None for contextkit's own."""
    after: str = ""
    """SQL that follows the rows."""
    dimensions: int | None = 1536
    role: bool = False
    """Whether it is opened by a role of its own, which ends with it."""
    options: str = ""
    """Options of its URL."""


def _changed(*changes: tuple[str, str]) -> str:
    tables = DRIZZLE
    for before, after in changes:
        assert before in tables
        tables = tables.replace(before, after)
    return tables


def _damaged_contexts(*contexts: tuple[str, str | None, int | None, int]) -> str:
    """SQL of contexts beside the ordinary ones: the end of an id, that of a parent, fork_version, latest_version."""
    rows = ", ".join(
        f"('{damaged(own)}', 'damaged', 0, 0, {latest}, {_literal(parent and damaged(parent))}, {_literal(fork)})"
        for own, parent, fork, latest in contexts
    )
    columns = "id, name, message_count, total_tokens, latest_version, parent_id, fork_version"
    return f"insert into contexts ({columns}) values {rows};"


def damaged(end: str) -> str:
    """Id of a damaged context."""
    return f"{DAMAGED}-0000-4000-8000-{end:0>12}"


def _damaged_messages(*rows: tuple[str, int, str, str]) -> str:
    """SQL of messages beside the ordinary ones: the end of a context's id, version, role, content."""
    values = ", ".join(f"('{damaged(own)}', {version}, '{role}', '{content}')" for own, version, role, content in rows)
    return f"insert into messages (context_id, version, role, content) values {values};"


KEYS = DRIZZLE[DRIZZLE.index("ALTER TABLE") : DRIZZLE.index("CREATE INDEX")]
CREATE_VECTOR = "create extension vector;"
VECTOR_COLUMN = ',\n        "embedding" vector(1536)'
ID = '"id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL,\n        "context_id"'
UNIQUE = 'CONSTRAINT "messages_context_version_unique" UNIQUE("context_id","version")\n    );'
IN_EXT = "create schema ext; create extension vector schema ext;"
IN_APP = DRIZZLE.replace('"public".', '"app".')

SCHEMAS: dict[str, Schema] = {
    "enum role, more columns, cascades": Schema(
        "create type role as enum ('user', 'assistant', 'system', 'tool');"
        + _changed(('"role" text', '"role" role'))
        + """
        alter table contexts add policy_config jsonb default '{"a": 1}', add foreign key (parent_id)
            references contexts (id) on delete set null;
        alter table messages add compacted_at timestamptz, add compacted_into_version bigint,
            drop constraint messages_context_id_contexts_id_fk,
            add foreign key (context_id) references contexts (id) on delete cascade;
        alter table contexts drop constraint contexts_parent_id_contexts_id_fk;
        """
    ),
    "search_path of the role, pgvector elsewhere": Schema(
        IN_APP.replace(CREATE_VECTOR, f"{IN_EXT} create schema app; set search_path = app, ext;"),
        after="""
        grant usage on schema app, ext to ROLE;
        grant select, insert, update on app.contexts, app.messages to ROLE;
        alter role ROLE in database DATABASE set search_path = app, ext;
        """,
        role=True,
    ),
    "search_path of the URL": Schema(
        IN_APP.replace(CREATE_VECTOR, f"{CREATE_VECTOR} create schema app; set search_path = app, public;"),
        options="-csearch_path=app,public",
    ),
    "varchar role, other indexes, no foreign keys": Schema(
        _changed(
            ('"role" text', '"role" varchar(20)'),
            (KEYS, ""),
            ("messages_context_version_idx", "Messages_Context_Version_IDX"),
            ("messages_deleted_at_idx", 'it\'s %s ""quoted""'),
        ),
        after='create index "My ""Vectors"" 100%" on messages using hnsw (embedding vector_cosine_ops);',
    ),
    "more columns that must be given": Schema(
        after="""
        alter table contexts add tenant text not null default 'us'; alter table contexts alter tenant drop default;
        alter table messages add seal int not null default 1; alter table messages alter seal drop default;
        """
    ),
    "pgvector out of sight": Schema(DRIZZLE.replace(CREATE_VECTOR, f"{IN_EXT} set search_path = public, ext;")),
    "select only": Schema(after="grant select on contexts, messages to ROLE;", role=True),
    "another dimension": Schema(_changed(("vector(1536)", "vector(3072)")), dimensions=3072),
    "no embedding, no pgvector": Schema(_changed((CREATE_VECTOR, ""), (VECTOR_COLUMN, "")), dimensions=None),
    "times without a zone": Schema("set timezone = 'UTC';" + _changed(("timestamp with time zone", "timestamp"))),
    "a view": Schema(
        after="alter table messages rename to all_messages; create view messages as select * from all_messages;"
    ),
    "partitioned": Schema(
        _changed(
            (ID, ID.replace(" PRIMARY KEY", "")),
            (UNIQUE, f"primary key (id, context_id), {UNIQUE[:-2]}) partition by hash (context_id);"),
        ).replace(
            "ALTER TABLE",
            "create table messages_0 partition of messages for values with (modulus 2, remainder 0);"
            "create table messages_1 partition of messages for values with (modulus 2, remainder 1); ALTER TABLE",
            1,
        )
    ),
    "damaged rows": Schema(
        _changed((KEYS, "")),
        after=_damaged_contexts(
            ("10", "99", 3, 3),  # of an unknown parent
            ("11", None, 2, 2),
            ("12", "10", None, 0),
            ("20", "21", 1, 1),  # a cycle, and what runs into it
            ("21", "20", 1, 1),
            ("22", "21", 1, 2),
            ("23", "23", 1, 1),
            ("30", None, None, 9),  # gaps
            ("40", None, None, 2),  # other roles
            ("50", "30", 99, 99),  # beyond its parent
        )
        + _damaged_messages(
            ("10", 4, "user", "mine"),
            ("77", 1, "user", "of no context"),
            ("22", 2, "user", "of a cycle"),
            ("30", 3, "user", "three"),
            ("30", 9, "user", "nine"),
            ("40", 1, "developer", "Be brief."),
            ("40", 2, "model", "Yes."),
        )
        + "update contexts set message_count = 99, total_tokens = -5, latest_version = 0 "
        f"where id = '{damaged('40')}';",
    ),
}
