"""Embedders that are ready made: lexical and offline, a model on this machine, or a server's."""

import os
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

import numpy as np
from numpy.typing import ArrayLike

from contextkit.embed import Embedder, Vectors
from contextkit.errors import ContextkitError, ContextkitWarning, DimensionError
from contextkit.extras import needed
from contextkit.models import EMBEDDING_DIMENSIONS
from contextkit.secret import Secret

REQUEST_INPUTS = 2048
REQUEST_TOKENS = 300_000
INPUT_TOKENS = 8191
RETRIES = 5


def hashing_embedder() -> Embedder:
    """Embedder that needs no network and no model: words and pairs of words, hashed to 1536 numbers.

    It is lexical: near are texts that share words, not texts that mean the same in others. "Reset my password"
    and "forgot my login" are far apart to it. It gives the same vectors everywhere and each time, which suits
    trying things out, tests, and finding near-duplicates; for meaning take `openai_embedder` or
    `sentence_embedder`. A text without words, such as "?!", is hashed by its characters; a blank one is all zero.
    See scikit-learn's `HashingVectorizer`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    hashing = needed("sklearn.feature_extraction.text", "embed").HashingVectorizer
    common = {"n_features": EMBEDDING_DIMENSIONS, "dtype": np.float32, "norm": "l2"}
    words = hashing(ngram_range=(1, 2), **common)
    characters = hashing(analyzer="char", alternate_sign=False, **common)

    def embed(texts: list[str], /) -> ArrayLike:
        matrix: Vectors = words.transform(texts).toarray()
        for place in np.flatnonzero(~matrix.any(axis=1)):
            matrix[place] = characters.transform([texts[place].strip()]).toarray()[0]
        return matrix

    return embed


def sentence_embedder(model: str) -> Embedder:
    """Embedder that runs a model of sentence-transformers on this machine.

    Shorter vectors are filled up with zeros to 1536, which changes no cosine, l2 or inner-product distance
    between them.

    Args:
        model: a name on the Hugging Face hub, which is downloaded once, or a folder.

    Raises:
        DimensionError: the model's vectors are longer than 1536.
        MissingExtraError: sentence-transformers is not installed.
    """
    loaded = needed("sentence_transformers", "sentence-transformers").SentenceTransformer(model)

    def embed(texts: list[str], /) -> ArrayLike:
        return _padded(loaded.encode(texts, show_progress_bar=False, convert_to_numpy=True))

    embed(["length"])  # a model that does not fit is told now, not in the middle of a run
    return embed


def _padded(vectors: ArrayLike) -> Vectors:
    short: Vectors = np.asarray(vectors, dtype=np.float32)
    if short.shape[1] > EMBEDDING_DIMENSIONS:
        raise DimensionError(
            f"the model's vectors have {short.shape[1]} dimensions, the column embedding {EMBEDDING_DIMENSIONS}; "
            "take a smaller model"
        )
    return np.pad(short, ((0, 0), (0, EMBEDDING_DIMENSIONS - short.shape[1])))


def openai_embedder(model: str = "text-embedding-3-small", *, base_url: str | None = None) -> Embedder:
    """Embedder that asks OpenAI, or any server that speaks its API, through the official client.

    The key comes from OPENAI_API_KEY, which the client wants even where the server does not. The client repeats
    what it takes for passing (rate limits, as long as the server says; lost connections; errors of the server),
    five times. Requests stay under 2,048 texts and 300,000 tokens, counted as bytes, of which a token has at least
    one. A text that is longer than the model takes is embedded by its beginning, with a ContextkitWarning: it is
    halved until the server accepts it.

    Args:
        model: its vectors have to be 1536 long; text-embedding-3-large is asked for that length.
        base_url: of the API, such as http://localhost:8000/v1; OPENAI_BASE_URL, else OpenAI's, by default. A user and
            password in it are sent in place of the key.

    Raises:
        MissingExtraError: openai is not installed.
        ValueError: base_url cannot be read.
        ContextkitError: there is no key. The embedder raises it where the API refuses, and ValueError where a
            reply does not hold one vector per text.
    """
    openai = needed("openai", "openai")
    base_url = Secret(base_url or os.environ.get("OPENAI_BASE_URL", ""))  # no traceback's locals show it
    client = _client(openai, base_url)
    options = {"dimensions": EMBEDDING_DIMENSIONS} if model == "text-embedding-3-large" else {}

    def request(texts: list[str]) -> list[list[float]]:
        try:
            items = client.embeddings.create(model=model, input=texts, **options).data or []
        except (AttributeError, TypeError, ValueError):  # what the client stumbles over, such as a page of HTML
            items = []
        return _in_order(items, len(texts))

    def embed(texts: list[str], /) -> ArrayLike:
        try:
            return [vector for group in _requests(texts) for vector in _accepted(request, group, openai)]
        except openai.APIStatusError as error:
            # Its text may repeat the key or the content.
            reason = ", ".join(str(part) for part in (error.code, error.type) if part) or type(error).__name__
            raise ContextkitError(
                f"the embeddings API refused the request: status {error.status_code}, {reason}; "
                "check OPENAI_API_KEY, the model and the base_url"
            ) from None
        except openai.APIConnectionError as error:
            raise ContextkitError(
                f"the embeddings API did not answer ({type(error).__name__}); check the base_url, or run it again"
            ) from None

    return embed


def _client(openai: ModuleType, base_url: str) -> Any:
    """Give a client of the official package; its logs name the URL, so without the user and password in it."""
    failed: Exception
    try:
        place, headers = _without_userinfo(base_url)
        key = "unused" if headers else None  # by default the client looks for one in the environment
        return openai.OpenAI(api_key=key, base_url=place or None, max_retries=RETRIES, default_headers=headers)
    except openai.OpenAIError:
        failed = ContextkitError("no key for the embeddings API; set OPENAI_API_KEY in the environment")
    except Exception:  # noqa: BLE001 - of the client's HTTP library, whose text repeats what may be a password
        failed = ValueError("base_url cannot be read as a URL; give one such as http://localhost:8000/v1")
    raise failed  # not in its course, where the locals show it, too


def _without_userinfo(url: str) -> tuple[Secret, dict[str, Secret]]:
    parts = urlsplit(url)
    if url and not (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0):  # which has to be one
        raise ValueError("no URL of a server")
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    known = b64encode(unquote_to_bytes(f"{user}:{password}")).decode()
    headers = {"Authorization": Secret(f"Basic {known}")} if userinfo else {}
    return Secret(urlunsplit(parts._replace(netloc=host))), headers


def _requests(texts: list[str]) -> Iterator[list[str]]:
    """Part texts so that each part is certainly below the limits of one request."""
    group: list[str] = []
    size = 0
    for text in texts:
        cut = _beginning(text, REQUEST_TOKENS)
        length = len(cut.encode())
        if group and (len(group) == REQUEST_INPUTS or size + length > REQUEST_TOKENS):
            yield group
            group, size = [], 0
        group.append(cut)
        size += length
    if group:
        yield group


def _accepted(
    request: Callable[[list[str]], list[list[float]]], texts: list[str], openai: ModuleType
) -> list[list[float]]:
    """Vectors of texts; where one may be too long for the model, it is searched for and cut."""
    try:
        return request(texts)
    except openai.BadRequestError:
        if all(len(text.encode()) <= INPUT_TOKENS for text in texts):
            raise
    if len(texts) == 1:
        shorter = _beginning(texts[0], max(INPUT_TOKENS, len(texts[0].encode()) // 2))
        return _accepted(request, [shorter], openai)
    half = len(texts) // 2
    return _accepted(request, texts[:half], openai) + _accepted(request, texts[half:], openai)


def _beginning(text: str, size: int) -> str:
    """Give the beginning of a text, at most `size` bytes; with a warning where that is less than all."""
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    warnings.warn(
        "a text is longer than the model takes; only its beginning is embedded",  # alike, so that it is shown once
        ContextkitWarning,
        stacklevel=2,
    )
    return encoded[:size].decode(errors="ignore")


def _in_order(items: Sequence[Any], texts: int) -> list[list[float]]:
    places = sorted(range(len(items)), key=lambda place: items[place].index)
    if [items[place].index for place in places] != list(range(texts)):
        raise ValueError(
            f"the embeddings API gave {len(items)} vectors, not one for each of {texts} texts; "
            "check that the server speaks OpenAI's API"
        )
    return [items[place].embedding for place in places]
