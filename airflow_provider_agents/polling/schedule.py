"""When to poll. Pure.

Each poll cycle serves all subscriptions, and two cycles are as far apart as the shortest interval of these. A last poll
at a deadline may come earlier.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.retry import back_off

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.polling.subscriptions import ClockReading, Subscription

#: New subscriptions are gathered before a poll for this share of their interval, and at most for this many seconds:
#: tasks that are deferred together arrive over a second or so.
GATHER_SHARE, GATHER_SECONDS = 0.2, 1.0
#: Pauses after failed cycles double from the shortest interval up to this, in seconds: it is far below the hours that
#: runs take, and spares a platform that is down most of the requests.
MAX_BACKOFF_SECONDS = 120.0
#: A last poll comes at its deadline, but no earlier than this after another cycle, in seconds.
_LAST_LOOK_GAP_SECONDS = 1.0
#: Deadlines of ended subscriptions are dropped together, as to drop each at once costs more: at the latest when there
#: are this many more of them than subscriptions.
_LEFT_DEADLINES = 8


class Schedule:
    """When to poll.

    Args:
        jitter: a factor for each pause after a failure.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._numbers = itertools.count()
        self._intervals: Counter[float] = Counter()
        # Those that no cycle has served yet.
        self._new: dict[Subscription[Any], None] = {}
        # Those of ended subscriptions are dropped when they come first.
        self._deadlines: list[tuple[datetime, int, Subscription[Any]]] = []
        self._left = 0
        self._gathered_at = 0.0
        self._began = -math.inf
        # The shortest interval when the last cycle began.
        self._period = 0.0
        self._failures = 0
        self._back_off_until = self._paused_until = -math.inf

    @property
    def shortest(self) -> float:
        """The shortest interval of all subscriptions, in seconds."""
        return min(self._intervals, default=0.0)

    @property
    def entries(self) -> int:
        """How many intervals and deadlines are kept."""
        return self._intervals.total() + len(self._deadlines)

    def subscribe(self, subscription: Subscription[Any], at: ClockReading) -> None:
        """Add a subscription, for the next cycle."""
        if not self._new:
            self._gathered_at = at.monotonic + min(GATHER_SECONDS, GATHER_SHARE * subscription.interval)
        self._new[subscription] = None
        self._intervals[subscription.interval] += 1
        heapq.heappush(self._deadlines, (subscription.deadline_at, next(self._numbers), subscription))

    def unsubscribe(self, subscription: Subscription[Any]) -> None:
        """Remove a subscription that has ended."""
        self._new.pop(subscription, None)
        self._intervals[subscription.interval] -= 1
        if not self._intervals[subscription.interval]:
            del self._intervals[subscription.interval]
        self._left += 1
        waits = self._intervals.total()
        if self._left > waits + _LEFT_DEADLINES or not waits:
            # Deadlines may be a day away: an ended subscription must not be kept until then.
            self._left = 0
            self._deadlines = [entry for entry in self._deadlines if not entry[2].has_ended]
            heapq.heapify(self._deadlines)

    def next_at(self, at: ClockReading) -> float:
        """The monotonic second at which there is something to do."""
        if at.monotonic < self._paused_until:
            return min(self._paused_until, self._deadline_at(at))
        return self._cycle_at(at)

    def pause_seconds(self, at: ClockReading) -> float:
        """Seconds of the pause that the server has asked for; 0 without one."""
        return max(0.0, self._paused_until - at.monotonic)

    def is_due(self, at: ClockReading) -> bool:
        """Whether to poll now."""
        return at.monotonic >= self._paused_until and at.monotonic >= self._cycle_at(at)

    def _cycle_at(self, at: ClockReading) -> float:
        due = math.inf
        if self._intervals.total() > len(self._new):
            due = self._began + self._period
        if self._new:
            due = min(due, self._gathered_at)
        due = max(due, self._began + self.shortest, self._back_off_until)
        last_look = max(self._deadline_at(at), self._began + min(_LAST_LOOK_GAP_SECONDS, self.shortest))
        return min(due, last_look)

    def begin(self, at: ClockReading) -> None:
        """A cycle begins."""
        self._began, self._period = at.monotonic, self.shortest
        self._new.clear()

    def _first_deadline(self) -> datetime | None:
        """The earliest one of a subscription that has not ended."""
        while self._deadlines and self._deadlines[0][2].has_ended:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _deadline_at(self, at: ClockReading) -> float:
        """The earliest deadline in monotonic seconds. Past deadlines map to now, none to infinity."""
        deadline = self._first_deadline()
        return math.inf if deadline is None else at.monotonic + max(0.0, (deadline - at.wall).total_seconds())

    def expired(self, at: ClockReading) -> list[Subscription[Any]]:
        """Subscriptions whose deadline has passed; each is returned once."""
        found = []
        while (deadline := self._first_deadline()) is not None and deadline <= at.wall:
            found.append(heapq.heappop(self._deadlines)[2])
        return found

    def pause(self, seconds: float, at: ClockReading) -> None:
        """Do not poll for this many seconds, since the server asks for it."""
        self._paused_until = max(self._paused_until, at.monotonic + seconds)

    def back_off(self, *, failed: bool) -> None:
        """Pause longer after each cycle that failed."""
        if not failed:
            self._failures = 0
            return
        self._failures += 1
        pause = back_off(self._failures, first=self.shortest, longest=MAX_BACKOFF_SECONDS, jitter=self._jitter)
        self._back_off_until = self._began + pause
