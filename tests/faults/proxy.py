"""A TCP proxy in front of a server, whose network fails when it is told to."""

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Fault = Literal["drop", "reset", "stall", "freeze", "delay", "kill"]
"""Connections are closed, reset, say nothing more as new ones do, say nothing more while new ones work, are slow.

At `kill` they say nothing more until whoever waits for it has killed the server and lets them drop.
"""

DELAY = 0.3
NOW = struct.pack("ii", 1, 0)
"""As SO_LINGER: closing resets."""

_Result = TypeVar("_Result")


@dataclass
class Plan:
    """When a fault comes: at so many bytes from the server, or at a message to it."""

    fault: Fault
    after_bytes: int | None = None
    message: bytes | None = None
    arrives: bool = False
    """Whether the message still reaches the server, and only its answer is lost."""


class _Side(asyncio.Protocol):
    """One end of a connection through the proxy."""

    def __init__(self, proxy: "Proxy", arrived: Callable[["_Side", bytes], None]) -> None:
        self.proxy = proxy
        self.arrived = arrived
        self.other: _Side | None = None
        self.transport: Any = None
        self.silent = self.answer_lost = False
        self.waiting: deque[bytes] = deque()
        proxy.sides.add(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.arrived(self, data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.proxy.sides.discard(self)
        if self.other is not None and self.other.transport is not None and not self.silent:
            self.other.transport.close()

    def write(self, data: bytes) -> None:
        self.waiting.append(data)
        if self.proxy.delayed:
            asyncio.get_running_loop().call_later(DELAY, self.flush, 1)
        else:
            self.flush()

    def flush(self, most: int | None = None) -> None:
        while self.waiting and self.transport is not None and not self.silent and most != 0:
            self.transport.write(self.waiting.popleft())
            most = most and most - 1


class Proxy:
    """Forwards to a server's unix socket until the planned fault comes, then fails until it is healed."""

    def __init__(self, upstream: str) -> None:
        self.port = 0
        self.received = 0
        self.struck = threading.Event()
        self.sides: set[_Side] = set()
        self.delayed = self.mute = False
        self._upstream = upstream
        self._plan: Plan | None = None
        self._loop = asyncio.new_event_loop()

    def plan(self, plan: Plan | None) -> None:
        """Count bytes from now on, and fail as planned."""
        self._call(lambda: self._begin(plan))

    def heal(self) -> None:
        """Forward again; what fell silent is closed."""
        self._call(self._heal)

    def fail(self, fault: Fault) -> None:
        """Fail now."""
        self._call(lambda: self._strike(fault))

    def _begin(self, plan: Plan | None) -> None:
        self.received, self._plan = 0, plan
        self.struck.clear()
        if plan is not None and plan.after_bytes == 0:
            self._strike(plan.fault)

    def _heal(self) -> None:
        self.delayed, self.mute, self._plan = False, False, None
        for side in list(self.sides):
            if side.silent and side.transport is not None:
                side.transport.abort()

    def _strike(self, fault: Fault) -> None:
        self._plan = None
        self.struck.set()
        self.delayed = self.delayed or fault == "delay"
        self.mute = self.mute or fault == "stall"
        for side in list(self.sides):
            if fault in ("stall", "freeze", "kill"):
                side.silent = True
            elif side.transport is not None and fault == "drop":
                side.transport.close()
            elif side.transport is not None and fault == "reset":
                connection = side.transport.get_extra_info("socket")
                if connection.family == socket.AF_INET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
                side.transport.abort()

    def _from_client(self, side: _Side, data: bytes) -> None:
        plan, other = self._plan, side.other
        if other is None:
            return
        if plan is not None and plan.message is not None and plan.message in data:
            if not plan.arrives:
                self._strike(plan.fault)
                return
            other.answer_lost = True
        other.write(data)

    def _from_server(self, side: _Side, data: bytes) -> None:
        plan, other = self._plan, side.other
        assert other is not None
        if plan is not None and side.answer_lost:
            self._strike(plan.fault)
            return
        room = None if plan is None or plan.after_bytes is None else plan.after_bytes - self.received
        self.received += len(data)
        other.write(data[:room])
        if plan is not None and room is not None and len(data) >= room:
            self._strike(plan.fault)

    def _accepted(self) -> _Side:
        client = _Side(self, self._from_client)
        if self.mute:
            client.silent = True
        else:
            client.other = _Side(self, self._from_server)
            client.other.other = client
            opening = self._loop.create_unix_connection(lambda: client.other, self._upstream)  # type: ignore[arg-type, return-value]
            self._loop.create_task(self._opened(client, opening))
        return client

    async def _opened(self, client: _Side, opening: Any) -> None:
        try:
            await opening
        except OSError:  # the server is down
            if client.transport is not None:
                client.transport.abort()

    def _call(self, work: Callable[[], _Result]) -> _Result:
        async def done() -> _Result:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(10)

    async def _listen(self, ready: threading.Event) -> None:
        server = await self._loop.create_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()

    def run(self, ready: threading.Event) -> None:
        self._loop.create_task(self._listen(ready))
        self._loop.run_forever()
        self._loop.close()

    def stop(self) -> None:
        self._call(lambda: [side.transport.abort() for side in self.sides if side.transport is not None])
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of a unix socket."""
    proxy, ready = Proxy(upstream), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
