"""When to look, and for whom. Pure.

A ticket is a newcomer until its first sweep. From then on it is in a lane, with others of the same period. A sweep
takes all lanes that cannot wait for the next one, so that different intervals share it, and no two sweeps are closer
together than the shortest interval, but for a last look at a deadline.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.feed.tickets import At, Ticket

#: Joins are gathered before the first sweep of a feed for this share of their interval, and at most so many seconds:
#: tasks that are deferred together arrive over a second or so.
GATHER_SHARE, GATHER_SECONDS = 0.2, 1.0
#: While nothing can well happen, a ticket is looked at once in so many intervals. More would break the promise that a
#: run is never noticed later than by one interval more.
QUIET_STRIDE = 2
#: What is looked at more rarely than the feed sweeps is spread over so many phases, so that it is no burst.
PHASES = 8
#: A lane takes part in a sweep if it cannot wait for the next one, which may come this share of an interval later: the
#: rest is for the jitter of timers.
_NEXT_SWEEP_SHARE = 0.98
#: Pauses after failed sweeps double from the shortest interval up to this, in seconds.
MAX_BACKOFF_SECONDS = 120.0
#: A last look comes at its deadline, but no earlier than this after another sweep, in seconds.
_LAST_LOOK_GAP_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Lane:
    """Tickets that are looked at together, every `period` seconds."""

    period: float
    due: float = 0.0
    tickets: dict[Ticket[Any], None] = field(default_factory=dict)


_Heap = list[tuple["datetime", int, "Ticket[Any]"]]


class Schedule:
    """When to look, and for whom.

    Args:
        quiet_until: until when, on our clock, nothing can well happen that a ticket waits for; None if that is not
            known.
        jitter: a factor for each pause after a failure.
    """

    def __init__(self, quiet_until: Callable[[Ticket[Any]], datetime | None], jitter: Callable[[], float]) -> None:
        self._quiet_until, self._jitter = quiet_until, jitter
        self._numbers = itertools.count()
        self._intervals: Counter[float] = Counter()
        self._newcomers: dict[Ticket[Any], None] = {}
        self._lanes: dict[tuple[float, int], _Lane] = {}
        # Those of tickets that have left are dropped when they come up.
        self._deadlines: _Heap = []
        self._alarms: _Heap = []
        self._left = 0
        self._gathered_at = 0.0
        self._began = -math.inf
        self._least_gap = 0.0
        self._failures = 0
        self._back_off_until = self._hold_until = -math.inf

    @property
    def shortest(self) -> float:
        """The shortest interval of all who wait, in seconds."""
        return min(self._intervals, default=0.0)

    @property
    def entries(self) -> int:
        """How many waits and deadlines are kept."""
        return self._intervals.total() + len(self._deadlines)

    def join(self, ticket: Ticket[Any], at: At) -> None:
        """Take a ticket in, for the next sweep."""
        if not self._newcomers:
            self._gathered_at = at.clock + min(GATHER_SECONDS, GATHER_SHARE * ticket.interval)
        self._newcomers[ticket] = None
        self._intervals[ticket.interval] += 1
        heapq.heappush(self._deadlines, (ticket.deadline_at, next(self._numbers), ticket))

    def leave(self, ticket: Ticket[Any]) -> None:
        """Let a ticket go, which is marked as over."""
        self._newcomers.pop(ticket, None)
        self._intervals[ticket.interval] -= 1
        if not self._intervals[ticket.interval]:
            del self._intervals[ticket.interval]
        if ticket.lane is not None:
            del ticket.lane.tickets[ticket]
            ticket.lane = None
        self._left += 1
        waits = self._intervals.total()
        if self._left > waits + PHASES or not waits:
            # Deadlines may be a day away: what has left must not be kept until then.
            self._left = 0
            for heap in (self._deadlines, self._alarms):
                heap[:] = [entry for entry in heap if not entry[2].over]
                heapq.heapify(heap)

    def place(self, ticket: Ticket[Any], at: At) -> None:
        """Put a ticket that has been looked at into the lane for its next look."""
        period = ticket.interval
        quiet_until = self._quiet_until(ticket)
        if quiet_until is not None and quiet_until > at.now:
            period *= QUIET_STRIDE
            heapq.heappush(self._alarms, (quiet_until, next(self._numbers), ticket))
        # What is looked at about as often as the feed sweeps costs least together.
        phase = ticket.number % PHASES if period > QUIET_STRIDE * self.shortest else 0
        lane = self._lanes.get((period, phase))
        if lane is None:
            lane = self._lanes[period, phase] = _Lane(period)
        if lane is ticket.lane:
            return
        if not lane.tickets:
            lane.due = self._began + period * (phase / PHASES if phase else 1)
        if ticket.lane is not None:
            del ticket.lane.tickets[ticket]
        ticket.lane = lane
        lane.tickets[ticket] = None

    def replace(self, ticket: Ticket[Any], at: At) -> None:
        """Place a ticket anew after something was learnt about it; a newcomer will be placed anyway."""
        if ticket.lane is not None:
            self.place(ticket, at)

    # --- when ---------------------------------------------------------------------------------------------------

    def next_at(self, at: At) -> float:
        """The monotonic second at which there is something to do."""
        if at.clock < self._hold_until:
            return min(self._hold_until, _clock_of(_first(self._deadlines), at))
        return min(self._sweep_at(at), _clock_of(_first(self._alarms), at))

    def held_seconds(self, at: At) -> float:
        """For how long the server still wants to be left alone; 0 if it does not."""
        return max(0.0, self._hold_until - at.clock)

    def is_due(self, at: At) -> bool:
        """Whether to sweep now."""
        while self._alarms and self._alarms[0][0] <= at.now:
            ticket = heapq.heappop(self._alarms)[2]
            if not ticket.over:
                self.replace(ticket, at)
        return at.clock >= self._hold_until and at.clock >= self._sweep_at(at)

    def _sweep_at(self, at: At) -> float:
        due = min((lane.due for lane in self._lanes.values() if lane.tickets), default=math.inf)
        if self._newcomers:
            due = min(due, self._gathered_at)
        # Whoever was left for the next sweep must not wait longer because the most impatient have left.
        due = max(due, self._began + min(self._least_gap, self.shortest * _NEXT_SWEEP_SHARE), self._back_off_until)
        last_look = max(
            _clock_of(_first(self._deadlines), at), self._began + min(_LAST_LOOK_GAP_SECONDS, self.shortest)
        )
        return min(due, last_look)

    def begin(self, at: At) -> set[Ticket[Any]]:
        """Whom a sweep at this moment is for."""
        self._began = at.clock
        newcomers, self._newcomers = self._newcomers, {}
        served = set(newcomers)
        self._least_gap = self.shortest * _NEXT_SWEEP_SHARE
        next_sweep = at.clock + self._least_gap
        for key, lane in tuple(self._lanes.items()):
            if not lane.tickets:
                del self._lanes[key]
            elif lane.due < next_sweep:
                served.update(lane.tickets)
                lane.due = at.clock + lane.period
        for ticket in newcomers:
            self.place(ticket, at)
        return served

    def expired(self, at: At) -> list[Ticket[Any]]:
        """Those whose deadline has passed; each is named once."""
        found = []
        while (deadline := _first(self._deadlines)) is not None and deadline <= at.now:
            found.append(heapq.heappop(self._deadlines)[2])
        return found

    def hold(self, seconds: float, at: At) -> None:
        """Ask nothing for so many seconds: the server's wish."""
        self._hold_until = max(self._hold_until, at.clock + seconds)

    def reckon(self, *, in_vain: bool) -> None:
        """Pause longer after each sweep that brought nothing."""
        if not in_vain:
            self._failures = 0
            return
        self._failures += 1
        pause = min(self.shortest * 2.0 ** min(self._failures - 1, 16), max(self.shortest, MAX_BACKOFF_SECONDS))
        self._back_off_until = self._began + pause * self._jitter()


def _first(heap: _Heap) -> datetime | None:
    """The earliest moment of those who still wait."""
    while heap and heap[0][2].over:
        heapq.heappop(heap)
    return heap[0][0] if heap else None


def _clock_of(moment: datetime | None, at: At) -> float:
    """A moment on our clock in monotonic seconds; one that has passed is now, none is never."""
    return math.inf if moment is None else at.clock + max(0.0, (moment - at.now).total_seconds())
