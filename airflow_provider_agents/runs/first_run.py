"""How the first run of an interval is found: a listing of the agent's runs, and a search over several listings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api.endpoints import list_agent_events
from airflow_provider_agents.api.flow import Flow, paginate
from airflow_provider_agents.clock import now
from airflow_provider_agents.runs.matching import Missing, clock_at_least
from airflow_provider_agents.runs.status import is_terminal

if TYPE_CHECKING:
    from airflow_provider_agents.api.models import ExecutionEvent

#: Room around the interval: the API's page does not say whether `startedAfter` and `startedBefore` are inclusive, nor
#: how finely they are compared.
_MARGIN = timedelta(seconds=1)
#: The listing is newest first, and the first run of the interval is wanted. So what began long after the interval's
#: start is left out, unless nothing began within this time.
_SPAN = timedelta(days=1)
#: Where the platform does not report its clock, ours decides that an interval is over, this much later. Amazon S3
#: refuses requests of machines whose clock is more than 15 minutes off, so few machines are.
CLOCK_ALLOWANCE = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class StartedRuns:
    """The runs of an agent that began in an interval, as one listing showed them.

    Attributes:
        events: oldest first. A row that cannot be read counts if its `startedAt` can be.
        is_complete: no row of the listing hides when its run began.
        began_at: our clock when the listing was begun.
        ended_at: our clock when the listing had been read.
        server_time: the server's clock when the listing was begun; None if that is unknown.
        passed: a moment that the clock which stamps events has passed; None if that is unknown.
    """

    events: tuple[ExecutionEvent, ...]
    is_complete: bool
    began_at: datetime
    ended_at: datetime
    server_time: datetime | None
    passed: datetime | None


def list_started(agent_id: str, after: datetime, before: datetime | None) -> Flow[StartedRuns]:
    """The agent's runs that began at `after` or later, and before `before`; of a long interval perhaps only the first.

    Args:
        agent_id: the agent.
        after: compared with `startedAt`, which is on the server's clock.
        before: the same, exclusive; None for no end.
    """
    began_at = now()
    ends = [before + _MARGIN if before is not None else None]
    first_end = after + _SPAN
    if first_end < began_at - _SPAN and (before is None or first_end < before):
        ends.insert(0, first_end)
    for end in ends:
        call = list_agent_events(agent_id, started_after=after - _MARGIN, started_before=end)
        listed = yield from paginate(call)
        begun = _between(after, before, listed.value)
        if begun:
            break
    return StartedRuns(
        events=tuple(begun),
        is_complete=not any(event.unreadable is not None and event.startedAt is None for event in listed.value),
        began_at=began_at,
        ended_at=now(),
        server_time=listed.server_time,
        passed=clock_at_least(listed.server_time, listed.value),
    )


def _between(after: datetime, before: datetime | None, events: list[ExecutionEvent]) -> list[ExecutionEvent]:
    """Those that began in an interval, oldest first."""
    begun = [
        (event.startedAt, event.id, event)
        for event in events
        if event.startedAt is not None and event.startedAt >= after and (before is None or event.startedAt < before)
    ]
    return [event for _, _, event in sorted(begun, key=lambda one: one[:2])]


class FirstRunSearch:
    """The search of one process for an agent's first run in an interval. Pure.

    A run appears within `settle` seconds after it began. So the first run that is shown is the first of all once an
    earlier one would have appeared, and there is no run once the last possible one would have.

    Args:
        before: the end of the interval, exclusive; None for no end.
        settle: seconds.
        exclusive: nothing else starts the agent meanwhile. So a run that ends while it is the only one is the first.

    Attributes:
        broke_exclusive: the search is exclusive, but a second run appeared within `settle`. From then on, the
            search follows the rules of any other.
    """

    def __init__(self, before: datetime | None, settle: float, *, exclusive: bool = False) -> None:
        self._before, self._settle = before, timedelta(seconds=settle)
        self._is_exclusive, self.broke_exclusive = exclusive, False
        # Our clock when some run of the interval was first seen. What began before that run has begun by then.
        self._seen_at: datetime | None = None

    def apply_listing(self, listing: StartedRuns) -> ExecutionEvent | Missing | None:
        """The first run, `Missing` if there is none and none can appear any more, None if neither is known yet."""
        if listing.events:
            first = listing.events[0]
            if first.lacks_id:
                return None  # it cannot be followed, and no later run is the first
            self._seen_at = self._seen_at or listing.ended_at
            has_passed = listing.passed is not None and (
                first.startedAt is not None and listing.passed - first.startedAt >= self._settle
            )
            if has_passed or listing.began_at - self._seen_at >= self._settle:
                return first
            if self._is_exclusive and len(listing.events) > 1:
                self._is_exclusive, self.broke_exclusive = False, True
            return first if self._is_exclusive and is_terminal(first) else None
        if self._before is None or self._seen_at is not None or not listing.is_complete:
            return None
        passed = [listing.passed] if listing.passed is not None else []
        if listing.server_time is None:
            passed.append(listing.began_at - CLOCK_ALLOWANCE)
        return Missing() if max(passed) - self._before >= self._settle else None
