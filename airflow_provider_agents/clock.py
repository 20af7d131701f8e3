"""The provider's time: what time it is, and how to let some of it pass.

Everything here that waits, or asks for the time, does it through this module. So a test can put another clock in the
place of the system's for all of it at once, and for nothing else in the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from airflow_provider_agents.interruption import interruptible

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class Timer(Protocol):
    """What is going to happen."""

    def cancel(self) -> None:
        """Let it not happen. May be repeated."""


class Clock(Protocol):
    """Where time comes from. All seconds are real numbers, 0 or more."""

    def now(self) -> datetime:
        """The time of day, aware, UTC."""

    def sleep(self, seconds: float) -> None:
        """Wait, and block the thread."""

    def monotonic(self) -> float:
        """Monotonic seconds."""

    def loop_time(self) -> float:
        """Monotonic seconds of the running event loop."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call something on the running event loop after N seconds."""


class SystemClock:
    """The system's time and the event loop's timers."""

    def now(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Wait, and block the thread."""
        time.sleep(seconds)

    def monotonic(self) -> float:
        """The system's."""
        return time.monotonic()

    def loop_time(self) -> float:
        """The running loop's own."""
        return asyncio.get_running_loop().time()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """A timer of the running loop."""
        return asyncio.get_running_loop().call_later(seconds, callback)


#: The one in use is the last.
_clocks: list[Clock] = [SystemClock()]


@contextlib.contextmanager
def replaced_by(clock: Clock) -> Iterator[None]:
    """Another clock for the length of a block, in every thread of the process."""
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.remove(clock)


def now() -> datetime:
    """Our clock."""
    return _clocks[-1].now()


def sleep(seconds: float) -> None:
    """Wait on a worker.

    Raises:
        SystemExit: the task that waits was killed.
    """
    with interruptible():
        _clocks[-1].sleep(seconds)


def monotonic() -> float:
    """Monotonic seconds, for code that waits on a worker."""
    return _clocks[-1].monotonic()


async def asleep(seconds: float) -> None:
    """Wait on an event loop."""
    done = asyncio.get_running_loop().create_future()

    def end() -> None:
        if not done.done():
            done.set_result(None)

    timer = call_later(seconds, end)
    try:
        await done
    finally:
        timer.cancel()


@contextlib.asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Give up a block on an event loop after N seconds.

    Raises:
        TimeoutError: it was given up.
    """
    async with asyncio.timeout(None) as scope:
        timer = call_later(max(0.0, seconds), lambda: scope.reschedule(0.0))
        try:
            yield
        finally:
            timer.cancel()


def loop_time() -> float:
    """Monotonic seconds of the running event loop."""
    return _clocks[-1].loop_time()


def call_later(seconds: float, callback: Callable[[], object]) -> Timer:
    """Call something on the running event loop after N seconds."""
    return _clocks[-1].call_later(seconds, callback)
