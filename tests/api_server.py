"""A small server on 127.0.0.1 that speaks OpenAI's embeddings API, and fails when told to."""

import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

MOST_TOKENS = 8192
MOST_TOKENS_OF_ALL = 300_000
MOST_INPUTS = 2048


def vector_of(text: str, length: int = 1536) -> list[float]:
    """The vector that the server gives for a text."""
    seed = int.from_bytes(sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=length).astype(np.float32).tolist()


@dataclass
class Api:
    """What the server was asked, and how it is to answer the next requests: one name each, then normally.

    Names: rate_limited, dropped, broken, short, empty, repeated, reversed, floats, narrow,
    a page, no json, refused, unauthorized.
    """

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    bytes_per_token: int = 4

    @property
    def inputs(self) -> list[str]:
        """The texts of all requests, answered or not."""
        return [text for body in self.asked for text in body["input"]]


@contextmanager
def api_server() -> Iterator[Api]:
    """Serve until the end of the block."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            api.asked.append(body)
            api.keys.append(self.headers.get("Authorization"))
            failure = api.failures.pop(0) if api.failures else ""
            if self.path != "/v1/embeddings":
                return self._error(404, "not_found")
            match failure:
                case "dropped":
                    self.close_connection = True
                    return None
                case "rate_limited":
                    return self._error(429, "rate_limit_exceeded", {"Retry-After": "0.01"})
                case "broken":
                    return self._error(503, "unavailable", {"Retry-After": "0.01"})
                case "a page":
                    return self._send(200, "<html>")
                case "no json":
                    return self._send(200, None)
                case "refused":
                    return self._error(400, "invalid_request")
                case "unauthorized":
                    return self._error(401, "invalid_api_key")
            texts = body["input"]
            tokens = [-(-len(text.encode()) // api.bytes_per_token) for text in texts]
            too_much = sum(tokens) > MOST_TOKENS_OF_ALL or len(texts) > MOST_INPUTS
            if too_much or max(tokens) > MOST_TOKENS or not all(texts):
                return self._error(400, "context_length_exceeded")
            return self._send(200, self._reply(body, failure))

        def _reply(self, body: dict[str, Any], failure: str) -> dict[str, Any]:
            length = 768 if failure == "narrow" else body.get("dimensions", 1536)
            vectors: list[Any] = [vector_of(text, length) for text in body["input"]]
            if body.get("encoding_format") == "base64" and failure != "floats":
                vectors = [base64.b64encode(struct.pack(f"<{length}f", *vector)).decode() for vector in vectors]
            data = [
                {"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)
            ]
            match failure:
                case "short":
                    data.pop()
                case "empty":
                    data.clear()
                case "repeated":
                    data[-1]["index"] = 0
                case "reversed":
                    data.reverse()
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return {"object": "list", "data": data, "model": body["model"], "usage": usage}

        def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            # The worst case: the key and the content come back in the text.
            message = f"refused {self.headers.get('Authorization')} {api.asked[-1]['input']}"
            error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
            self._send(status, {"error": error}, headers)

        def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = b"{" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "text/html" if body == "<html>" else "application/json",
                "Content-Length": str(len(data)),
            }.items():
                self.send_header(name, value)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
