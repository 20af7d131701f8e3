"""What a poll cycle would cost, counted in requests, and the cheapest choice of listings. Pure.

The API cannot list some events by their ids. It has an agent's listing or the account's, narrowed by
`startedAfter` and `startedBefore`, or by `status`. Which of them is the cheapest depends on how many runs are waited
for, when they started, and what else happens in the account. The last is only known from earlier responses, so it is an
estimate, and a listing that turns out dearer than its estimate is broken off.

A new subscription may know the id of its event and nothing else. Such events are first looked up in the listings that
all share: the active set, and then the account's listing, newest first, as long as that takes fewer pages than the
agents' own listings of what is still missing. What these pages do not show is looked up in the agents' own listings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_provider_agents.api.flow import MAX_LIMIT, MAX_PAGES
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.polling.subscriptions import ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.subscriptions import ClockReading, FollowedEvent, Scope

#: Room on either side of a `startedAt` in a window: the page does not say whether the bounds are inclusive, nor how
#: finely they are compared.
WINDOW_MARGIN = timedelta(seconds=1)
#: Estimates expire after this many seconds. Then the cheapest conceivable value holds again, until it is tried.
BELIEVED_SECONDS = 300.0
#: Neighbouring windows are joined when fewer rows than this lie between them: half a page, for a whole request less.
_JOINING_ROWS = MAX_LIMIT // 2
#: As long as nothing is known about the account, its windows are joined over gaps of this many seconds. One agent has
#: fewer runs, so its windows are joined over longer gaps.
_JOINING_SECONDS, _JOINING_SECONDS_OF_AGENT = 1.0, 60.0
#: The name of the account's whole listing. Its listings by status are named as their statuses.
WHOLE_LISTING: Final = "account"
#: A listing that was chosen on an estimate is broken off at this many times what the agents' own listings would cost,
#: but never before `_LEAST_BUDGET` pages.
_BUDGET_FACTOR, _LEAST_BUDGET = 2, 4
#: From this many followed events on, the active set is read without a comparison, if it is at most this many times as
#: large as what is followed: no choice could be much cheaper, and a comparison takes longer than the requests.
_MANY_EVENTS, _ACTIVE_FACTOR = 400, 2
#: `Date` counts whole seconds and a response takes a while: up to this many seconds apart, the clocks agree.
_SAME_CLOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Window:
    """Some events that began close together, found by one narrow listing.

    Attributes:
        agent_id: whose listing; `ACCOUNT` for the account's.
        event_ids: the events that it shows.
        after: its older end.
        before: its younger end.
        requests: how many pages it takes, as far as is known.
    """

    agent_id: Scope
    event_ids: tuple[str, ...]
    after: datetime
    before: datetime
    requests: int


class StartedRun(NamedTuple):
    """A followed event, and what narrows its listing. A tuple, as thousands are sorted at once."""

    started_at: datetime
    event_id: str
    agent_id: Scope


class ExpiringEstimate:
    """A number that was measured a while ago.

    Args:
        at_best: the value as long as nothing was measured, or the measurement has expired.
    """

    def __init__(self, at_best: float | None) -> None:
        self._at_best = at_best
        self._value: float | None = None
        self._until = -math.inf

    def measured(self, value: float, clock: float) -> None:
        """Record a measurement made at `clock`, in monotonic seconds."""
        self._value, self._until = value, clock + BELIEVED_SECONDS

    def at(self, clock: float) -> float | None:
        """The value to plan with."""
        return self._value if clock < self._until else self._at_best


def pages(rows: float) -> int:
    """Pages that `rows` rows take; at least one."""
    return max(1, math.ceil(rows / MAX_LIMIT))


def windows(
    some: Iterable[StartedRun],
    rows_per_second: float | None,
    of_agent: Callable[[Scope], float | None],
    *,
    whole_account: bool,
) -> list[Window]:
    """The fewest narrow listings that show all of `some`, as far as is known.

    Args:
        some: the events.
        rows_per_second: how many runs start in the account; None if that is not known.
        of_agent: the same for an agent.
        whole_account: whether the account's own listing may be asked.
    """
    everything = sorted(some)
    owners = {started.agent_id for started in everything}
    by_account: list[Window] | None = None
    if whole_account and len(owners) > 1:
        by_account = [
            # A window with one agent's events is asked of the agent: other agents' rows cannot fill it.
            _window(group, group[0].agent_id, of_agent(group[0].agent_id))
            if all(started.agent_id == group[0].agent_id for started in group)
            else _window(group, ACCOUNT, rows_per_second)
            for group in _groups(everything, rows_per_second, _JOINING_SECONDS)
        ]
        if requests_of(by_account) < len(owners):
            # An agent takes one request at least, so there is nothing to compare.
            return by_account
    by_owner: dict[Scope, list[StartedRun]] = {}
    for started in everything:
        by_owner.setdefault(started.agent_id, []).append(started)
    by_agent = [
        _window(group, agent_id, of_agent(agent_id))
        for agent_id, own in by_owner.items()
        for group in _groups(own, _known(of_agent(agent_id), rows_per_second), _JOINING_SECONDS_OF_AGENT)
    ]
    return by_agent if by_account is None else min(by_agent, by_account, key=requests_of)


def _known(own: float | None, of_all: float | None) -> float | None:
    return own if own is not None else of_all


def _groups(
    ordered: Sequence[StartedRun], rows_per_second: float | None, joining_seconds: float
) -> Iterator[Sequence[StartedRun]]:
    """Neighbours that share a window, since few other rows lie between them."""
    start = 0
    for index, (one, next_one) in enumerate(pairwise(ordered), start=1):
        gap = (next_one.started_at - one.started_at).total_seconds()
        if gap * rows_per_second > _JOINING_ROWS if rows_per_second is not None else gap > joining_seconds:
            yield ordered[start:index]
            start = index
    yield ordered[start:]


def _window(group: Sequence[StartedRun], agent_id: Scope, rows_per_second: float | None) -> Window:
    after, before = group[0].started_at - WINDOW_MARGIN, group[-1].started_at + WINDOW_MARGIN
    rows = max(float(len(group)), (before - after).total_seconds() * (rows_per_second or 0.0))
    return Window(agent_id, tuple(started.event_id for started in group), after, before, pages(rows))


def requests_of(some: Iterable[Window]) -> int:
    """How many requests they take together, as far as is known."""
    return sum(window.requests for window in some)


class StartRate:
    """How many runs start in a second, as far as a listing shows that is read from its top.

    Args:
        server_now: the server's clock.
    """

    def __init__(self, server_now: datetime) -> None:
        self._newest = server_now
        self._oldest: datetime | None = None
        self._rows = 0

    def add(self, events: Iterable[ExecutionEvent]) -> None:
        """Count the next page."""
        for event in events:
            self._rows += 1
            if event.startedAt is not None:
                self._newest = max(self._newest, event.startedAt)
                self._oldest = min(self._oldest or event.startedAt, event.startedAt)

    @property
    def per_second(self) -> float | None:
        """The rate over the pages so far."""
        if self._oldest is None:
            return None
        return self._rows / max(1.0, (self._newest - self._oldest).total_seconds())

    def share_missing(self, not_before: datetime | None) -> float:
        """How much there still is down to `not_before`, as a multiple of the pages so far."""
        if self._oldest is None or not_before is None:
            return 1.0
        read = max(1.0, (self._newest - self._oldest).total_seconds())
        return max(0.0, (self._oldest - not_before).total_seconds()) / read


@dataclass(frozen=True, slots=True)
class Demand:
    """What a poll cycle must find out.

    Attributes:
        seeking: in which agents a run is sought that only a complete listing shows.
        looked_up: the agents of those who need the row of one event, as often as there are such rows.
        not_before: down to when the account's listing must be read for those who seek; None if there is no end.
        started: the followed events that have started.
        is_queue_followed: whether an event is followed that has not started.
        followed: how many events are followed.
    """

    seeking: Collection[Scope]
    looked_up: Collection[Scope]
    not_before: datetime | None
    started: Sequence[FollowedEvent]
    is_queue_followed: bool
    followed: int


class Choice(NamedTuple):
    """The cheapest choice of listings.

    Attributes:
        account: whether to read the account's listing for those who seek, and not each agent's.
        active: whether to read the active set for the events that are followed or looked up, and not narrow listings
            and each agent's.
        pending: whether to read first which events are PENDING.
        budget: how many pages a listing of the account may take before the agents' own are cheaper.
    """

    account: bool
    active: bool
    pending: bool
    budget: int


class Planner:
    """Chooses the cheapest listings by what earlier responses showed.

    Attributes:
        server_ahead: how far the server's clock is ahead of ours.
    """

    def __init__(self) -> None:
        self.server_ahead = timedelta()
        self._rows_per_second = ExpiringEstimate(None)
        self._status_pages: dict[str, ExpiringEstimate] = {
            status: ExpiringEstimate(1) for status in (Status.PENDING, Status.RUNNING)
        }
        # Requests for the followed events that have left the active set.
        self._leavers = ExpiringEstimate(0)
        self._agent_pages: dict[Scope, int] = {}
        self._agent_rates: dict[Scope, float] = {}
        # Until when the server is taken to refuse a listing of the account, by name.
        self._refused_until: dict[str, float] = {}

    @property
    def entries(self) -> int:
        """How many numbers about agents are kept."""
        return len(self._agent_pages) + len(self._agent_rates)

    @property
    def agents(self) -> set[Scope]:
        """The agents that these are about."""
        return set().union(self._agent_pages, self._agent_rates)

    # --- what responses show ------------------------------------------------------------------------------------

    def compare_clocks(self, server_time: datetime, at: ClockReading) -> None:
        """Measure how far the server's clock is ahead, by a response in the cycle that began at `at`."""
        ahead = server_time - at.wall
        self.server_ahead = ahead if abs(ahead.total_seconds()) > _SAME_CLOCK_SECONDS else timedelta()

    def start_rate(self, at: ClockReading) -> StartRate:
        """A measurement that begins now."""
        return StartRate(at.wall + self.server_ahead)

    def measured_status(self, status: Status, pages_read: int, at: ClockReading, *, whole: bool) -> None:
        """The account's listing by a status was read, or was broken off after `pages_read` pages."""
        self._status_pages[status].measured(pages_read if whole else _BUDGET_FACTOR * pages_read, at.monotonic)

    def measured_account(self, rate: StartRate, at: ClockReading) -> None:
        """The account's whole listing was read."""
        if rate.per_second is not None:
            self._rows_per_second.measured(rate.per_second, at.monotonic)

    def measured_agent(self, agent_id: str, pages_read: int, rate: StartRate) -> None:
        """An agent's listings were read: first by PENDING, then as a whole."""
        self._agent_pages[agent_id] = max(1, pages_read - 1)
        if rate.per_second is not None:
            self._agent_rates[agent_id] = rate.per_second

    def measured_leavers(self, some: Iterable[Window], at: ClockReading) -> None:
        """These windows had to be read after the active set."""
        self._leavers.measured(requests_of(some), at.monotonic)

    def forget(self, agent_id: Scope) -> None:
        """No subscription waits for this agent any more."""
        self._agent_pages.pop(agent_id, None)
        self._agent_rates.pop(agent_id, None)

    def refused(self, name: str, at: ClockReading) -> None:
        """The server has refused a listing of the account: do without it for a while."""
        self._refused_until[name] = at.monotonic + BELIEVED_SECONDS

    def allow(self, name: str) -> None:
        """Allow a listing again that was refused."""
        self._refused_until.pop(name, None)

    def is_open(self, name: str, at: ClockReading) -> bool:
        """Whether the server is not known to refuse a listing of the account."""
        return self._refused_until.get(name, -math.inf) <= at.monotonic

    # --- the choice ---------------------------------------------------------------------------------------------

    def choose(self, demand: Demand, at: ClockReading) -> Choice:
        """The cheapest choice of listings."""
        pending = self._pages_of(Status.PENDING, at)
        by_agent, by_account = self._costs_to_seek(demand, at)
        by_look_ups = self.requests_of_agents({*demand.looked_up}.difference(demand.seeking))
        by_active = self._cost_of_active(demand, at)
        by_windows, older = self._costs_of_windows(demand, by_active, at)
        is_queue_read = demand.is_queue_followed and self.is_open(Status.PENDING, at)
        costs = {
            (False, False): by_agent + by_look_ups + by_windows + (pending if is_queue_read else 0),
            (False, True): by_agent + by_active + pending,
        }
        if demand.seeking:
            costs |= {
                (True, False): by_account + self.requests_of_agents({*demand.looked_up}) + older + pending,
                (True, True): by_account + by_active + pending,
            }
        account, active = min(costs, key=lambda choice: costs[choice])
        if ACCOUNT in demand.seeking:
            account, budget = True, MAX_PAGES
        else:
            fallback = by_agent + by_look_ups + (by_windows if by_windows < math.inf else len(demand.started))
            budget = int(max(_LEAST_BUDGET, _BUDGET_FACTOR * fallback))
        return Choice(account=account, active=active, pending=account or active or is_queue_read, budget=budget)

    def _pages_of(self, status: Status, at: ClockReading) -> float:
        return self._status_pages[status].at(at.monotonic) or 1

    def _costs_to_seek(self, demand: Demand, at: ClockReading) -> tuple[float, float]:
        """Requests for those who seek: by the agents' own listings, and by the account's."""
        if ACCOUNT in demand.seeking:
            # The account has no other listing.
            return math.inf, 1.0
        by_agent, by_account = self.requests_of_agents(demand.seeking), math.inf
        is_open = self.is_open(Status.PENDING, at) and self.is_open(WHOLE_LISTING, at)
        if demand.not_before is not None and is_open:
            seconds, rate = (at.wall + self.server_ahead - demand.not_before).total_seconds(), self._rate(at)
            by_account = pages(seconds * rate) if rate is not None else 1
        return by_agent, by_account

    def requests_of_agents(self, agents: Iterable[Scope]) -> int:
        """Requests for the agents' own listings: of what is PENDING, and as a whole."""
        return sum(1 + self._agent_pages.get(agent_id, 1) for agent_id in agents)

    def _cost_of_active(self, demand: Demand, at: ClockReading) -> float:
        """Requests for the events followed or looked up by the active set, and for those that have left it."""
        wanted = demand.followed + len(demand.looked_up)
        if not wanted or not self.is_open(Status.PENDING, at) or not self.is_open(Status.RUNNING, at):
            return math.inf
        running = max(self._pages_of(Status.RUNNING, at), pages(wanted))
        return running + (self._leavers.at(at.monotonic) or 0)

    def _costs_of_windows(self, demand: Demand, by_active: float, at: ClockReading) -> tuple[float, float]:
        """Requests for the followed events by narrow listings: for all, and for those older than all that is sought."""
        if len(demand.started) >= _MANY_EVENTS and by_active <= _ACTIVE_FACTOR * pages(demand.followed) + 1:
            return math.inf, math.inf
        some = self.windows(demand.started, at)
        # The account's listing shows the younger ones anyway.
        not_before = demand.not_before
        return requests_of(some), requests_of(
            window for window in some if not_before is not None and window.after < not_before
        )

    def windows(self, followed: Iterable[FollowedEvent], at: ClockReading) -> list[Window]:
        """The narrow listings that show these events, as far as they have started."""
        return windows(
            (
                StartedRun(one.event.startedAt, one.event.id, one.agent_id)
                for one in followed
                if one.event.startedAt is not None
            ),
            self._rate(at),
            self._agent_rates.get,
            whole_account=self.is_open(WHOLE_LISTING, at),
        )

    def _rate(self, at: ClockReading) -> float | None:
        return self._rows_per_second.at(at.monotonic)
