"""Messages by their words: PostgreSQL's own full text search, and the index that serves it."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    TextClause,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy import text as sql_text
from sqlalchemy.dialects.postgresql import REGCONFIG
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, live, message_columns, split_conditions

SEARCHED_CHARACTERS = 125_000
"""How much of a content is searched. A tsvector holds 1 MB, and one content with more would fail every search. Of
compounds every letter is kept twice, and a letter has up to 4 bytes."""


def select_languages() -> Select[*tuple[Any, ...]]:
    """Names of the text search configurations, such as english."""
    known = table("pg_ts_config", column("oid"), column("cfgname"), schema="pg_catalog")
    visible = func.pg_ts_config_is_visible(known.c.oid)
    return select(cast(known.c.cfgname, Text)).where(visible).order_by(known.c.cfgname)


def select_text_notes(text: str, *where: Condition, language: str) -> Select[*tuple[Any, ...]]:
    """One row: the number of words and operators that are searched for, and of contents longer than is searched."""
    split_conditions(where)
    longer = (
        select(func.count())
        .select_from(Message)
        .join(Context, Context.id == Message.context_id)
        # The length in bytes is known without reading a content.
        .where(func.octet_length(Message.content) > SEARCHED_CHARACTERS)
        .where(func.length(Message.content) > SEARCHED_CHARACTERS)
        .where(*live(Context, Message, include_deleted=False), *where)
    )
    return select(func.numnode(_words(text, language)), longer.scalar_subquery())


def select_text_matches(text: str, *where: Condition, k: int, language: str = "english") -> Select[*tuple[Any, ...]]:
    """The k messages that match a text in the syntax of web searches, most relevant first.

    Relevance is cover density, ts_rank_cd: matches that stand close together count more; divided by 1 + the
    logarithm of the message's length (normalization 1). See "Ranking Search Results" in
    https://www.postgresql.org/docs/18/textsearch-controls.html.
    """
    split_conditions(where)
    words, vector = _words(text, language), _vector(language)
    relevance = func.ts_rank_cd(vector, words, 1).label("relevance")
    matches = (
        select(relevance, *message_columns())
        .join(Context, Context.id == Message.context_id)
        .where(matches_words(text, language), *live(Context, Message, include_deleted=False), *where)
        .order_by(relevance.desc(), Message.id)
        .limit(k)
    ).subquery("matches")
    rank = func.row_number().over(order_by=(matches.c.relevance.desc(), matches.c.message_id))
    return select(rank.label("rank"), *matches.c).order_by(rank)


def matches_words(text: str, language: str = "english") -> Condition:
    """Give the condition that a message has the words of a text, as `select_text_matches` compares them."""
    return _vector(language).bool_op("@@")(_words(text, language))


def text_index(language: str) -> tuple[str, str]:
    """Name, quoted, of the index for text search in a language, and the SQL that builds it without blocking writers."""
    dialect = PGDialect_psycopg(paramstyle="named")  # type: ignore[no-untyped-call]
    options = {"literal_binds": True, "include_table": False}
    name = dialect.identifier_preparer.quote(f"contextkit_text_{language}_idx")
    key = _vector(language).compile(dialect=dialect, compile_kwargs=options)
    return name, f"create index concurrently {name} on messages using gin ({key})"


def select_text_index(name: str) -> TextClause:
    """size and valid of the index of a name, if there is one."""
    return sql_text(
        "select pg_relation_size(indexrelid) as size, indisvalid as valid from pg_index "
        "where indexrelid = to_regclass(:name) and indrelid = cast('messages' as regclass)"
    ).bindparams(name=name)


def _words(text: str, language: str) -> ColumnElement[Any]:
    return func.websearch_to_tsquery(_configuration(language), text)


def _vector(language: str) -> ColumnElement[Any]:
    beginning = func.left(Message.content, literal_column(str(SEARCHED_CHARACTERS)))
    return func.to_tsvector(_configuration(language), beginning)


def _configuration(language: str) -> ColumnElement[Any]:
    # Never a parameter: the planner finds an index on an expression only by the same constants.
    name = '"' + language.replace('"', '""') + '"'
    return cast(literal(name, Text, literal_execute=True), REGCONFIG)
