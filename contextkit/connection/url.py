"""What a database URL says: read, cleaned of what libpq does not know, with its secrets out of sight."""

import os
import re
import warnings
from contextlib import suppress
from urllib.parse import parse_qsl, unquote

import psycopg
from dotenv import dotenv_values, find_dotenv
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from contextkit.errors import ContextkitWarning
from contextkit.secret import Secret

SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")
NODE_PARAMETERS = frozenset(
    [
        "connection_limit",
        "pgbouncer",
        "pool_timeout",
        "schema",
        "socket_timeout",
        "sslaccept",
        "statement_cache_size",
        "uselibpqcompat",
    ]
)
SECRETS = frozenset(["oauth_client_secret", "scram_client_key", "scram_server_key", "sslpassword"])
KNOWN_PARAMETERS = NODE_PARAMETERS | {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}

Secrets = tuple[tuple[str, Secret], ...]
"""Parameters that a URL would show."""


def is_pooled(url: URL) -> bool | None:
    """Tell whether a Neon host is the pooled one; None for hosts that do not tell."""
    host = (url.host or "").lower()
    if not host.endswith(".neon.tech"):
        return None
    return host.split(".")[0].endswith("-pooler")


def sealed(url: object) -> Secret:
    """Text of a URL; of what is none, a text that cannot be read as one."""
    if isinstance(url, URL):
        with suppress(ValueError):  # where it holds what cannot be written
            url = url.render_as_string(hide_password=False)
    if not isinstance(url, str):
        return Secret(type(url).__name__)
    return Secret(url.strip())


def found_url() -> Secret:
    """Text of the URL of the environment, or of a .env file; empty if there is none."""
    return sealed((os.environ["DATABASE_URL"] if "DATABASE_URL" in os.environ else _dotenv_url()) or "")


def _dotenv_url() -> str | None:
    path = find_dotenv(usecwd=True)
    # Without interpolation: a password may hold a dollar sign.
    return dotenv_values(path, interpolate=False).get("DATABASE_URL") if path else None


def parsed(url: Secret) -> URL:
    """URL of a text, or a ValueError that repeats nothing of it."""
    if refusal := _refusal(url):
        raise ValueError(refusal)
    return make_url(url)


def _refusal(url: Secret) -> str | None:
    try:
        scheme = make_url(url).drivername
    except (ArgumentError, ValueError):
        scheme = None
    if scheme is None or _is_torn(url):
        return (
            "the database URL cannot be read; it looks like postgresql://user:password@host/database, "
            "with special characters in the password percent-encoded (@ as %40)"
        )
    if scheme not in SCHEMES:
        return "the database URL is not PostgreSQL's; it starts with postgresql:// or postgres://"
    return None


def _is_torn(text: str) -> bool:
    """Tell whether host, database or parameters likely hold a piece of the password, which no text may show."""
    rest = re.sub(r"[^:]*://([^:/]*(:[^@]*)?@)?", "", text, count=1)
    address, _, query = rest.partition("?")
    foreign = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] not in KNOWN_PARAMETERS]
    return "@" in address or "@" in str(foreign) or re.search("[\0\ud800-\udfff]", unquote(text)) is not None


def prepared(url: URL) -> tuple[URL, Secrets]:
    """URL without what libpq does not know, asking remote hosts for TLS; and the secrets taken out of it."""
    url, secrets = _parted(url)
    dropped = sorted(NODE_PARAMETERS & url.query.keys())
    if dropped:
        warnings.warn(
            f"dropped from the database URL, as meant for other clients: {', '.join(dropped)}",
            ContextkitWarning,
            stacklevel=3,
        )
    url = url.difference_update_query(dropped)
    if url.query.get("ssl") == "true":  # libpq's own reading of it, in a URL
        url = url.difference_update_query(["ssl"]).update_query_dict({"sslmode": "require"})
    if unknown := sorted(url.query.keys() - KNOWN_PARAMETERS):
        raise ValueError(f"the database URL has parameters that PostgreSQL lacks: {', '.join(unknown)}")
    if _is_remote(url) and "sslmode" not in url.query and "PGSSLMODE" not in os.environ:
        url = url.update_query_dict({"sslmode": "require"})
    return url, secrets


def _parted(url: URL) -> tuple[URL, Secrets]:
    """URL with its password where it hides one and without the other secrets; and these."""
    # Of a parameter given twice libpq takes the last; SQLAlchemy reads several hosts so.
    query = {key: _single(key, value) for key, value in url.query.items()}
    secrets = tuple((key, Secret(query.pop(key))) for key in sorted(SECRETS & query.keys()))
    if "password" in query:
        url = url.set(password=query.pop("password"))
    if re.fullmatch(r"[\w.-]+", query.get("host", "")):
        url = url.set(host=query.pop("host"))
    return url.set(query=query), secrets


def _single(key: str, value: str | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    return ",".join(value) if key == "host" else value[-1]


def _is_remote(url: URL) -> bool:
    named = [url.host, *(url.query.get(key) for key in ("host", "hostaddr"))]
    if not any(named):
        named = [os.environ.get("PGHOST"), os.environ.get("PGHOSTADDR")]
    hosts = [host for names in named if isinstance(names, str) for host in names.split(",") if host]
    return not all(re.match(r"/|@|127\.|::1$|localhost(:|$)", host) for host in hosts)


def check_pooled(url: URL, *, required: bool) -> None:
    """Warn about a Neon host that is not the pooled one, or refuse it."""
    if is_pooled(url) is not False:
        return
    text = (
        "this is Neon's direct host, which allows few connections; "
        "use the pooled one: the same name with -pooler after the endpoint's id"
    )
    if required:
        raise ValueError(text)
    warnings.warn(text, ContextkitWarning, stacklevel=3)
