"""What to ask next, what an answer or a failure means, and for whom. Pure: no I/O, no clock of its own.

A `Plan` holds everybody who waits on one connection (a `Subscription` each). Whoever drives it asks `next_at` when to
wake up, then takes a `cycle`: batches of flows, each flow a dialogue as in `api.flow`. The request flows of a batch may
be followed at once, in any order. What they bring reaches the subscriptions as it comes; `Subscription.wake` is called
for news.

Two kinds of subscribers are told apart:

- one that still *seeks* its run needs a complete look: every event of its agent down to a floor, and those that are
  PENDING, in an order in which nothing slips through;
- one that *follows* events it knows needs to hear when one of them changes, and no more.

The cost of a cycle follows the pages it asks for and what has changed in them. It does not follow the number of
subscribers, but for those that seek and have become ripe.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_agents.api.endpoints import list_agent_events, list_events
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    PermanentError,
    RateLimitedError,
    TemporaryError,
)
from airflow_provider_agents.api.flow import MAX_PAGES, Flow, PageCursor, Response, Sleep, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.polling import planner
from airflow_provider_agents.polling.row_cache import RowCache
from airflow_provider_agents.polling.schedule import Schedule
from airflow_provider_agents.polling.subscriptions import ACCOUNT, ClockReading, Outage, Subscriber, Subscription
from airflow_provider_agents.polling.walks import Walks
from airflow_provider_agents.runs.matching import (
    TOLERANCE,
    Look,
    Seek,
    clock_at_least,
    is_young,
    lies_before,
)
from airflow_provider_agents.runs.patience import is_refusal
from airflow_provider_agents.runs.verdict import fresher, is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger(__name__)

#: The way of asking that is the account's whole listing. The others are the statuses.
_ACCOUNT = "account"
#: A cycle in which so many requests failed and none was answered is broken off.
_HOPELESS_FAILURES = 3
#: So many failed looks in a row are reported to a subscriber, as one is a blip. A refusal is reported at once.
OUTAGE_LOOKS = 2
#: A walk that was chosen on an estimate is broken off at this many times what the agents' own listings would cost, but
#: never before `_LEAST_BUDGET` pages.
_BUDGET_FACTOR, _LEAST_BUDGET = 2, 4
#: Between two chances for the loop to do something else, so many events are compared, where to give a look to somebody
#: counts as `_EVENTS_A_LOOK`: about five milliseconds.
_CHUNK_EVENTS, _EVENTS_A_LOOK = 2000, 50
#: As many are compared in a cycle for those to whom it only shows how their run is getting on.
_EVENTS_EARLY = 2000
#: An event that no narrow listing shows is looked for in its agent's whole one at the 1st, 2nd, 4th and 8th miss in a
#: row, and then at each 16th: a platform that has dropped it is not asked for its whole history in every cycle.
_MISSES_CYCLE = 16
#: From so many followed events on, the active set is taken without comparing, if it is at most this many times as large
#: as what is followed: no way could be much cheaper, and to compare takes longer than to ask.
_MANY_EVENTS, _ACTIVE_FACTOR = 400, 2
#: With so many subscriptions in a cycle, there is a break between finding them and choosing how to ask: each takes some
#: twenty milliseconds at ten thousand.
_MANY_TICKETS = 1000
#: `Date` counts whole seconds and an answer takes a while: up to so many seconds apart, the clocks agree.
_SAME_CLOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollStats:
    """How much a poll holds. When nobody waits, every count is 0.

    Attributes:
        waits: those who wait.
        failing: of them, those whose last look failed, and those that no look was answered for yet.
        scheduled: entries of the schedule: who waits, and the deadlines, of which a few are of waits that have ended.
        agents: agents that are waited for, or of which anything is remembered.
        estimates: numbers that help to choose how to ask for an agent.
        sought_ids: ids that an event is sought by.
        followed: events that are followed.
        rows: events that are remembered for those who seek.
        clients: open HTTP clients.
        shared_requests: requests under way whose answer several share.
    """

    waits: int = 0
    failing: int = 0
    scheduled: int = 0
    agents: int = 0
    estimates: int = 0
    sought_ids: int = 0
    followed: int = 0
    rows: int = 0
    clients: int = 0
    shared_requests: int = 0


@dataclass(slots=True, eq=False)
class _Track:
    """An event that is followed, in its latest state, and by whom."""

    agent_id: str
    event: ExecutionEvent
    subscriptions: dict[Subscription[Any], None] = field(default_factory=dict)
    misses: int = 0


class _Rate:
    """How many runs begin in a second, told from a listing that is read from its top.

    Args:
        server_now: the server's clock.
    """

    def __init__(self, server_now: datetime) -> None:
        self._newest = server_now
        self._oldest: datetime | None = None
        self._rows = 0

    def note(self, events: Iterable[ExecutionEvent]) -> None:
        """The next page."""
        for event in events:
            self._rows += 1
            if event.startedAt is not None:
                self._newest = max(self._newest, event.startedAt)
                self._oldest = min(self._oldest or event.startedAt, event.startedAt)

    @property
    def per_second(self) -> float | None:
        """The rate over what was read."""
        if self._oldest is None:
            return None
        return self._rows / max(1.0, (self._newest - self._oldest).total_seconds())

    def share_missing(self, floor: datetime | None) -> float:
        """How much there still is down to `floor`, as a multiple of what was read."""
        if self._oldest is None or floor is None:
            return 1.0
        read = max(1.0, (self._newest - self._oldest).total_seconds())
        return max(0.0, (self._oldest - floor).total_seconds()) / read


@dataclass(slots=True, eq=False)
class _AccountLook:
    """How far one of the account's listings was read, over one cycle or several.

    Attributes:
        at: when the look was begun.
        cycle: the number of the cycle in which it was begun. It is complete for those who sought before.
        rate: how many runs begin, as far as the listing shows it.
        place: how far the walk has got.
        shown: ids of the events on the pages so far.
        ended: whether everything was asked for that was to be.
        whole: whether each row says whose it is, too.
        server_time: the server's clock when the look was begun.
        newest: what the clock that stamps events had passed by then, as far as the first page tells.
    """

    at: ClockReading
    cycle: int
    rate: _Rate
    place: PageCursor = field(default_factory=PageCursor)
    shown: set[str] = field(default_factory=set)
    ended: bool = True
    whole: bool = True
    server_time: datetime | None = None
    newest: datetime | None = None

    @property
    def pages(self) -> int:
        """Pages so far."""
        return self.place.pages

    def is_of_use(self, cycle: _Cycle) -> bool:
        """Whether to go on with it."""
        return self.whole or (self.ended and ACCOUNT in cycle.seeking)

    def break_off(self) -> None:
        """Something was left out."""
        self.ended = self.whole = False

    def next_listing(self, rate: _Rate) -> _AccountLook:
        """The same look, at the first page of its next listing."""
        return replace(self, rate=rate, place=PageCursor(), shown=set())


@dataclass(slots=True, eq=False)
class _AgentLook:
    """How far one agent's listings were read, over one cycle or several. Its attributes are as above.

    Attributes:
        pending: how far the walk over its events that are PENDING has got.
        listed: how far the one over all of them has.
    """

    at: ClockReading
    cycle: int
    rate: _Rate
    pending: PageCursor = field(default_factory=PageCursor)
    listed: PageCursor = field(default_factory=PageCursor)
    newest: datetime | None = None

    @property
    def pages(self) -> int:
        """Pages so far."""
        return self.pending.pages + self.listed.pages

    @property
    def server_time(self) -> datetime | None:
        """The server's clock when the look was begun."""
        return self.pending.server_time


@dataclass(slots=True, eq=False)
class _Search:
    """How far one agent's whole listing was searched for some events, over one cycle or several.

    Attributes:
        at: when the search was begun.
        owner: the agent whose own listing it is; None for the account's, narrowed to the agent.
        wanted: ids of the events.
        place: how far the walk has got.
    """

    at: ClockReading
    owner: str | None
    wanted: frozenset[str]
    place: PageCursor = field(default_factory=PageCursor)

    @property
    def pages(self) -> int:
        """Pages so far."""
        return self.place.pages


class _Cycle:
    """What one cycle is for, and what it has learnt so far.

    Attributes:
        seeking: who seeks, by agent.
        due: the followed events that are to be shown.
        shown: ids of events that were.
        missed: ids of events that a narrow listing ought to have shown, or that nobody could look for.
        read: the account's listings that were read to their end, by their way.
        failed: the ways that failed, where another way would fare no better.
        looked: agents of whom there was a complete look.
        heard: agents of which a listing showed a run, or whose own listing was answered.
        unanswered: whose look failed.
    """

    def __init__(self, at: ClockReading, number: int) -> None:
        self.at, self.number = at, number
        self.served: list[Subscription[Any]] = []
        self.expiring: list[Subscription[Any]] = []
        self.seeking: dict[str, list[Subscription[Any]]] = {}
        self.due: dict[str, _Track] = {}
        self.shown: set[str] = set()
        self.missed: set[str] = set()
        self.refused: set[str] = set()
        self.read: dict[str, _AccountLook] = {}
        self.failed: set[str] = set()
        self.looked: dict[str, _AccountLook | _AgentLook] = {}
        self.heard: set[str] = set()
        self.unanswered: dict[Subscription[Any], AgentsError] = {}
        self.answers = 0
        self.failures = 0
        self.refusal: PermanentError | None = None
        self.shut: list[str] = []
        self.last_error: AgentsError | None = None

    @property
    def is_hopeless(self) -> bool:
        """Whether to ask on is of no use for now."""
        error = self.last_error
        if isinstance(error, RateLimitedError):
            return True
        if isinstance(error, TemporaryError) and error.retry_after_seconds is not None:
            return True
        if isinstance(error, AuthenticationError) and not self.answers:
            # The key is everybody's.
            return True
        return self.failures >= _HOPELESS_FAILURES and not self.answers

    def has_sought_before(self, cycle: int) -> bool:
        """Whether anyone who seeks now did so before another cycle."""
        return any(
            subscription.seeking_since < cycle
            for subscriptions in self.seeking.values()
            for subscription in subscriptions
            if not subscription.over
        )

    def not_shown(self) -> Iterator[_Track]:
        """What is still to be shown, as far as somebody still waits for it."""
        return (track for event_id, track in self.due.items() if event_id not in self.shown and track.subscriptions)

    def floor(self, before: int | None = None) -> datetime | None:
        """The oldest moment that a complete look must reach back to; None if there is no end, or nobody seeks.

        Args:
            before: of those alone who sought before this cycle.
        """
        # The account must be listed for its own seekers. Whoever needs older events asks their agents.
        seeking = [self.seeking[ACCOUNT]] if ACCOUNT in self.seeking else self.seeking.values()
        return _oldest_floor(
            subscription
            for subscription in itertools.chain.from_iterable(seeking)
            if before is None or subscription.seeking_since < before
        )


def _breathe() -> Flow[None]:
    """Let the loop do something else."""
    yield Sleep(0)


def _reaches(floor: datetime, seek: Seek) -> bool:
    """Whether a listing down to `floor` shows what is sought."""
    return seek.floor is not None and seek.floor >= floor


def _oldest_floor(subscriptions: Iterable[Subscription[Any]]) -> datetime | None:
    floors = [subscription.seek.floor for subscription in subscriptions if subscription.seek is not None]
    known = [floor for floor in floors if floor is not None]
    return min(known) if known and len(known) == len(floors) else None


class Plan:
    """Everybody who waits on one connection.

    Args:
        jitter: a factor for each pause after a failure.
    """

    def __init__(
        self,
        *,
        jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),  # noqa: S311 - no secret
    ) -> None:
        self._subscriptions: dict[Subscription[Any], None] = {}
        self._agents: Counter[str] = Counter()
        self._schedule = Schedule(jitter)
        # Those whose last look failed, and those that no look has been answered for yet.
        self._failing: dict[Subscription[Any], None] = {}
        # What for: a subscription is in `_seekers` and `_sought`, or in `_tracks`.
        self._seekers: dict[str, dict[Subscription[Any], None]] = {}
        self._sought: dict[str, dict[Subscription[Any], None]] = {}
        self._tracks: dict[str, _Track] = {}
        # What earlier answers showed: the events of agents of whom something is sought, and what helps to estimate.
        self._stores: dict[str, dict[str, ExecutionEvent]] = {}
        self._rows = RowCache()
        self._rows_per_second = planner.ExpiringEstimate(None)
        self._pages: dict[str, planner.ExpiringEstimate] = {
            status: planner.ExpiringEstimate(1) for status in ("PENDING", "RUNNING")
        }
        self._leavers = planner.ExpiringEstimate(0)
        self._agent_pages: dict[str, int] = {}
        self._agent_rates: dict[str, float] = {}
        self._shut_until: dict[str, float] = {}
        self._walks = Walks()
        self._cycles = 0
        # Followed events that an answered search in their agent's whole listing did not show, until they are shown.
        self._absent: set[str] = set()
        #: Why the last cycle brought nothing; None if it brought something.
        self.failing: AgentsError | None = None
        #: How far the server's clock is ahead of ours.
        self.server_ahead = timedelta()

    # --- who waits ----------------------------------------------------------------------------------------------

    @property
    def subscriptions(self) -> Collection[Subscription[Any]]:
        """All who wait."""
        return self._subscriptions.keys()

    def stats(self) -> PollStats:
        """How much the plan holds, without the counts of HTTP."""
        about = (self._agents, self._seekers, self._stores, self._agent_pages, self._agent_rates)
        return PollStats(
            waits=len(self._subscriptions),
            failing=len(self._failing),
            scheduled=self._schedule.entries,
            agents=len(set().union(*about)),
            estimates=len(self._agent_pages) + len(self._agent_rates),
            sought_ids=len(self._sought),
            followed=len(self._tracks),
            rows=sum(len(store) for store in self._stores.values()),
        )

    def subscribe(
        self,
        subscriber: Subscriber[R],
        *,
        interval: float,
        deadline_at: datetime,
        wake: Callable[[], None],
        at: ClockReading,
        answered: bool = True,
    ) -> Subscription[R]:
        """Wait for a subscriber, from the next cycle on.

        Args:
            subscriber: what to wait for.
            interval: seconds between two looks, at most.
            deadline_at: when to give up, on our clock.
            wake: called for news, while a page is read: it must not do more than make a note of it.
            at: now.
            answered: whether the platform has answered a request for this subscriber before. If not, the first refusal
                ends the wait.
        """
        subscription = Subscription(subscriber, interval, deadline_at, wake, answered=answered)
        self._subscriptions[subscription] = None
        if not answered:
            self._failing[subscription] = None
        self._agents[subscriber.agent_id] += 1
        self._schedule.subscribe(subscription, at)
        self._index(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription[Any]) -> None:
        """Wait no longer. May be repeated; nothing is told afterwards."""
        if subscription not in self._subscriptions:
            return
        subscription.over = True
        del self._subscriptions[subscription]
        self._failing.pop(subscription, None)
        self._schedule.unsubscribe(subscription)
        self._unindex(subscription)
        agent_id = subscription.subscriber.agent_id
        self._agents[agent_id] -= 1
        if not self._agents[agent_id]:
            del self._agents[agent_id]
            self._agent_pages.pop(agent_id, None)
            self._agent_rates.pop(agent_id, None)

    def fail_all(self, error: Exception) -> None:
        """Tell everybody that waiting is of no use."""
        for subscription in tuple(self._subscriptions):
            self._end(subscription, error=error)

    def _end(self, subscription: Subscription[Any], *, result: Any = None, error: Exception | None = None) -> None:
        if subscription.over:
            return
        self.unsubscribe(subscription)
        subscription.result, subscription.error = result, error
        subscription.wake()

    # --- the indexes --------------------------------------------------------------------------------------------

    def _index(self, subscription: Subscription[Any]) -> None:
        """Note what a subscriber seeks or follows now."""
        subscriber = subscription.subscriber
        subscription.seek = seek = subscriber.seek
        subscription.seeking_since = self._cycles
        if seek is not None:
            self._seekers.setdefault(subscriber.agent_id, {})[subscription] = None
            self._stores.setdefault(subscriber.agent_id, {})
            for name in seek.ids:
                self._sought.setdefault(name, {})[subscription] = None
        self._follow(subscription)

    def _follow(self, subscription: Subscription[Any]) -> None:
        going_on = subscription.subscriber.going_on
        before, subscription.following = subscription.following, tuple(event.id for event in going_on)
        for event in going_on:
            track = self._tracks.get(event.id)
            if track is None:
                owner = subscription.subscriber.agent_id or event.agentId or ACCOUNT
                track = self._tracks[event.id] = _Track(owner, event)
            else:
                track.event = fresher(track.event, event)
                track.agent_id = track.agent_id or subscription.subscriber.agent_id
            track.subscriptions[subscription] = None
        if before:
            self._unfollow(subscription, set(before).difference(subscription.following))

    def _unfollow(self, subscription: Subscription[Any], event_ids: Iterable[str]) -> None:
        for event_id in event_ids:
            track = self._tracks.get(event_id)
            if track is not None:
                track.subscriptions.pop(subscription, None)
                self._drop_unless_followed(track)

    def _drop_unless_followed(self, track: _Track) -> None:
        if not track.subscriptions:
            self._tracks.pop(track.event.id, None)
            self._absent.discard(track.event.id)

    def _reindex(self, subscription: Subscription[Any]) -> None:
        """Note what has changed of it."""
        seek, before = subscription.subscriber.seek, subscription.seek
        if seek is not None and before is not None and seek.ids == before.ids:
            # It goes on seeking; what was read for it is kept.
            subscription.seek = seek
            self._follow(subscription)
        else:
            self._unindex(subscription)
            self._index(subscription)

    def _unindex(self, subscription: Subscription[Any]) -> None:
        if subscription.seek is not None:
            agent_id = subscription.subscriber.agent_id
            del self._seekers[agent_id][subscription]
            if not self._seekers[agent_id]:
                del self._seekers[agent_id], self._stores[agent_id]
            for name in subscription.seek.ids:
                del self._sought[name][subscription]
                if not self._sought[name]:
                    del self._sought[name]
            subscription.seek = None
        self._unfollow(subscription, subscription.following)
        subscription.following = ()

    # --- when ---------------------------------------------------------------------------------------------------

    def next_at(self, at: ClockReading) -> float | None:
        """The monotonic second at which there is something to do; None if nobody waits."""
        return self._schedule.next_at(at) if self._subscriptions else None

    def is_due(self, at: ClockReading) -> bool:
        """Whether to cycle now."""
        if self.held_seconds(at) > 0.0:
            # The server's word goes before a last look.
            for subscription in self._schedule.expired(at):
                self._end(subscription, result=subscription.subscriber.expire())
        return bool(self._subscriptions) and self._schedule.is_due(at)

    def held_seconds(self, at: ClockReading) -> float:
        """For how long the server still wants to be left alone; 0 if it does not."""
        return self._schedule.held_seconds(at)

    def hold(self, seconds: float, at: ClockReading) -> None:
        """Ask nothing for so many seconds: the server's wish."""
        self._schedule.hold(seconds, at)

    # --- a cycle ------------------------------------------------------------------------------------------------

    def cycle(self, at: ClockReading) -> Generator[list[Flow[None]], None, None]:
        """Ask what is due: batches of flows.

        The request flows of a batch may be followed at once, in any order. They raise nothing that the API has
        answered.
        """
        self._cycles += 1
        cycle = _Cycle(at, self._cycles)
        self._schedule.begin(at)
        cycle.expiring = self._schedule.expired(at)
        cycle.served = [*self._subscriptions]
        for subscription in cycle.served:
            if subscription.seek is not None:
                cycle.seeking.setdefault(subscription.subscriber.agent_id, []).append(subscription)
            for event_id in subscription.following:
                cycle.due[event_id] = self._tracks[event_id]
        if len(cycle.served) >= _MANY_TICKETS:
            yield [_breathe()]
        yield from self._batches(cycle)
        self._rows.turn()
        yield [self._conclude(cycle)]

    def _batches(self, cycle: _Cycle) -> Generator[list[Flow[None]], None, None]:
        account, active, budget = self._choose(cycle)
        queued = any(track.event.startedAt is None for track in cycle.due.values())
        if account or active or (queued and self._is_open(Status.PENDING, cycle.at)):
            # Before everything else: what begins after this answer is in those that follow.
            yield [self._list_status(cycle, Status.PENDING, budget)]
        pending = cycle.read.get(Status.PENDING)
        yield [
            *([self._list_account(cycle, pending, budget)] if account and pending and pending.is_of_use(cycle) else []),
            *([self._list_status(cycle, Status.RUNNING, budget)] if active and not cycle.failed else []),
        ]
        is_sought = not (account and cycle.failed & {Status.PENDING, _ACCOUNT})
        is_followed = not cycle.failed & {Status.PENDING, Status.RUNNING}
        yield [
            *(self._seek_by_agent(cycle) if is_sought else ()),
            *(self._follow_by_window(cycle, after_active=active) if is_followed else ()),
        ]
        yield list(self._find_lost(cycle))

    def _seek_by_agent(self, cycle: _Cycle) -> Iterator[Flow[None]]:
        for agent_id, subscriptions in cycle.seeking.items():
            # The account has no other listing.
            if (
                agent_id != ACCOUNT
                and agent_id not in cycle.looked
                and any(not subscription.over for subscription in subscriptions)
            ):
                yield self._seek_agent(cycle, agent_id, subscriptions)

    def _follow_by_window(self, cycle: _Cycle, *, after_active: bool) -> Iterator[Flow[None]]:
        left = list(cycle.not_shown())
        # What had not begun is no longer PENDING, and nobody knows when it began.
        cycle.missed.update(track.event.id for track in left if track.event.startedAt is None)
        windows = self._windows(cycle, left)
        if after_active:
            self._leavers.measured(planner.requests_of(windows), cycle.at.monotonic)
        for window in windows:
            yield self._look_through(cycle, window)

    def _find_lost(self, cycle: _Cycle) -> Iterator[Flow[None]]:
        lost: dict[str, list[_Track]] = {}
        for event_id in cycle.missed:
            track = self._tracks.get(event_id)
            if track is None or event_id in cycle.shown:
                continue
            track.misses += 1
            early = track.misses < _MISSES_CYCLE and track.misses & (track.misses - 1) == 0
            # After a failure only the agent's own listing says whether it still fails.
            failing = not self._failing.keys().isdisjoint(track.subscriptions)
            under_way = self._walks.is_under_way(("search", track.agent_id))
            if early or track.misses % _MISSES_CYCLE == 0 or event_id in cycle.refused or failing or under_way:
                lost.setdefault(track.agent_id, []).append(track)
        for agent_id, tracks in lost.items():
            if agent_id != ACCOUNT:
                yield self._find(cycle, agent_id, tracks)
            else:
                # Of an event that does not say whose it is, there is nothing else to ask.
                self._absent.update(track.event.id for track in tracks)

    def _is_open(self, way: str, at: ClockReading) -> bool:
        return self._shut_until.get(way, -math.inf) <= at.monotonic

    def _choose(self, cycle: _Cycle) -> tuple[bool, bool, int]:
        """The cheapest ways: the account's listing for those who seek? the active set for what is followed?

        With them, how many pages a walk over the account may take before the agents' own listings are cheaper.
        """
        at = cycle.at
        clock, rate = at.monotonic, self._rows_per_second.at(at.monotonic)
        pending = self._pages[Status.PENDING].at(clock) or 1
        status_open = self._is_open(Status.PENDING, at)

        by_agent: float = sum(1 + self._agent_pages.get(agent_id, 1) for agent_id in cycle.seeking)
        by_account, floor = math.inf, cycle.floor()
        everything = ACCOUNT in cycle.seeking
        if everything:
            by_agent, by_account = math.inf, 1.0
        elif floor is not None and status_open and self._is_open(_ACCOUNT, at):
            seconds = (at.wall + self.server_ahead - floor).total_seconds()
            by_account = planner.pages(seconds * rate) if rate is not None else 1

        begun = [track for track in cycle.due.values() if track.event.startedAt is not None]
        queued = pending if status_open and len(begun) < len(cycle.due) else 0
        least = planner.pages(len(self._tracks))
        by_active = math.inf
        if cycle.due and status_open and self._is_open(Status.RUNNING, at):
            by_active = max(self._pages[Status.RUNNING].at(clock) or 1, least) + (self._leavers.at(clock) or 0)
        if len(begun) >= _MANY_EVENTS and by_active <= _ACTIVE_FACTOR * least + 1:
            by_windows = older = math.inf
        else:
            windows = self._windows(cycle, begun)
            by_windows = planner.requests_of(windows)
            # The account's listing shows the younger ones anyway.
            older = planner.requests_of(window for window in windows if floor is not None and window.after < floor)

        costs = {
            (account, active): (by_account if account else by_agent if cycle.seeking else 0)
            + (by_active if active else older if account else by_windows)
            + (pending if account or active else queued)
            for account in ((False, True) if cycle.seeking else (False,))
            for active in (False, True)
        }
        account, active = min(costs, key=lambda ways: costs[ways])
        if everything:
            return True, active, MAX_PAGES
        fallback = by_agent + (by_windows if by_windows < math.inf else len(begun))
        return account, active, int(max(_LEAST_BUDGET, _BUDGET_FACTOR * fallback))

    def _windows(self, cycle: _Cycle, tracks: Iterable[_Track]) -> list[planner.Window]:
        return planner.windows(
            (
                planner.StartedRun(track.event.startedAt, track.event.id, track.agent_id)
                for track in tracks
                if track.event.startedAt is not None
            ),
            self._rows_per_second.at(cycle.at.monotonic),
            self._agent_rates.get,
            whole_account=self._is_open(_ACCOUNT, cycle.at),
        )

    # --- flows ------------------------------------------------------------------------------------------------

    def _rate(self, cycle: _Cycle) -> _Rate:
        return _Rate(cycle.at.wall + self.server_ahead)

    def _list_status(self, cycle: _Cycle, status: Status, budget: int) -> Flow[None]:
        """All of the account's events with a status."""

        def steps(look: _AccountLook) -> Flow[Any]:
            # What an earlier cycle has read of this walk counts as shown.
            cycle.shown |= look.shown

            def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
                look.server_time = look.place.server_time
                look.shown.update(event.id for event in answer.value.data)
                return self._take_page(cycle, look, answer, break_off=look.pages >= budget)

            return paginate(self._rows.cached(list_events(status=status)), enough, cursor=look.place)

        walking = self._walks.go(
            status,
            cycle.at,
            lambda: _AccountLook(cycle.at, cycle.number, self._rate(cycle)),
            steps,
            # Without the server's clock, the look's second listing must tell when the look was begun.
            is_of_use=lambda look: look.server_time is not None or status != Status.PENDING,
        )
        look = yield from self._over_account(cycle, status, walking)
        if look is not None:
            cycle.read[status] = look
            self._pages[status].measured(look.pages if look.whole else _BUDGET_FACTOR * look.pages, cycle.at.monotonic)

    def _list_account(self, cycle: _Cycle, pending: _AccountLook, budget: int) -> Flow[None]:
        """The account's events down to the oldest that anybody seeks.

        Args:
            cycle: for whom.
            pending: the look so far, which has read the events that are PENDING.
            budget: the most pages.
        """

        def steps(look: _AccountLook) -> Flow[Any]:
            floor = cycle.floor(look.cycle)

            def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
                if look.pages == 1:
                    look.newest = clock_at_least(None, answer.value.data)
                look.rate.note(answer.value.data)
                if any(lies_before(event, floor) for event in answer.value.data):
                    self._take_page(cycle, look, answer)
                    return True
                # What is still to come is known better after each page.
                too_far = look.pages * look.rate.share_missing(floor) > budget
                return self._take_page(cycle, look, answer, break_off=too_far)

            return paginate(self._rows.cached(list_events()), enough, cursor=look.place)

        walking = self._walks.go(
            _ACCOUNT,
            cycle.at,
            lambda: pending.next_listing(self._rate(cycle)),
            steps,
            is_of_use=lambda look: look.is_of_use(cycle) and cycle.has_sought_before(look.cycle),
        )
        look = yield from self._over_account(cycle, _ACCOUNT, walking)
        if look is None:
            return
        if look.rate.per_second is not None:
            self._rows_per_second.measured(look.rate.per_second, cycle.at.monotonic)
        floor = cycle.floor(look.cycle)
        for agent_id, subscriptions in cycle.seeking.items():
            if agent_id == ACCOUNT:
                is_complete = look.ended
            else:
                # With the account's own floor, the listing may have ended above theirs.
                deep = floor is None or all(
                    subscription.over or subscription.seek is None or _reaches(floor, subscription.seek)
                    for subscription in subscriptions
                    if subscription.seeking_since < look.cycle
                )
                is_complete = look.whole and deep
            if is_complete:
                cycle.looked[agent_id] = look

    def _take_page(
        self, cycle: _Cycle, look: _AccountLook, answer: Response[Page[ExecutionEvent]], *, break_off: bool = False
    ) -> bool:
        """Take in a page of the account's; whether to break off here."""
        look.whole &= self._take_events(cycle, answer.value.data, answer.server_time)
        if break_off and answer.value.nextToken:
            look.break_off()
            return True
        return False

    def _over_account(self, cycle: _Cycle, way: str, steps: Flow[T]) -> Generator[Any, Any, T | None]:
        """Follow a walk over the account to its end; None if it did not come to it."""
        try:
            return (yield from steps)
        except (TemporaryError, AuthenticationError) as error:
            cycle.failed.add(way)
            self._failed(cycle, error, cycle.served)
        except PermanentError as error:
            # A key, or a gateway, that allows the agents' own listings only. If not even they work, those will tell.
            self._refused(cycle, error, cycle.seeking.get(ACCOUNT, ()))
            cycle.shut.append(way)
            self._shut_until[way] = cycle.at.monotonic + planner.BELIEVED_SECONDS
            log.info("Doing without the account's listing (%s): %s", way, error)
        return None

    def _seek_agent(self, cycle: _Cycle, agent_id: str, subscriptions: list[Subscription[Any]]) -> Flow[None]:
        """One agent's events down to the oldest that anybody seeks, after those that are PENDING."""

        def take(answer: Response[Page[ExecutionEvent]]) -> bool:
            self._take_events(cycle, answer.value.data, answer.server_time, agent_id)
            return False

        def steps(look: _AgentLook) -> Flow[None]:
            served = [subscription for subscription in subscriptions if subscription.seeking_since < look.cycle]
            floor = _oldest_floor(served)

            def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
                if look.listed.pages == 1:
                    look.newest = clock_at_least(None, answer.value.data)
                look.rate.note(answer.value.data)
                take(answer)
                # Those whose ids were shown have what they want; after everybody's, the rest is of no use.
                if all(subscription.seek is None for subscription in served):
                    return True
                return any(lies_before(event, floor) for event in answer.value.data)

            if not look.pending.is_done:
                pending = self._rows.cached(list_agent_events(agent_id, status=Status.PENDING))
                yield from paginate(pending, take, cursor=look.pending)
            yield from paginate(self._rows.cached(list_agent_events(agent_id)), enough, cursor=look.listed)

        walking = self._walks.go(
            ("look", agent_id),
            cycle.at,
            lambda: _AgentLook(cycle.at, cycle.number, self._rate(cycle)),
            steps,
            is_of_use=lambda look: (
                # As above.
                (look.server_time is not None or look.listed.pages > 0)
                and any(subscription.seeking_since < look.cycle for subscription in subscriptions)
            ),
        )
        look = yield from self._over_agent(cycle, walking, lambda: subscriptions)
        if look is not None:
            if agent_id in self._agents:
                self._agent_pages[agent_id] = max(1, look.pages - 1)
                if look.rate.per_second is not None:
                    self._agent_rates[agent_id] = look.rate.per_second
            cycle.looked[agent_id] = look

    def _of_account(self, event_ids: Iterable[str]) -> bool:
        """Whether only watchers of the whole account follow these events."""
        tracks = [self._tracks[event_id] for event_id in event_ids if event_id in self._tracks]
        return all(
            subscription.subscriber.agent_id == ACCOUNT for track in tracks for subscription in track.subscriptions
        )

    def _look_through(self, cycle: _Cycle, window: planner.Window) -> Flow[None]:
        """A narrow listing that shows some followed events."""
        wanted = set(window.event_ids)
        # The account can be listed for its watchers; an agent's own listing may be refused, if it was deleted.
        owner = None if self._of_account(wanted) else window.agent_id

        def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
            self._take_events(cycle, answer.value.data, answer.server_time, owner)
            return wanted <= cycle.shown

        if owner is None:
            call = list_events(
                agent_id=window.agent_id or None, started_after=window.after, started_before=window.before
            )
        else:
            call = list_agent_events(owner, started_after=window.after, started_before=window.before)
        if cycle.is_hopeless:
            self._give_up(cycle, self._followers(wanted))
            return
        try:
            yield from paginate(self._rows.cached(call), enough)
        except (TemporaryError, AuthenticationError) as error:
            self._failed(cycle, error, self._followers(wanted - cycle.shown))
        except PermanentError as error:
            # Perhaps it is the narrowing that is refused; the agent's whole listing tells.
            log.info("A narrow listing was refused: %s", error)
            cycle.refused |= wanted
            cycle.missed |= wanted
        else:
            cycle.missed |= wanted - cycle.shown

    def _find(self, cycle: _Cycle, agent_id: str, tracks: list[_Track]) -> Flow[None]:
        """Followed events that no narrow listing showed, in their agent's whole one."""
        by_id = {track.event.id: track for track in tracks}
        owner = None if self._of_account(by_id) else agent_id
        call = list_events(agent_id=agent_id) if owner is None else list_agent_events(agent_id)
        missing: set[str] = set()

        def still_missing(search: _Search) -> set[str]:
            return {event_id for event_id in search.wanted if event_id in by_id and event_id not in cycle.shown}

        def steps(search: _Search) -> Flow[Any]:
            missing.clear()
            missing.update(still_missing(search))
            created = [by_id[event_id].event.created_by for event_id in missing]
            known = [moment for moment in created if moment is not None]
            floor = min(known) - TOLERANCE if known and len(known) == len(created) else None

            def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
                self._take_events(cycle, answer.value.data, answer.server_time, owner)
                missing.difference_update(event.id for event in answer.value.data)
                return not missing or any(lies_before(event, floor) for event in answer.value.data)

            return paginate(self._rows.cached(call), enough, cursor=search.place)

        def walking() -> Flow[bool]:
            try:
                yield from self._walks.go(
                    ("search", agent_id),
                    cycle.at,
                    lambda: _Search(cycle.at, owner, frozenset(by_id)),
                    steps,
                    # Another listing has other tokens.
                    is_of_use=lambda search: search.owner == owner and bool(still_missing(search)),
                )
            except PermanentError as error:
                if owner is not None or isinstance(error, AuthenticationError):
                    raise
                # For a watcher of the account that is an answer: the account has no such agent.
                log.info("The account's listing does not show agent %s: %s", agent_id, error)
            return True

        if (yield from self._over_agent(cycle, walking(), lambda: tuple(self._followers(missing)))):
            self._absent |= missing

    def _over_agent(
        self, cycle: _Cycle, steps: Flow[T], concerned: Callable[[], Iterable[Subscription[Any]]]
    ) -> Generator[Any, Any, T | None]:
        """Follow a walk over one agent's listing to its end; None if it did not come to it."""
        if cycle.is_hopeless:
            self._give_up(cycle, concerned())
            return None
        try:
            return (yield from steps)
        except (TemporaryError, AuthenticationError) as error:
            self._failed(cycle, error, concerned())
        except PermanentError as error:
            self._refused(cycle, error, concerned())
        return None

    def _followers(self, event_ids: Iterable[str]) -> Iterator[Subscription[Any]]:
        """Who waits for some events, but for watchers of the account: what one agent answers is no matter of theirs."""
        for event_id in event_ids:
            track = self._tracks.get(event_id)
            if track is not None:
                yield from (
                    subscription
                    for subscription in tuple(track.subscriptions)
                    if subscription.subscriber.agent_id != ACCOUNT
                )

    def _failed(self, cycle: _Cycle, error: AgentsError, concerned: Iterable[Subscription[Any]]) -> None:
        """A failure that says something about the platform or the key, and so perhaps about other requests as well."""
        cycle.failures += 1
        cycle.last_error = error
        self._give_up(cycle, concerned)

    def _refused(self, cycle: _Cycle, error: PermanentError, concerned: Iterable[Subscription[Any]]) -> None:
        """A refusal of one listing. It says nothing about any other agent, whose listing is asked for all the same."""
        cycle.refusal = error
        cycle.unanswered.update(dict.fromkeys(concerned, error))

    def _give_up(self, cycle: _Cycle, concerned: Iterable[Subscription[Any]]) -> None:
        if cycle.last_error is not None:
            cycle.unanswered.update(dict.fromkeys(concerned, cycle.last_error))

    # --- what was read ------------------------------------------------------------------------------------------

    def _take_events(
        self, cycle: _Cycle, events: Iterable[ExecutionEvent], server_time: datetime | None, agent_id: str | None = None
    ) -> bool:
        """Tell everybody whom a page concerns; whether each event says whose it is."""
        cycle.answers += 1
        if agent_id is not None:
            cycle.heard.add(agent_id)
        if server_time is not None and cycle.answers == 1:
            ahead = server_time - cycle.at.wall
            self.server_ahead = ahead if abs(ahead.total_seconds()) > _SAME_CLOCK_SECONDS else timedelta()
        whole = True
        for event in events:
            owner = agent_id if agent_id is not None else event.agentId
            if owner is None:
                whole = False
                if ACCOUNT not in self._agents:
                    continue
                owner = ACCOUNT
            cycle.shown.add(event.id)
            track = self._tracks.get(event.id)
            if track is not None:
                track.misses = 0
                self._absent.discard(event.id)
                if event is not track.event:
                    self._update(track, event)
            if owner in self._agents:
                self._note(cycle, owner, event, server_time)
            everything = self._stores.get(ACCOUNT)
            if everything is not None:
                everything[event.id] = fresher(everything.get(event.id), event)
        return whole

    def _note(self, cycle: _Cycle, agent_id: str, event: ExecutionEvent, server_time: datetime | None) -> None:
        """An event of an agent that somebody waits for."""
        cycle.heard.add(agent_id)
        store = self._stores.get(agent_id)
        if store is not None:
            store[event.id] = fresher(store.get(event.id), event)
            for name in (event.id, event.requestId):
                if name is not None and name in self._sought:
                    self._recognise(cycle, agent_id, name, Look((event,), server_time))

    def _recognise(self, cycle: _Cycle, agent_id: str, name: str, look: Look) -> None:
        """An event bears an id that is sought: no more than that is needed."""
        for subscription in tuple(self._sought.get(name, ())):
            if subscription.subscriber.agent_id == agent_id and subscription.seek is not None:
                self._show(subscription, look, cycle.at)

    def _show(self, subscription: Subscription[Any], look: Look, began: ClockReading) -> None:
        """Give a look to a subscriber that seeks."""
        result = subscription.subscriber.take(look, began.wall)
        if result is not None:
            self._end(subscription, result=result)
        elif subscription.subscriber.seek is not subscription.seek:
            self._reindex(subscription)
            subscription.wake()

    def _update(self, track: _Track, event: ExecutionEvent) -> None:
        """A followed event may have changed."""
        before, track.event = track.event, fresher(track.event, event)
        latest = track.event
        if latest is before:
            return
        over = is_terminal(latest)
        for subscription in tuple(track.subscriptions):
            result = subscription.subscriber.update(latest)
            if result is not None:
                self._end(subscription, result=result)
                continue
            if over:
                subscription.following = tuple(event_id for event_id in subscription.following if event_id != latest.id)
                track.subscriptions.pop(subscription, None)
            if (latest.status, latest.unreadable) != (before.status, before.unreadable):
                subscription.wake()
        self._drop_unless_followed(track)

    # --- the end of a cycle -------------------------------------------------------------------------------------

    def _give_looks(self, cycle: _Cycle) -> Flow[None]:
        """Give those who seek what was seen of their agents."""
        handled, early = 0, 0
        for agent_id, read in cycle.looked.items():
            look: Look | None = None
            server_time = read.server_time
            if server_time is None and read.cycle < cycle.number:
                # What later pages say of the time is of no use: the look is as old as its first page.
                server_time = read.newest
            for subscription in cycle.seeking.get(agent_id, ()):
                seek, store = subscription.seek, self._stores.get(agent_id)
                # Of a look over several cycles, whoever has joined meanwhile was not shown the first pages.
                if subscription.over or seek is None or store is None or subscription.seeking_since >= read.cycle:
                    continue
                is_ripe = seek.is_ripe(read.at.wall, server_time)
                # Before, a look decides nothing; what it shows is only good to know, so it is given to a few.
                if is_ripe or early < _EVENTS_EARLY:
                    look = look or Look(tuple(store.values()), server_time, frozenset(self._absent))
                    self._show(subscription, look, read.at)
                    handled += _EVENTS_A_LOOK + len(look.events)
                    if not is_ripe:
                        early += _EVENTS_A_LOOK + len(look.events)
                        subscription.wake()
                handled += 1
                if handled >= _CHUNK_EVENTS:
                    handled = 0
                    yield Sleep(0)
            self._tidy(agent_id)

    def _conclude(self, cycle: _Cycle) -> Flow[None]:
        """Give looks, tell of failures, and end what is past its deadline."""
        yield from self._give_looks(cycle)
        self._walks.expire(cycle.at)
        handled = 0
        if not cycle.answers:
            # Everything was refused, so the refusal says nothing about the account's listing in particular.
            for way in cycle.shut:
                self._shut_until.pop(way, None)
        error = cycle.last_error or cycle.refusal
        in_vain = error is not None and (not cycle.answers or cycle.is_hopeless)
        self._schedule.reckon(in_vain=in_vain)
        self.failing = error if in_vain else None
        for subscription in self._note_failures(cycle):
            subscription.wake()
            handled += _EVENTS_A_LOOK
            if handled >= _CHUNK_EVENTS:
                handled = 0
                yield Sleep(0)
        for subscription in cycle.expiring:
            if not subscription.over:
                self._end(subscription, result=subscription.subscriber.expire())

    def _tidy(self, agent_id: str) -> None:
        """Drop events that are too old for all who still seek, and rows that could not be read in this look."""
        store = self._stores.get(agent_id)
        if store:
            floor = _oldest_floor(self._seekers[agent_id])
            for event in [
                event for event in store.values() if event.unreadable is not None or not is_young(event, floor)
            ]:
                del store[event.id]

    def _note_failures(self, cycle: _Cycle) -> Iterator[Subscription[Any]]:
        """Count the failed looks of each; those whom it tells something new."""
        for subscription, error in cycle.unanswered.items():
            if subscription.over:
                continue
            final = subscription.patience.failed(error, cycle.at.wall)
            if final is not None:
                self._end(subscription, error=final)
                continue
            self._failing[subscription] = None
            subscription.failed_looks += 1
            subscription.failing_since = subscription.failing_since or cycle.at.wall
            if subscription.failed_looks >= OUTAGE_LOOKS or is_refusal(error):
                before = subscription.outage
                subscription.outage = Outage(subscription.failing_since, subscription.failed_looks, error)
                if before is None or is_refusal(before.error) != is_refusal(error):
                    yield subscription
        if not cycle.answers or not self._failing:
            return
        served = set(cycle.served)
        for subscription in [subscription for subscription in self._failing if subscription not in cycle.unanswered]:
            if subscription not in served and subscription.subscriber.agent_id not in cycle.heard:
                # What was answered was asked for others.
                continue
            del self._failing[subscription]
            subscription.patience.succeeded()
            news = subscription.outage is not None
            subscription.failed_looks, subscription.failing_since, subscription.outage = 0, None, None
            if news:
                yield subscription
