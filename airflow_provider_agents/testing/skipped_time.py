"""A time in which no wait of this package takes any: `clock.replaced_by(SkippedTime())`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import math
import threading
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Awaitable, Callable, Iterator

    from airflow_provider_agents import clock

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds by which a wait ends late, as each real one does. A test may stop the time of day while the clock of the
#: event loop runs: without this, a wait for a time of day could end before that time, again and again.
_LATE = 0.001
#: After this many rounds of the event loop in which no task begins to wait or to work, none is about to. News that is
#: passed on without a real wait takes one round for each task that passes it on, and those are always fewer.
_QUIET_ROUNDS = 20


class SkippedTime:
    """The system's time, and what the provider has waited for on top: each of its waits is over at once.

    On an event loop a wait is over as soon as nothing of the provider is under way there and no other wait ends
    earlier. So whatever waits does so in the same order as in real time, however slow the machine.
    """

    def __init__(self) -> None:
        self._skipped = 0.0
        self._lock = threading.Lock()
        self._waits: dict[AbstractEventLoop, _Waits] = {}

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        with self._lock:
            self._skipped += seconds

    def now(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC) + timedelta(seconds=self._skipped)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.advance(seconds + _LATE)

    def monotonic(self) -> float:
        """The system's monotonic seconds, and what was skipped."""
        return monotonic() + self._skipped

    def loop_time(self) -> float:
        """The running loop's own, and what was skipped."""
        return asyncio.get_running_loop().time() + self._skipped

    def call_later(self, seconds: float, callback: Callable[[], object]) -> clock.Timer:
        """Call something once it is its turn."""
        return self._of_loop().add(seconds, callback)

    def working(self) -> contextlib.AbstractContextManager[None]:
        """For a block on the running event loop that awaits something real, such as an answer: nothing is skipped."""
        return self._of_loop().working()

    def works(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """The same function, during which nothing is skipped."""

        @functools.wraps(function)
        async def working(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.working():
                return await function(*args, **kwargs)

        return working

    def _of_loop(self) -> _Waits:
        loop = asyncio.get_running_loop()
        if loop not in self._waits:
            self._waits[loop] = _Waits(self, loop)
        return self._waits[loop]


class _Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Waits:
    """What waits on one event loop, and the watch that finds when the next wait may end."""

    def __init__(self, time: SkippedTime, loop: AbstractEventLoop) -> None:
        self._time, self._loop = time, loop
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._under_way = self._quiet_rounds = 0
        self._watching = False

    def add(self, seconds: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(callback)
        if seconds < math.inf:
            heapq.heappush(self._timers, (self._time.loop_time() + seconds, next(self._numbers), timer))
        self._watch()
        return timer

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._watch()

    def _watch(self) -> None:
        self._quiet_rounds = 0
        if not self._watching:
            self._watching = True
            self._loop.call_soon(self._check)

    def _check(self) -> None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._under_way or not self._timers:
            # The end of the work, or the next wait, begins to watch again.
            self._watching = False
            return
        self._loop.call_soon(self._check)
        self._quiet_rounds += 1
        if self._quiet_rounds <= _QUIET_ROUNDS:
            return
        self._quiet_rounds = 0
        due, _, timer = heapq.heappop(self._timers)
        self._time.sleep(max(0.0, due - self._time.loop_time()))
        if timer.callback is not None:
            timer.callback()
