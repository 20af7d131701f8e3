"""Which event is mine: (what was recorded, events, now) -> not yet | this one | these, ambiguous.

An event whose id or `requestId` is ours decides. Without that, all there is to go by is what was there before the
POST and when an event was created, on the server's own clock. What cannot be told apart stays a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api.calls import Answer, Steps, list_agent_events, walk
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: The clock in the `Date` header may be a gateway's and the one in `createdAt` an application server's. Machines that
#: keep time by NTP agree within a second; five leave room without taking in many strangers.
TOLERANCE = timedelta(seconds=5)
#: `Date` counts whole seconds, so the difference of two of them is off by less than one.
DATE_RESOLUTION = timedelta(seconds=1)
_PAGE_ROWS = 50


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known about the run that is sought.

    Attributes:
        accepted_at: our clock when the execute was answered, or its answer given up.
        server_before: the server's clock before the POST, None if it did not tell.
        server_after: the server's clock after it, None likewise.
    """

    request_id: str | None
    event_id: str | None
    known_event_ids: frozenset[str]
    accepted_at: datetime
    server_before: datetime | None
    server_after: datetime | None

    @property
    def floor(self) -> datetime | None:
        """The run's event was created no earlier than this, on the server's clock."""
        return self.server_before - TOLERANCE if self.server_before is not None else None

    def ceiling(self, settle: float) -> datetime | None:
        """A run that appears within `settle` seconds was created no later than this, on the server's clock."""
        return self.server_after + timedelta(seconds=settle) + TOLERANCE if self.server_after is not None else None

    def seek(self, settle: float) -> Seek:
        """What to look for."""
        return Seek(
            floor=self.floor,
            ids=tuple(name for name in (self.event_id or self.request_id,) if name is not None),
            ripe_at=None
            if self.event_id is not None
            else self.accepted_at + timedelta(seconds=settle) + (DATE_RESOLUTION if self.server_after else timedelta()),
        )


@dataclass(frozen=True, slots=True)
class Seek:
    """What a look for a run must show to say anything.

    Attributes:
        floor: every event of the agent that was created since; None if they all matter.
        ids: an event with one of these as its id or `requestId` decides at once.
        ripe_at: on our clock; before it nothing but an id decides. None if nothing else ever does.
    """

    floor: datetime | None
    ids: tuple[str, ...]
    ripe_at: datetime | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time on our clock, and on the server's where it told."""

    local: datetime
    server: datetime | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an agent's events showed.

    Attributes:
        events: as they were read.
        server_time: the server's clock when the look was begun.
    """

    events: tuple[ExecutionEvent, ...]
    server_time: datetime | None


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nothing can be said yet. `candidates` are those that appeared so far."""

    candidates: tuple[ExecutionEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """This one. `certain` if an id says so, else inferred."""

    event: ExecutionEvent
    certain: bool


@dataclass(frozen=True, slots=True)
class Several:
    """One of these, oldest first; the API does not tell which."""

    events: tuple[ExecutionEvent, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """None has appeared in time."""


Match = NotYet | Found | Several | Missing


def created_at(event: ExecutionEvent) -> datetime | None:
    """When the event was created, or else the earliest later moment that it names."""
    moments = (event.createdAt, event.startedAt, event.completedAt, event.updatedAt)
    return next((moment for moment in moments if moment is not None), None)


def is_young(event: ExecutionEvent, floor: datetime | None) -> bool:
    """Whether an event is young enough to be mistaken for one created after `floor`."""
    created = created_at(event)
    return floor is None or created is None or created >= floor


def lies_before(event: ExecutionEvent, floor: datetime | None) -> bool:
    """Whether all that follows this row, newest first, is older than `floor`.

    The API does not say which timestamp it sorts by, so all of them must be older. A row without `startedAt` says
    nothing: it may stand at the very top or bottom, outside the order. Nor does an unreadable row that lacks a time.
    """
    if floor is None or event.startedAt is None:
        return False
    moments = (event.createdAt, event.startedAt, event.updatedAt or event.completedAt)
    if event.unreadable is not None and None in moments:
        return False
    return all(moment < floor for moment in moments if moment is not None)


def is_ours(bounds: Bounds, event: ExecutionEvent) -> bool:
    """Whether an id says that this event is the run."""
    if bounds.event_id is not None:
        return event.id == bounds.event_id
    # What has no id cannot be followed: it is a candidate until it can be read.
    return bounds.request_id is not None and bounds.request_id in (event.id, event.requestId) and not event.lacks_id


def _could_be_ours(bounds: Bounds, event: ExecutionEvent) -> bool:
    if bounds.event_id is not None or event.id in bounds.known_event_ids:
        return False
    if bounds.request_id is not None and event.requestId not in (None, bounds.request_id):
        return False
    return is_young(event, bounds.floor)


def _oldest_first(events: Iterable[ExecutionEvent]) -> tuple[ExecutionEvent, ...]:
    def age(event: ExecutionEvent) -> tuple[bool, float, str]:
        created = created_at(event)
        return created is None, created.timestamp() if created is not None else 0.0, event.id

    return tuple(sorted(events, key=age))


def candidates(bounds: Bounds, events: Iterable[ExecutionEvent], *, settle: float) -> tuple[ExecutionEvent, ...]:
    """The events that could be the run and appeared in time, oldest first; only the one itself where an id decides."""
    events = list(events)
    ours = [event for event in events if is_ours(bounds, event)]
    if ours:
        return (ours[0],)
    ceiling = bounds.ceiling(settle)
    return _oldest_first(
        event
        for event in events
        if _could_be_ours(bounds, event) and (ceiling is None or event.createdAt is None or event.createdAt <= ceiling)
    )


def possible(bounds: Bounds, events: Iterable[ExecutionEvent], *, settle: float) -> tuple[ExecutionEvent, ...]:
    """The candidates, oldest first; if there is none, the first event that appeared later."""
    events = list(events)
    in_time = candidates(bounds, events, settle=settle)
    return in_time or _oldest_first(event for event in events if _could_be_ours(bounds, event))[:1]


def is_settled(bounds: Bounds, now: Moment, *, settle: float, appear_within: float = 0.0) -> bool:
    """Whether `settle` seconds have passed since acceptance, on our clock and on the server's.

    Both, because the look may come from another machine than the one that submitted. A server's clock that stands
    still or went back cannot hold it off for more than `appear_within` seconds longer.
    """
    passed = now.local - bounds.accepted_at
    wanted = timedelta(seconds=settle)
    if passed < wanted:
        return False
    if (
        now.server is None
        or bounds.server_after is None
        or now.server - bounds.server_after >= wanted + DATE_RESOLUTION
    ):
        return True
    return passed >= wanted + max(timedelta(seconds=appear_within), 2 * TOLERANCE)


def match(
    bounds: Bounds, events: Iterable[ExecutionEvent], now: Moment, *, settle: float, appear_within: float
) -> Match:
    """Say which of the events seen so far is the run.

    Args:
        bounds: what was recorded around the POST.
        events: everything seen since, each once.
        now: when the last look was *begun*.
        settle: seconds after acceptance before anything is inferred.
        appear_within: seconds after acceptance after which the run counts as missing.
    """
    seen = possible(bounds, events, settle=settle)
    if seen and is_ours(bounds, seen[0]):
        return Found(seen[0], certain=True)
    # What an unreadable row says once it can be read may rule its event out.
    if not is_settled(bounds, now, settle=settle, appear_within=appear_within) or any(
        event.unreadable is not None for event in seen
    ):
        return NotYet(seen)
    if len(seen) > 1:
        return Several(seen)
    if seen:
        return Found(seen[0], certain=False)
    if now.local - bounds.accepted_at >= timedelta(seconds=appear_within):
        return Missing()
    return NotYet()


def look(agent_id: str, bounds: Bounds, wanted: Collection[str] = ()) -> Steps[Look]:
    """Ask for every event that could be the run, and no more.

    Args:
        agent_id: the agent.
        bounds: what is sought.
        wanted: ids of the events that matter, once they are known; the look ends when it has them all.
    """
    missing = set(wanted) or ({bounds.event_id} if bounds.event_id is not None else set())
    seeking = not missing

    def enough(answer: Answer[Page[ExecutionEvent]]) -> bool:
        rows = answer.value.data
        if not seeking:
            missing.difference_update(event.id for event in rows)
            if not missing:
                return True
        elif any(is_ours(bounds, event) for event in rows):
            return True
        return any(lies_before(event, bounds.floor) for event in rows)

    queued: list[ExecutionEvent] = []
    server_time = None
    if seeking:
        # A run that has not begun may have no `startedAt`; sorted by that, it can stand behind everything else. Asked
        # first, since a run that begins between the two answers is then in both, and otherwise would be in neither.
        pending = yield from walk(list_agent_events(agent_id, status=Status.PENDING, limit=_PAGE_ROWS))
        queued, server_time = pending.value, pending.server_time
    listed = yield from walk(list_agent_events(agent_id, limit=_PAGE_ROWS), enough)
    # The later answer stands: a run may have moved on between the two.
    events = {event.id: event for event in (*queued, *listed.value)}
    return Look(tuple(events.values()), server_time if seeking else listed.server_time)
