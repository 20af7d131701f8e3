"""What `airflow agents probe` has observed of the platform. Pure: responses in, facts out; `findings` judges them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from airflow_provider_agents.api.models import ExecutionEvent, Status
from airflow_provider_agents.runs.matching import DATE_RESOLUTION
from airflow_provider_agents.runs.status import is_terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

#: The times that "newest first" can mean.
ORDERS = ("createdAt", "startedAt", "updatedAt")
#: The fields that the API's page documents: those of the model but one.
DOCUMENTED_FIELDS = frozenset(ExecutionEvent.model_fields) - {"requestId"}
#: The names of rate-limit headers are no standard: `RateLimit-*` (IETF draft), `X-RateLimit-*`, `X-Rate-Limit-*`.
_RATE_LIMIT_HEADER = re.compile(r"rate-?limit|retry-after|quota")
#: Of each set of names that the server makes up: enough for a report, and a bound for a server that sends any number.
_MOST_NAMES = 50

CreatedKind = Literal["accepted", "appeared", "either", "between", "behind", "ahead"]
Bound = Literal["startedAfter", "startedBefore"]
#: Of a bound compared with a run's own `startedAt`: a second below it, the same, a second above it.
BOUND_OFFSETS = (timedelta(seconds=-1), timedelta(0), timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A row that was not there before the POST.

    Attributes:
        event: the row.
        position: its place in the listing, from 0.
    """

    event: ExecutionEvent
    position: int


@dataclass(frozen=True, slots=True)
class SeenListing:
    """The rows of a listing that were not there before the POST.

    Attributes:
        rows: by the id of the event.
        size: how many rows were read in all.
        has_more: whether more rows follow that were not read.
    """

    rows: Mapping[str, SeenRow]
    size: int
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[ExecutionEvent], known_ids: Iterable[str], *, has_more: bool) -> SeenListing:
        """Leave out the known rows."""
        known = frozenset(known_ids)
        new = {event.id: SeenRow(event, place) for place, event in enumerate(rows) if event.id not in known}
        return cls(new, len(rows), has_more)


@dataclass(frozen=True, slots=True)
class Poll:
    """One poll: the runs with the status PENDING, and then all.

    Attributes:
        asked_at: our clock before the first request.
        answered_at: our clock after the last response.
        server_time: the server's clock (`Date`) in the listing of all runs.
        pending: the runs with the status PENDING; None if they were not asked for.
        listed: all runs.
    """

    asked_at: datetime
    answered_at: datetime
    server_time: datetime | None
    pending: SeenListing | None
    listed: SeenListing

    def event(self, event_id: str) -> ExecutionEvent | None:
        """The run as the later of the two listings shows it."""
        for listing in (self.listed, self.pending):
            if listing is not None and event_id in listing.rows:
                return listing.rows[event_id].event
        return None

    @property
    def event_ids(self) -> list[str]:
        """The events that were not there before the POST."""
        pending = self.pending.rows if self.pending is not None else ()
        return list(dict.fromkeys([*pending, *self.listed.rows]))


@dataclass(slots=True, kw_only=True)
class ProbedRun:
    """One run that was asked for, and what was seen of it.

    Attributes:
        server_before: the server's clock (`Date`) before the POST.
        sent_at: our clock just before the POST; None once it is known that the POST started nothing.
        answered_at: our clock when the 202 was there; None without one.
        server_after: the server's clock in the 202.
        request_id: of the 202.
        polls: the polls after the 202, in order; add to them by `record`.
        kept_by_start_filter: whether `startedAfter` kept the run while it was PENDING and had no `startedAt`; None if
            that could not be tried.
    """

    server_before: datetime | None
    sent_at: datetime | None
    answered_at: datetime | None = None
    server_after: datetime | None = None
    request_id: str | None = None
    polls: list[Poll] = field(default_factory=list)
    kept_by_start_filter: bool | None = None
    _seen: dict[str, ExecutionEvent] = field(default_factory=dict)

    def record(self, poll: Poll) -> None:
        """Add a poll."""
        self.polls.append(poll)
        for event_id in poll.event_ids:
            event, last = poll.event(event_id), self._seen.get(event_id)
            # A listing that lags may follow, so an end counts wherever it was seen.
            if event is not None and (last is None or not is_terminal(last)):
                self._seen[event_id] = event

    @property
    def is_accepted(self) -> bool:
        """Whether the platform has accepted the run."""
        return self.answered_at is not None

    @property
    def is_in_doubt(self) -> bool:
        """Whether the run may have been started, although there was no 202."""
        return self.sent_at is not None and not self.is_accepted

    @property
    def candidate_ids(self) -> list[str]:
        """The events that can be the run: one, if its id or `requestId` is the one of the 202."""
        if self.request_id is not None:
            named = [name for name, event in self._seen.items() if self.request_id in (name, event.requestId)]
            if named:
                return named[:1]
        return [name for name, event in self._seen.items() if event.requestId in (None, self.request_id)]

    @property
    def event_ids(self) -> list[str]:
        """All events that were not there before the POST."""
        return list(self._seen)

    @property
    def event_id(self) -> str | None:
        """The run's event; None if there is none, or several could be it."""
        ids = self.candidate_ids
        return ids[0] if len(ids) == 1 else None

    @property
    def event(self) -> ExecutionEvent | None:
        """The run's event as it was seen last."""
        return self._seen[self.event_id] if self.event_id is not None else None

    @property
    def is_over(self) -> bool:
        """Whether the run, or every run that can be it, has ended."""
        ids = self.candidate_ids
        return bool(ids) and all(is_terminal(self._seen[event_id]) for event_id in ids)

    def states(self) -> Iterator[tuple[Poll, ExecutionEvent | None]]:
        """Each poll, and the run's event in it."""
        event_id = self.event_id
        if event_id is not None:
            for poll in self.polls:
                yield poll, poll.event(event_id)

    @property
    def shown_from(self) -> int | None:
        """The number of the poll from which on the event is there; None if it was never there.

        A poll without the event counts only if the event came back later: an event may be deleted after its end.
        """
        there = [number for number, (_, event) in enumerate(self.states()) if event is not None]
        if not there:
            return None
        return next((later for before, later in reversed(list(pairwise(there))) if later - before > 1), there[0])

    @property
    def delay(self) -> float | None:
        """Seconds from the 202 until the event is there for good; at most one poll too long. None if unknown."""
        number = self.shown_from
        if number is None or self.answered_at is None:
            return None
        return max(0.0, (self.polls[number].answered_at - self.answered_at).total_seconds())


def kind_of_created(run: ProbedRun, created_at: datetime) -> tuple[CreatedKind, float]:
    """Which moment `createdAt` is, and by how many seconds at least the clocks differ.

    `either` if the event was there at once, so that each reading gives the same moment.
    """
    if run.server_before is None or run.server_after is None:
        return "either", 0.0
    if created_at < run.server_before - DATE_RESOLUTION:
        return "behind", (run.server_before - created_at).total_seconds()
    first = run.polls[next(number for number, (_, event) in enumerate(run.states()) if event is not None)]
    number = run.polls.index(first)
    if first.server_time is not None and created_at > first.server_time + 2 * DATE_RESOLUTION:
        return "ahead", (created_at - first.server_time - DATE_RESOLUTION).total_seconds()
    absent_at = run.polls[number - 1].server_time if number else None
    if absent_at is None or absent_at <= run.server_after + DATE_RESOLUTION:
        return "either", 0.0
    if created_at <= run.server_after + DATE_RESOLUTION:
        return "accepted", 0.0
    return ("appeared" if created_at >= absent_at else "between"), 0.0


@dataclass(slots=True)
class Lag:
    """How far the listings of one run lagged.

    Attributes:
        vanished: polls without the event after it had appeared.
        is_gone: whether it was missing from the last poll.
        older: seconds after which an older state came behind a newer one.
        behind: seconds by which a change was shown too late, at least. It is too long if the clock of the events is
            behind that of `Date`.
    """

    vanished: int = 0
    is_gone: bool = False
    older: float = 0.0
    behind: float = 0.0


def lag_of(run: ProbedRun) -> Lag:
    """Compare each poll with those before it."""
    lag = Lag()
    newest: ExecutionEvent | None = None
    newest_at = run.polls[0].answered_at if run.polls else None
    server_time: datetime | None = None
    for poll, event in run.states():
        lag.is_gone = event is None and newest is not None
        lag.vanished += lag.is_gone
        if event is not None and newest_at is not None:
            if newest is not None and _is_older(event, newest):
                lag.older = max(lag.older, (poll.answered_at - newest_at).total_seconds())
            else:
                if newest is None or event.status != newest.status:
                    newest_at = poll.answered_at
                    if newest is not None and server_time is not None and event.updatedAt is not None:
                        lag.behind = max(lag.behind, (server_time - event.updatedAt).total_seconds())
                newest = event
        server_time = poll.server_time
    return lag


def _is_older(event: ExecutionEvent, newest: ExecutionEvent) -> bool:
    if is_terminal(newest) != is_terminal(event):
        return is_terminal(newest)
    if event.status == Status.PENDING and newest.status != Status.PENDING:
        return True
    return event.updatedAt is not None and newest.updatedAt is not None and event.updatedAt < newest.updatedAt


@dataclass(slots=True)
class Traits:
    """What the rows of all listings have shown.

    Attributes:
        orders: the times by which every listing can have been sorted.
        statuses: undocumented statuses.
        fields: undocumented fields.
        missing: documented fields that a row lacks.
        unreadable: rows that cannot be read: the event and the reason.
        short_pages: pages with fewer rows than were asked for and yet a next page.
    """

    orders: set[str] = field(default_factory=lambda: set(ORDERS))
    statuses: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)
    short_pages: int = 0

    def record(self, rows: Sequence[ExecutionEvent]) -> None:
        """Record a listing."""
        for event in rows:
            if event.unreadable is not None:
                if len(self.unreadable) < _MOST_NAMES:
                    self.unreadable[event.id] = event.unreadable
                continue
            sent = event.to_json().keys()
            for found, names in (
                (self.statuses, {event.status} - set(Status)),
                (self.fields, sent - DOCUMENTED_FIELDS - {"requestId"}),
                (self.missing, DOCUMENTED_FIELDS - sent),
            ):
                found.update(sorted(names)[: _MOST_NAMES - len(found)])
        for name in tuple(self.orders):
            times = [moment for event in rows if (moment := getattr(event, name)) is not None]
            if any(later > earlier for earlier, later in pairwise(times)):
                self.orders.discard(name)


@dataclass(slots=True, kw_only=True)
class Observations:
    """All that is known.

    Attributes:
        agent_id: whose runs were started.
        wanted: how many runs were wanted.
        runs: those that were asked for, in order.
        clock: how the server's clock and this machine's compare (`check.compare_clocks`); None without a response.
        bounds: whether a listing with this bound, this far from a run's own `startedAt`, had the run.
        headers: the rate-limit headers of the last response that had them.
        requests: how many responses there were.
        refusals: how many of them had which status from 400 on.
        others: events of the agent that are no run of this command's.
        stopped_by: why the command ended early, as a sentence.
    """

    agent_id: str
    wanted: int
    runs: list[ProbedRun] = field(default_factory=list)
    traits: Traits = field(default_factory=Traits)
    clock: tuple[Literal["ok", "failed"], str] | None = None
    bounds: dict[tuple[Bound, timedelta], bool] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    refusals: Counter[int] = field(default_factory=Counter)
    others: set[str] = field(default_factory=set)
    stopped_by: str | None = None

    def record_response(self, status_code: int, headers: Mapping[str, str]) -> None:
        """Keep what a response says of rate limits."""
        self.requests += 1
        if status_code >= 400:  # noqa: PLR2004 - HTTP's own classes
            self.refusals[status_code] += 1
        for name, value in headers.items():
            if _RATE_LIMIT_HEADER.search(name) and (name in self.headers or len(self.headers) < _MOST_NAMES):
                self.headers[name] = value

    def record_between(self, events: Iterable[ExecutionEvent]) -> None:
        """Events that were first seen after the polls of a run, and before the next POST."""
        self.others.update(event.id for event in events)

    @property
    def other_event_ids(self) -> set[str]:
        """Events that are no run of this command's: of several that can be one, all but the oldest."""
        own = {name for run in self.accepted for name in run.candidate_ids[:1]}
        return (self.others | {name for run in self.accepted for name in run.event_ids}) - own

    @property
    def accepted(self) -> list[ProbedRun]:
        """The runs that the platform has accepted."""
        return [run for run in self.runs if run.is_accepted]

    @property
    def known(self) -> list[ProbedRun]:
        """The runs whose event is known."""
        return [run for run in self.accepted if run.event_id is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all wanted runs were seen to their end."""
        return len(self.accepted) == self.wanted and all(run.is_over for run in self.accepted)
