"""An event that a single task waits for, for a limited time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_agents import clock

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future


class TimedEvent:
    """An event for one waiter, whose wait may end without it. There are thousands: a bare future and a timer each."""

    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop, self._is_set = loop, False
        self._waiter: Future[None] | None = None

    def set(self) -> None:
        """End the wait, or the next one if there is none now."""
        self._is_set = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Return when the event is set, or after `seconds`; whether it was set. Clears it."""
        if not self._is_set:
            self._waiter = self._loop.create_future()
            timer = clock.call_later(seconds, self._end_wait)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        is_set, self._is_set = self._is_set, False
        return is_set
