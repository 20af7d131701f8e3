"""The client of a poller, opened once and replaced when the connection's key changes, and its rate limit."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_agents.api.errors import AgentsError, AuthenticationError, MissingConnectionError, NotSentError
from airflow_provider_agents.clock import loop_time

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Awaitable, Callable

    from airflow_provider_agents.api.client import AsyncClient
    from airflow_provider_agents.api.flow import ApiCall, Response
    from airflow_provider_agents.api.settings import Settings

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds for which a connection that cannot be read is tried again. Airflow also reports "not found" while its own
#: database or API server restarts, and a waiting task has used the connection before.
OPENING_PATIENCE_SECONDS = 300.0
#: Seconds until the look-up of a connection is given up. Airflow took up to 15 for 500 look-ups at once.
OPENING_SECONDS = 60.0
#: Seconds until the closing of a client is given up: no request is left to send.
CLOSING_SECONDS = 10.0


class ClientProvider:
    """The current client, and another one once the connection's key has changed."""

    def __init__(self, open_client: Callable[[], Awaitable[AsyncClient]]) -> None:
        self._open_client = open_client
        self._client: AsyncClient | None = None
        self._opening: Task[AsyncClient] | None = None
        # How many requests each open client has under way.
        self._busy: dict[AsyncClient, int] = {}
        self._lock = asyncio.Lock()
        self._failing_since: float | None = None
        self._polls, self._read_again_in = 0, -1

    @property
    def clients(self) -> int:
        """How many are open."""
        return len(self._busy)

    def begin_poll(self) -> None:
        """Allow one more look-up of the connection after a 401."""
        self._polls += 1

    async def send(self, call: ApiCall[T]) -> Response[T]:
        """Send once; after a 401 read the connection again, once in a poll, and resend if it has changed."""
        client = await self.client()
        try:
            return await self._send(client, call)
        except AuthenticationError:
            async with self._lock:
                if self._client is client:
                    if self._read_again_in == self._polls:
                        raise
                    self._read_again_in = self._polls
                    if not await self._renew(client):
                        raise
        return await self._send(await self.client(), call)

    async def _send(self, client: AsyncClient, call: ApiCall[T]) -> Response[T]:
        self._busy[client] += 1
        try:
            return await client.send_once(call)
        finally:
            self._busy[client] -= 1
            await self._retire(client)

    async def _renew(self, refused: AsyncClient) -> bool:
        """Read the connection again; whether it has changed."""
        try:
            renewed = await self._open()
        except Exception as error:  # noqa: BLE001 - whatever failed, the 401 decides how the waits end
            log.warning("The API key was refused, and the connection cannot be read again. %s", _words(error))
            return False
        changed = renewed.settings != refused.settings
        if changed:
            log.info("The API key was refused and the connection has changed since; going on with it.")
            self._client = renewed
        await self._retire(refused if changed else renewed)
        return changed

    async def _retire(self, client: AsyncClient) -> None:
        """Close a replaced client once it has no request under way."""
        if client is not self._client and self._busy.get(client) == 0:
            del self._busy[client]
            await _close(client)

    async def client(self, *, patient: bool = True) -> AsyncClient:
        """The current client, opened if there is none.

        Raises:
            NotSentError: it cannot be opened now, but perhaps later, and the caller is patient.
        """
        if self._client is not None:
            return self._client
        # All callers share one attempt: a look-up that hangs must not hang for each caller in turn.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), context=contextvars.Context())
            self._opening.add_done_callback(self._opened)
        try:
            # A caller that is cancelled must not take the client from the others.
            return await asyncio.shield(self._opening)
        except Exception as error:
            if isinstance(error, AgentsError) and not isinstance(error, MissingConnectionError):
                raise
            now = loop_time()
            self._failing_since = since = self._failing_since if self._failing_since is not None else now
            if not patient or now - since >= OPENING_PATIENCE_SECONDS:
                raise
            raise NotSentError(f"The connection could not be read. {_words(error)}") from error

    def _opened(self, opening: Task[AsyncClient]) -> None:
        self._opening = None
        # The callers may be gone. An error that is never retrieved would be logged as a fault.
        if not opening.cancelled() and opening.exception() is None:
            self._client, self._failing_since = opening.result(), None

    async def _open(self) -> AsyncClient:
        async with asyncio.timeout(OPENING_SECONDS):
            client = await self._open_client()
        self._busy[client] = 0
        return client

    @property
    def settings(self) -> Settings | None:
        """Those of the current client; None before it is opened."""
        return self._client.settings if self._client is not None else None

    async def aclose(self) -> None:
        """Close every client that was opened."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        self._client = None
        while self._busy:
            await _close(self._busy.popitem()[0])


def _words(error: Exception) -> str:
    """Why a connection cannot be read."""
    if isinstance(error, TimeoutError):
        return f"The look-up took longer than {OPENING_SECONDS:g} seconds."
    return str(error) if isinstance(error, AgentsError) else f"It failed with {type(error).__name__}."


async def _close(client: AsyncClient) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSING_SECONDS):
            await client.aclose()


class RateLimiter:
    """Limits requests to a rate, in bursts of at most one second's worth."""

    def __init__(self) -> None:
        self._next = 0.0

    def delay(self, per_second: float) -> float:
        """Seconds that the next request must wait. Each call is one request."""
        now = loop_time()
        slot = max(self._next, now - 1.0)
        self._next = slot + 1.0 / per_second
        return max(0.0, slot - now)
