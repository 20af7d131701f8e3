"""Which event is mine: (what was recorded, events, time passed) -> not yet | this one | these, ambiguous.

An event whose id or `requestId` is ours decides. Without that, all there is to go by is what was there before the
POST and when an event was created, on the server's own clock. What cannot be told apart stays a set.

Two machines' clocks are never compared. The time since acceptance is measured by one clock alone: the server's, or
that of the process that waits, counted from the moment at which the process began to wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api.endpoints import list_agent_events
from airflow_provider_agents.api.flow import Flow, Response, paginate
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
        server_before: the server's clock before the POST, None if it did not tell.
        server_after: the server's clock after it, None likewise.
    """

    request_id: str | None
    event_id: str | None
    known_event_ids: frozenset[str]
    server_before: datetime | None
    server_after: datetime | None

    @property
    def floor(self) -> datetime | None:
        """The run's event was created no earlier than this, on the server's clock."""
        return self.server_before - TOLERANCE if self.server_before is not None else None

    def ceiling(self, seconds: float) -> datetime | None:
        """A run that appears within `seconds` was created no later than this, on the server's clock."""
        return self.server_after + timedelta(seconds=seconds) + TOLERANCE if self.server_after is not None else None

    def passed(self, waited: timedelta, server_time: datetime | None) -> timedelta:
        """The time since acceptance, at least.

        Args:
            waited: how long this process has waited, on its own clock. Acceptance came before that.
            server_time: the server's clock now, None if it did not tell.
        """
        if server_time is None or self.server_after is None:
            return waited
        # Both are cut, so that a process which resumes a wait never knows less than the one before it.
        return max(waited, server_time - self.server_after) - DATE_RESOLUTION

    def seek(self, settle: float, began_at: datetime | None) -> Seek:
        """What to look for.

        Args:
            settle: seconds after acceptance before anything is inferred.
            began_at: when this process began to wait, on its own clock; None for the first look.
        """
        wanted = timedelta(seconds=settle) + (DATE_RESOLUTION if self.server_after is not None else timedelta())
        is_named = self.event_id is not None
        return Seek(
            floor=self.floor,
            ids=tuple(name for name in (self.event_id or self.request_id,) if name is not None),
            ripe_at=None if is_named or began_at is None else began_at + wanted,
            ripe_at_server=self.server_after + wanted if self.server_after is not None and not is_named else None,
            is_named=is_named,
        )


@dataclass(frozen=True, slots=True)
class Seek:
    """What a look for a run must show to say anything.

    Attributes:
        floor: every event of the agent that was created since; None if they all matter.
        ids: an event with one of these as its id or `requestId` decides at once.
        ripe_at: the clock of this process from which on a look can decide without an id; None if every look may.
        ripe_at_server: the same on the server's clock; None if only `ripe_at` counts. The earlier one is enough.
        is_named: the id is the event's own, so the row of that event is all that is needed.
    """

    floor: datetime | None
    ids: tuple[str, ...]
    ripe_at: datetime | None
    ripe_at_server: datetime | None = None
    is_named: bool = False

    def is_ripe(self, now: datetime, server_time: datetime | None) -> bool:
        """Whether a look that was begun at this moment can decide without an id."""
        if self.ripe_at is None or now >= self.ripe_at:
            return True
        return server_time is not None and self.ripe_at_server is not None and server_time >= self.ripe_at_server


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at an agent's events showed.

    Attributes:
        events: as they were read.
        server_time: the server's clock when the look was begun.
        absent: ids of followed events that no listing shows any more in which they ought to stand.
    """

    events: tuple[ExecutionEvent, ...]
    server_time: datetime | None
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nothing can be said yet.

    Attributes:
        events: those that can be the run so far, oldest first.
        settled: `settle` has passed, and there is no candidate: whatever appears from now on is late.
    """

    events: tuple[ExecutionEvent, ...] = ()
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """This one.

    Attributes:
        late: no candidate had appeared within `settle`, so this event may be another run's.
    """

    event: ExecutionEvent
    late: bool = False

    @property
    def events(self) -> tuple[ExecutionEvent, ...]:
        """It alone."""
        return (self.event,)


@dataclass(frozen=True, slots=True)
class Several:
    """One of these, oldest first; the API does not tell which. `late` as for `Found`."""

    events: tuple[ExecutionEvent, ...]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """None has appeared in time."""


Match = NotYet | Found | Several | Missing


def clock_at_least(server_time: datetime | None, events: Iterable[ExecutionEvent]) -> datetime | None:
    """A moment that the clock which stamps events has passed; None if nothing tells.

    Args:
        server_time: the server's clock as it told it.
        events: what it has shown by then. A stamp is never ahead of the clock that made it. `startedAt` is not used:
            it may be the moment for which a run is planned.
    """
    if server_time is not None:
        return server_time - TOLERANCE
    stamps = (stamp for event in events for stamp in (event.createdAt, event.updatedAt, event.completedAt))
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def is_young(event: ExecutionEvent, floor: datetime | None) -> bool:
    """Whether an event is young enough to be mistaken for one created after `floor`."""
    created_by = event.created_by
    return floor is None or created_by is None or created_by >= floor


def lies_before(event: ExecutionEvent, floor: datetime | None) -> bool:
    """Whether all that follows this row, newest first, is older than `floor`.

    The API does not say which timestamp it sorts by, so all of them must be older. A row that does not say when it
    began, or when it changed last, says nothing: it may stand anywhere, the top and the bottom included.
    """
    if floor is None or event.startedAt is None or event.changed_at is None:
        return False
    return all(moment < floor for moment in (event.createdAt, event.startedAt, event.changed_at) if moment is not None)


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
        created_by = event.created_by
        return created_by is None, created_by.timestamp() if created_by is not None else 0.0, event.id

    return tuple(sorted(events, key=age))


def candidates(bounds: Bounds, events: Iterable[ExecutionEvent], *, within: float) -> tuple[ExecutionEvent, ...]:
    """The events that could be the run if it appears within so many seconds of acceptance, oldest first.

    Only the run itself where an id decides.
    """
    events = list(events)
    ours = [event for event in events if is_ours(bounds, event)]
    if ours:
        return (ours[0],)
    ceiling = bounds.ceiling(within)
    return _oldest_first(
        event
        for event in events
        if _could_be_ours(bounds, event) and (ceiling is None or event.createdAt is None or event.createdAt <= ceiling)
    )


def possible(
    bounds: Bounds, events: Iterable[ExecutionEvent], *, settle: float, appear_within: float, was_empty: bool = False
) -> Found | Several | NotYet:
    """What the events would mean if there were nothing to wait for. The arguments are those of `match`."""
    events = list(events)
    seen = candidates(bounds, events, within=settle)
    if seen and is_ours(bounds, seen[0]):
        return Found(seen[0])
    late = was_empty or not seen
    if late:
        # What was created in the window and appears after it is no likelier than what was created after it.
        seen = candidates(bounds, events, within=appear_within)
    if len(seen) > 1:
        return Several(seen, late=late)
    return Found(seen[0], late=late) if seen else NotYet()


def match(
    bounds: Bounds,
    events: Iterable[ExecutionEvent],
    passed: timedelta,
    *,
    settle: float,
    appear_within: float,
    was_empty: bool = False,
) -> Match:
    """Say which of the events seen so far is the run.

    Args:
        bounds: what was recorded around the POST.
        events: everything seen since, each once.
        passed: the time from acceptance to the *begin* of the last look, at least.
        settle: seconds after acceptance before anything is inferred.
        appear_within: seconds after acceptance after which the run counts as missing. An event that was created
            later is not the run.
        was_empty: an earlier look, begun after `settle`, showed no candidate.
    """
    found = possible(bounds, events, settle=settle, appear_within=appear_within, was_empty=was_empty)
    if isinstance(found, Found) and is_ours(bounds, found.event):
        return found
    has_settled = passed >= timedelta(seconds=settle)
    if isinstance(found, NotYet):
        return Missing() if passed >= timedelta(seconds=appear_within) else NotYet(settled=has_settled)
    # What an unreadable row says once it can be read may rule its event out.
    if not has_settled or any(event.unreadable is not None for event in found.events):
        return NotYet(found.events)
    return found


def look(agent_id: str, bounds: Bounds, wanted: Collection[str] = ()) -> Flow[Look]:
    """Ask for every event that could be the run, and no more.

    Args:
        agent_id: the agent.
        bounds: what is sought.
        wanted: ids of the events that matter, once they are known; the look ends when it has them all.
    """
    missing = set(wanted) or ({bounds.event_id} if bounds.event_id is not None else set())
    seeking = not missing

    def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
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
        pending = yield from paginate(list_agent_events(agent_id, status=Status.PENDING, limit=_PAGE_ROWS))
        queued, server_time = pending.value, pending.server_time
    listed = yield from paginate(list_agent_events(agent_id, limit=_PAGE_ROWS), enough)
    # The later answer stands: a run may have moved on between the two. Unless its row cannot be read: what has not
    # begun may stand behind rows that are old.
    unreadable = (event for event in listed.value if event.unreadable is not None)
    readable = (event for event in listed.value if event.unreadable is None)
    events = {event.id: event for event in (*unreadable, *queued, *readable)}
    return Look(tuple(events.values()), server_time if seeking else listed.server_time)
