"""An adapter of requests whose connections end by a moment: the timeout of requests itself is of each read."""

from __future__ import annotations

import http.client
import io
import time

import requests

__all__ = ["DeadlineAdapter"]


class DeadlineAdapter(requests.adapters.HTTPAdapter):
    """Of each wait of a connection (TCP, TLS, sending, reading headers and body) the timeout is what is left.

    Not of the host name's look-up, which has no timeout; and where a name has several addresses, TCP tries each for
    what was left at first.

    Args:
        until: the moment, by time.monotonic(), when the running attempt ends; set before each.
    """

    until = float("inf")

    def left(self) -> float:
        """Seconds that are left. Raises TimeoutError where none are."""
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        return seconds

    def get_connection_with_tls_context(self, *arguments, **options):
        """The pool of connections for a request."""
        pool = super().get_connection_with_tls_context(*arguments, **options)
        if not issubclass(pool.ConnectionCls, _Connection):
            pool.ConnectionCls = type("Connection", (_Connection, pool.ConnectionCls), {"left": self.left})
        return pool


class _Connection:
    """What is mixed into urllib3's connections, plain, over TLS or through a proxy."""

    def _new_conn(self):
        self.timeout = self.left()
        sock = super()._new_conn()
        sock.settimeout(self.left())
        return sock

    def send(self, data):
        if self.sock is not None:
            self.sock.settimeout(self.left())
        super().send(data)

    def response_class(self, sock, *arguments, **options):
        response = http.client.HTTPResponse(sock, *arguments, **options)
        response.fp = io.BufferedReader(_Reader(response.fp.detach(), sock, self.left))
        return response


class _Reader(io.RawIOBase):
    """A socket's file, each read of which may wait for what is left."""

    def __init__(self, file, sock, left):
        self._file, self._sock, self._left = file, sock, left

    def readable(self):
        return True

    def readinto(self, buffer):
        self._sock.settimeout(self._left())
        return self._file.readinto(buffer)

    def close(self):
        self._file.close()
        super().close()
