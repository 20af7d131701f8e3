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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_agents.api.models import ExecutionEvent

#: The clock in the `Date` header may be a gateway's and the one in `createdAt` an application server's. Machines that
#: keep time by NTP agree within a second; five leave room without including many runs of other parties.
TOLERANCE = timedelta(seconds=5)
#: `Date` counts whole seconds, so the difference of two of them is off by less than one.
DATE_RESOLUTION = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class MatchWindow:
    """What is known about the run that is sought.

    Attributes:
        server_before: the server's clock before the POST, None if it is not known.
        server_after: the server's clock after it, None likewise.
    """

    request_id: str | None
    event_id: str | None
    known_event_ids: frozenset[str]
    server_before: datetime | None
    server_after: datetime | None

    @property
    def not_before(self) -> datetime | None:
        """The run's event was created no earlier than this, on the server's clock."""
        return self.server_before - TOLERANCE if self.server_before is not None else None

    def not_after(self, seconds: float) -> datetime | None:
        """A run that appears within `seconds` was created no later than this, on the server's clock."""
        return self.server_after + timedelta(seconds=seconds) + TOLERANCE if self.server_after is not None else None

    def passed(self, waited: timedelta, server_time: datetime | None) -> timedelta:
        """The time since acceptance, at least.

        Args:
            waited: how long this process has waited, on its own clock. Acceptance came before that.
            server_time: the server's clock now, None if it is not known.
        """
        if server_time is None or self.server_after is None:
            return waited
        # Both are cut, so that a process which resumes a wait never knows less than the one before it.
        return max(waited, server_time - self.server_after) - DATE_RESOLUTION

    def criteria(self, settle: float, began_at: datetime | None) -> SearchCriteria:
        """What to search for.

        Args:
            settle: seconds after acceptance before anything is inferred.
            began_at: when this process began to wait, on its own clock; None for the first poll.
        """
        wanted = timedelta(seconds=settle) + (DATE_RESOLUTION if self.server_after is not None else timedelta())
        is_named = self.event_id is not None
        return SearchCriteria(
            not_before=self.not_before,
            ids=tuple(name for name in (self.event_id or self.request_id,) if name is not None),
            decidable_at=None if is_named or began_at is None else began_at + wanted,
            decidable_at_server=self.server_after + wanted if self.server_after is not None and not is_named else None,
            is_named=is_named,
        )


@dataclass(frozen=True, slots=True)
class SearchCriteria:
    """What a listing must show so that it can decide.

    Attributes:
        not_before: every event of the agent that was created since; None if they all matter.
        ids: an event with one of these as its id or `requestId` decides at once.
        decidable_at: from when on a listing can decide without an id, on our clock; None if every listing can.
        decidable_at_server: the same on the server's clock; None if only `decidable_at` counts. One of them is enough.
        is_named: the id is the event's own, so the row of that event is all that is needed.
    """

    not_before: datetime | None
    ids: tuple[str, ...]
    decidable_at: datetime | None
    decidable_at_server: datetime | None = None
    is_named: bool = False

    def is_decidable(self, now: datetime, server_time: datetime | None) -> bool:
        """Whether a listing that was begun at this moment can decide without an id."""
        if self.decidable_at is None or now >= self.decidable_at:
            return True
        return (
            server_time is not None and self.decidable_at_server is not None and server_time >= self.decidable_at_server
        )


@dataclass(frozen=True, slots=True)
class NotYet:
    """Nothing is known yet.

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
    """One of these, oldest first; the API does not show which. `late` as for `Found`."""

    events: tuple[ExecutionEvent, ...]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """None has appeared in time."""


Match = NotYet | Found | Several | Missing


def clock_at_least(server_time: datetime | None, events: Iterable[ExecutionEvent]) -> datetime | None:
    """A moment that the clock which stamps events has passed; None if it is not known.

    Args:
        server_time: the server's clock as a response showed it.
        events: what it has shown by then. A stamp is never ahead of the clock that made it. `startedAt` is not used:
            it may be the moment for which a run is planned.
    """
    if server_time is not None:
        return server_time - TOLERANCE
    stamps = (stamp for event in events for stamp in (event.createdAt, event.updatedAt, event.completedAt))
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def is_young(event: ExecutionEvent, not_before: datetime | None) -> bool:
    """Whether an event is young enough to be mistaken for one created after `not_before`."""
    created_by = event.created_by
    return not_before is None or created_by is None or created_by >= not_before


def is_before(event: ExecutionEvent, not_before: datetime | None) -> bool:
    """Whether all that follows this row, newest first, is older than `not_before`.

    The API does not say which timestamp it sorts by, so all of them must be older. A row that does not show when it
    began, or when it changed last, proves nothing: it may stand anywhere, the top and the bottom included.
    """
    if not_before is None or event.startedAt is None or event.changed_at is None:
        return False
    return all(
        moment < not_before for moment in (event.createdAt, event.startedAt, event.changed_at) if moment is not None
    )


def is_ours(window: MatchWindow, event: ExecutionEvent) -> bool:
    """Whether an id shows that this event is the run."""
    if window.event_id is not None:
        return event.id == window.event_id
    # What has no id cannot be followed: it is a candidate until it can be read.
    return window.request_id is not None and window.request_id in (event.id, event.requestId) and not event.lacks_id


def _is_candidate(window: MatchWindow, event: ExecutionEvent) -> bool:
    if window.event_id is not None or event.id in window.known_event_ids:
        return False
    if window.request_id is not None and event.requestId not in (None, window.request_id):
        return False
    return is_young(event, window.not_before)


def oldest_first(events: Iterable[ExecutionEvent]) -> tuple[ExecutionEvent, ...]:
    """Events by the time of their creation, then by id. Those of which no time is known come last."""

    def age(event: ExecutionEvent) -> tuple[bool, float, str]:
        created_by = event.created_by
        return created_by is None, created_by.timestamp() if created_by is not None else 0.0, event.id

    return tuple(sorted(events, key=age))


def candidates(window: MatchWindow, events: Iterable[ExecutionEvent], *, within: float) -> tuple[ExecutionEvent, ...]:
    """The events that could be the run if it appears within N seconds of acceptance, oldest first.

    Only the run itself where an id decides.
    """
    events = list(events)
    ours = [event for event in events if is_ours(window, event)]
    if ours:
        return (ours[0],)
    not_after = window.not_after(within)
    return oldest_first(
        event
        for event in events
        if _is_candidate(window, event)
        and (not_after is None or event.createdAt is None or event.createdAt <= not_after)
    )


def possible(
    window: MatchWindow,
    events: Iterable[ExecutionEvent],
    *,
    settle: float,
    appear_within: float,
    was_empty: bool = False,
) -> Found | Several | NotYet:
    """What the events would mean if there were nothing to wait for. The arguments are those of `match`."""
    events = list(events)
    seen = candidates(window, events, within=settle)
    if seen and is_ours(window, seen[0]):
        return Found(seen[0])
    late = was_empty or not seen
    if late:
        # An event that was created within `settle` and shown later is as likely ours as one that was created later.
        seen = candidates(window, events, within=appear_within)
    if len(seen) > 1:
        return Several(seen, late=late)
    return Found(seen[0], late=late) if seen else NotYet()


def match(
    window: MatchWindow,
    events: Iterable[ExecutionEvent],
    passed: timedelta,
    *,
    settle: float,
    appear_within: float,
    was_empty: bool = False,
) -> Match:
    """Say which of the events seen so far is the run.

    Args:
        window: what was recorded around the POST.
        events: everything seen since, each once.
        passed: the time from acceptance to the *begin* of the last listing, at least.
        settle: seconds after acceptance before anything is inferred.
        appear_within: seconds after acceptance after which the run counts as missing. An event that was created
            later is not the run.
        was_empty: an earlier listing, begun after `settle`, showed no candidate.
    """
    found = possible(window, events, settle=settle, appear_within=appear_within, was_empty=was_empty)
    if isinstance(found, Found) and is_ours(window, found.event):
        return found
    has_settled = passed >= timedelta(seconds=settle)
    if isinstance(found, NotYet):
        return Missing() if passed >= timedelta(seconds=appear_within) else NotYet(settled=has_settled)
    # An unreadable row may rule its event out once it can be read.
    if not has_settled or any(event.unreadable is not None for event in found.events):
        return NotYet(found.events)
    return found
