"""What keeps one client from taking the server: bytes, requests at once, and how long a request may take to arrive."""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LimitsMiddleware", "patient_protocol"]

HEADER_BYTES = 32_768
RETRY_SECONDS = 1


class LimitsMiddleware:
    """Refuses a request that is too large (413), too slow to arrive (408), or one too many (503), before it is parsed."""

    def __init__(self, app, limits):
        self._app, self._limits, self._running = app, limits, 0

    async def __call__(self, scope, receive, send):
        """Pass a request on, or answer it."""
        if scope["type"] != "http" or scope["method"] != "POST":  # health and metrics answer under load, too
            await self._app(scope, receive, send)
        elif self._running >= self._limits.requests:
            error = f"{self._running} requests are running, the limit; try again"
            await _refuse(send, 503, error, [(b"retry-after", str(RETRY_SECONDS).encode())])
        else:
            self._running += 1
            try:
                await self._within_limits(scope, receive, send)
            finally:
                self._running -= 1

    async def _within_limits(self, scope, receive, send):
        most = self._limits.body_bytes
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            await _refuse(send, 413, f"a request of {int(length):,} bytes; at most {most:,}")
            return
        chunks, size, more = [], 0, True
        clock = asyncio.get_running_loop().time
        until = clock() + self._limits.body_seconds
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - clock()))
            except asyncio.TimeoutError:
                await _refuse(send, 408, f"the request was not whole after {self._limits.body_seconds:g} s")
                return
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > most:
                await _refuse(send, 413, f"a request of more than {most:,} bytes")
                return
        whole = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

        async def replay():
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


async def _refuse(send, code, error, headers=()):
    body = json.dumps({"error": error}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    head.append((b"connection", b"close"))  # what of the request is still to come is not read
    await send({"type": "http.response.start", "status": code, "headers": head})
    await send({"type": "http.response.body", "body": body})


def patient_protocol(seconds: float) -> type:
    """Uvicorn's HTTP protocol that closes a connection whose headers take longer, or are of more than 32 KiB."""

    class PatientProtocol(HttpToolsProtocol):
        _waiting = None
        _header_bytes = 0

        def connection_made(self, transport):
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc):
            self._arrived()
            super().connection_lost(exc)

        def on_message_begin(self):
            super().on_message_begin()
            self._header_bytes = 0
            self._wait()

        def on_url(self, url):
            super().on_url(url)
            self._count(len(url))

        def on_header(self, name, value):
            super().on_header(name, value)
            self._count(len(name) + len(value))

        def on_headers_complete(self):
            self._arrived()
            super().on_headers_complete()

        def _count(self, length):
            self._header_bytes += length
            if self._header_bytes > HEADER_BYTES:
                raise ValueError(f"headers of more than {HEADER_BYTES} bytes")  # the parser makes a 400 of it

        def _wait(self):
            self._arrived()
            self._waiting = self.loop.call_later(seconds, self._give_up)

        def _arrived(self):
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self):
            if not self.transport.is_closing():
                self.transport.close()

    return PatientProtocol
