"""A server on this machine that answers with any bytes, at any pace, and keeps what it was sent."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    #: Writes an answer, given the server, the connection and the request.
    Script = Callable[["HostileServer", socket.socket, bytes], object]

#: A test fails rather than hang.
FOR_EVER_SECONDS = 5.0


class HostileServer:
    """Answers each connection by a script.

    Args:
        script: called with the connection, once a request's headers are there. What it writes is the answer; the
            connection is closed when it returns.
        tls: a server-side context; the handshake is made first.
    """

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self._script, self._tls = script, tls
        self.requests: list[bytes] = []
        self.sent = 0
        self.over = threading.Event()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start(self._accept)

    def _start(self, work: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, connection: socket.socket) -> None:
        self._connections.append(connection)
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(65536)
                if not received:
                    return
                request += received
            self.requests.append(request)
            self._script(self, connection, request)
        connection.close()

    def send(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)
        self.sent += len(data)

    def drip(self, connection: socket.socket, data: bytes) -> None:
        """A few bytes at a time, for longer than anybody may wait for."""
        ends_at = time.monotonic() + FOR_EVER_SECONDS
        while time.monotonic() < ends_at and not self.over.wait(0.003):
            self.send(connection, data)

    def flood(self, connection: socket.socket, data: bytes) -> None:
        """As fast as it is taken, for longer than anybody may wait for."""
        ends_at = time.monotonic() + FOR_EVER_SECONDS
        while time.monotonic() < ends_at and not self.over.is_set():
            self.send(connection, data)

    def close(self) -> None:
        self.over.set()
        for one in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


def answering(answer: bytes) -> Script:
    """A script that sends the same bytes each time."""

    def script(server: HostileServer, connection: socket.socket, _request: bytes) -> None:
        server.send(connection, answer)

    return script


def response(body: bytes = b'{"data": []}', *, status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
