"""What to ask next, and when. Pure: no I/O, no clock of its own.

A `Plan` holds all subscriptions of one connection. Its driver asks `next_at` when to wake up,
then takes a `cycle`: batches of request flows, as in `api.flow`. The request flows of a batch may run at the same time,
in any order. Each page reaches the subscriptions as it comes; `Subscription.wake` is called for news.

A run that other tasks of ours started beside (`runs.siblings`) gets its verdict at the end of the cycle.

The cost of a cycle follows the pages it asks for and what has changed in them. It does not follow the number of
subscribers, except those that seek and have become decidable.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_agents.api.flow import Flow, Sleep, Step, through
from airflow_provider_agents.api.models import Status
from airflow_provider_agents.api.retry import equal_jitter
from airflow_provider_agents.polling.cycle import Cycle
from airflow_provider_agents.polling.interrupted import InterruptedListings
from airflow_provider_agents.polling.listings import Listings
from airflow_provider_agents.polling.planner import Planner
from airflow_provider_agents.polling.registry import Registry
from airflow_provider_agents.polling.row_cache import RowCache
from airflow_provider_agents.polling.schedule import Schedule
from airflow_provider_agents.polling.subscriptions import ACCOUNT, Subscription
from airflow_provider_agents.runs.siblings import Siblings
from airflow_provider_agents.runs.tracker import RunTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator

    from airflow_provider_agents.api.errors import AgentsError
    from airflow_provider_agents.polling.planner import Choice
    from airflow_provider_agents.polling.subscriptions import ClockReading, FollowedEvent, Subscriber
    from airflow_provider_agents.runs.starts import Start

R = TypeVar("R")

#: An event that no narrow listing shows is looked for in its agent's whole one at the 1st, 2nd, 4th and 8th miss in a
#: row, and then at each 16th: a platform that has dropped it is not asked for its whole history in every cycle.
_MISSES_CYCLE = 16
#: The own requests of a subscriber are sent in the first cycle after this share of its interval. Cycles may be as far
#: apart as the interval, and some milliseconds must not make a subscriber miss one.
_OWN_INTERVAL_SHARE = 0.9
#: From this many subscriptions on, the event loop gets a turn between finding them and choosing how to ask: each takes
#: about twenty milliseconds at ten thousand.
_MANY_SUBSCRIPTIONS = 1000
#: Between two turns of the event loop, this many submissions of one agent are decided. Each takes half a millisecond
#: if a thousand events could be its run.
_DECIDED_AT_ONCE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class PollStats:
    """How much a poller holds. Without subscriptions, every count is 0.

    Attributes:
        waits: subscriptions.
        failing: of them, those whose last poll failed, and those that no response was for yet.
        scheduled: entries of the schedule: intervals, and deadlines, of which a few are of ended subscriptions.
        agents: agents that are waited for, or of which anything is remembered.
        estimates: measured numbers about agents.
        sought_ids: ids that an event is sought by.
        followed: events that are followed.
        rows: events that are kept for those who seek.
        clients: open HTTP clients.
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


def _yield_to_loop() -> Flow[None]:
    """Let the event loop do something else."""
    yield Sleep(0)


class Plan:
    """All subscriptions of one connection: the registry, the schedule, the planner and the cycles, tied together.

    Args:
        siblings: what is known of the submissions of ours to the connection's agents, beyond this plan's life.
        reads_starts: whether the driver reads the starts of other processes, as `wanted_starts` asks.
        jitter: a factor for each pause after a failure.

    Attributes:
        failing: why the last cycle brought nothing; None if it brought something.
    """

    def __init__(
        self,
        *,
        siblings: Siblings | None = None,
        reads_starts: bool = False,
        jitter: Callable[[], float] = equal_jitter,
    ) -> None:
        self._registry = Registry(self._on_leave)
        self._schedule = Schedule(jitter)
        self._planner = Planner()
        self._interrupted = InterruptedListings()
        self._rows = RowCache()
        self._siblings = siblings if siblings is not None else Siblings()
        self._siblings.reads_starts = reads_starts
        self._trackers: dict[RunTracker, Subscription[Any]] = {}
        self._now = datetime.min.replace(tzinfo=UTC)
        self.failing: AgentsError | None = None

    @property
    def server_ahead(self) -> timedelta:
        """How far the server's clock is ahead of ours."""
        return self._planner.server_ahead

    @property
    def subscriptions(self) -> Collection[Subscription[Any]]:
        """All subscriptions."""
        return self._registry.subscriptions

    def stats(self) -> PollStats:
        """How much the plan holds, without the counts of HTTP."""
        return PollStats(
            **self._registry.counts(),
            scheduled=self._schedule.entries,
            agents=len(self._registry.scopes | self._planner.agents),
            estimates=self._planner.entries,
        )

    # --- subscriptions---------------------------------------------------------------------------------------------

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
            subscriber: what waits.
            interval: seconds between two polls, at most.
            deadline_at: when to give up, on our clock.
            wake: called after each change, while a page is read: it must not do more than set a flag.
            at: now.
            answered: whether the platform has answered a request for this subscriber before. If not, the first refusal
                ends the wait.
        """
        subscription = Subscription(subscriber, interval, deadline_at, wake, answered=answered)
        self._now = at.wall
        tracker: object = subscriber
        if isinstance(tracker, RunTracker):
            if tracker.siblings is None:
                self._siblings.join(tracker, at.wall)
            self._trackers[tracker] = subscription
        self._schedule.subscribe(subscription, at)
        self._registry.add(subscription, answered=answered)
        return subscription

    def unsubscribe(self, subscription: Subscription[Any]) -> None:
        """Remove a subscription. May be repeated; nothing is delivered afterwards."""
        self._registry.remove(subscription)

    def awaits_event(self, agent_id: str) -> bool:
        """Whether a run of an agent is waited for that was accepted and has not appeared yet."""
        return self._siblings.awaits_event(agent_id)

    def fail_all(self, error: Exception) -> None:
        """End all subscriptions with this error."""
        for subscription in tuple(self._registry.subscriptions):
            self._registry.end(subscription, error=error)

    def _on_leave(self, subscription: Subscription[Any]) -> None:
        self._schedule.unsubscribe(subscription)
        tracker = subscription.subscriber
        if isinstance(tracker, RunTracker):
            del self._trackers[tracker]
            self._siblings.leave(tracker, subscription.result, self._now)
        agent_id = subscription.subscriber.agent_id
        if not self._registry.has(agent_id):
            self._planner.forget(agent_id)

    # --- starts of other processes --------------------------------------------------------------------------------

    def wanted_starts(self) -> list[str]:
        """After a cycle: the agents of which the starts of other processes are to be read. Each must be answered."""
        return self._siblings.wanted_starts()

    def add_starts(self, agent_id: str, starts: Iterable[Start], at: ClockReading) -> Flow[None]:
        """Decide with the starts of an agent. Not while a cycle is under way.

        Args:
            agent_id: one of `wanted_starts`.
            starts: what was read; empty if nothing could be read.
            at: now.
        """
        intervals = [one.interval for tracker, one in self._trackers.items() if tracker.agent_id == agent_id]
        for tracker in self._siblings.add_starts(agent_id, starts, at.wall):
            # Its run has appeared within `settle`, or is late. Nothing waits for it any longer.
            deadline_at = at.wall + timedelta(seconds=2 * tracker.policy.settle)
            self.subscribe(
                tracker,
                interval=min(intervals, default=tracker.policy.settle),
                deadline_at=deadline_at,
                wake=lambda: None,
                at=at,
            )
        yield from self._decide_siblings(at)

    # --- when -----------------------------------------------------------------------------------------------------

    def next_at(self, at: ClockReading) -> float | None:
        """The monotonic second at which there is something to do; None without subscriptions."""
        return self._schedule.next_at(at) if self._registry.subscriptions else None

    def is_due(self, at: ClockReading) -> bool:
        """Whether to poll now."""
        if self.pause_seconds(at) > 0.0:
            # The server's pause goes before a last poll.
            for subscription in self._schedule.expired(at):
                self._registry.end(subscription, result=subscription.subscriber.expire())
        return bool(self._registry.subscriptions) and self._schedule.is_due(at)

    def pause_seconds(self, at: ClockReading) -> float:
        """Seconds of the pause that the server has asked for; 0 without one."""
        return self._schedule.pause_seconds(at)

    def pause(self, seconds: float, at: ClockReading) -> None:
        """Do not poll for this many seconds, since the server asks for it."""
        self._schedule.pause(seconds, at)

    # --- a poll cycle ---------------------------------------------------------------------------------------------

    def cycle(self, at: ClockReading) -> Generator[list[Flow[None]], None, None]:
        """Ask what is due: batches of request flows.

        The request flows of a batch may run at the same time, in any order. They raise nothing that the API has
        answered.
        """
        self._now = at.wall
        self._schedule.begin(at)
        cycle = Cycle(at, self._registry, self._planner, self._schedule.expired(at))
        if len(cycle.served) >= _MANY_SUBSCRIPTIONS:
            yield [_yield_to_loop()]
        for batch in self._batches(cycle):
            yield [self._delivering(flow) for flow in batch]
        self._rows.turn()
        yield [self._finish(cycle)]

    def _delivering(self, flow: Flow[None]) -> Flow[None]:
        """The same flow. After each page, the followers of its events get what has changed."""

        def perform(step: Step) -> Flow[Any]:
            yield from self._registry.deliver_changes()
            return (yield step)

        yield from through(flow, perform)
        yield from self._registry.deliver_changes()

    def _batches(self, cycle: Cycle) -> Generator[list[Flow[None]], None, None]:
        listings = Listings(cycle, self._registry, self._planner, self._interrupted, self._rows)
        choice = self._planner.choose(cycle.demand(), cycle.at)
        if choice.pending:
            # Before everything else: a run that begins after this response is in those that follow.
            yield [listings.list_status(Status.PENDING, choice.budget)]
        if choice.active and not cycle.failed_listings:
            yield [listings.list_status(Status.RUNNING, choice.budget)]
        yield list(self._list_account(cycle, listings, choice))
        is_sought = not cycle.failed_listings
        is_followed = not cycle.failed_listings & {Status.PENDING, Status.RUNNING}
        yield [
            *(self._list_agents(cycle, listings) if is_sought else ()),
            *(self._list_windows(cycle, listings, after_active=choice.active) if is_followed else ()),
        ]
        yield list(self._search_missed(cycle, listings))
        # At the end: a followed run may have ended in this cycle.
        yield list(self._own_requests(cycle, listings))

    def _list_account(self, cycle: Cycle, listings: Listings, choice: Choice) -> Iterator[Flow[None]]:
        pending = cycle.pending
        if cycle.failed_listings or pending is None or not pending.is_of_use(cycle):
            return
        if (choice.account and cycle.listed_for()) or (choice.active and cycle.requests_to_look_up()):
            yield listings.list_account(pending, choice.budget if choice.account else None)

    def _list_agents(self, cycle: Cycle, listings: Listings) -> Iterator[Flow[None]]:
        for agent_id, subscriptions in cycle.seeking.items():
            if agent_id is ACCOUNT or cycle.is_complete(agent_id):
                # The account has no other listing.
                continue
            if any(subscription.criteria is not None for subscription in subscriptions):
                yield listings.list_agent(agent_id, subscriptions)

    def _list_windows(self, cycle: Cycle, listings: Listings, *, after_active: bool) -> Iterator[Flow[None]]:
        left = list(cycle.not_shown())
        # An event that had not started is no longer PENDING, and its start is unknown.
        cycle.mark_missed(followed.event.id for followed in left if followed.event.startedAt is None)
        windows = self._planner.windows(left, cycle.at)
        if after_active:
            self._planner.measured_leavers(windows, cycle.at)
        for window in windows:
            yield listings.list_window(window)

    def _search_missed(self, cycle: Cycle, listings: Listings) -> Iterator[Flow[None]]:
        by_agent: dict[str, list[FollowedEvent]] = {}
        for followed in self._registry.followed(cycle.missed):
            followed.misses += 1
            if not self._is_search_due(cycle, followed):
                continue
            if followed.agent_id is ACCOUNT:
                # The event does not say whose it is, so there is no other listing.
                self._registry.mark_absent([followed.event.id])
            else:
                by_agent.setdefault(followed.agent_id, []).append(followed)
        for agent_id, missed in by_agent.items():
            yield listings.search(agent_id, missed)

    def _own_requests(self, cycle: Cycle, listings: Listings) -> Iterator[Flow[None]]:
        by_key: dict[object, list[Subscription[Any]]] = {}
        for subscription, subscriber in self._registry.asking.items():
            seconds = cycle.at.monotonic - subscription.asked_at
            is_due = seconds >= _OWN_INTERVAL_SHARE * subscription.interval or cycle.is_expiring(subscription)
            if is_due and subscriber.wants_request(cycle.at.wall):
                subscription.asked_at = cycle.at.monotonic
                by_key.setdefault(subscriber.key, []).append(subscription)
        for subscriptions in by_key.values():
            yield listings.own_requests(self._registry.asking[subscriptions[0]].request_flow(), subscriptions)

    def _is_search_due(self, cycle: Cycle, followed: FollowedEvent) -> bool:
        misses = followed.misses
        if misses % _MISSES_CYCLE == 0 or (misses < _MISSES_CYCLE and misses & (misses - 1) == 0):
            return True
        if cycle.was_window_refused(followed.event.id):
            return True
        if self._interrupted.is_under_way(("search", followed.agent_id)):
            return True
        # After a failure only the agent's own listing says whether it still fails.
        return not self._registry.failing.isdisjoint(followed.subscriptions)

    def _decide_siblings(self, at: ClockReading) -> Flow[None]:
        """Decide the submissions of agents that several of ours started at about the same time."""
        for number, decided in enumerate(self._siblings.decide(at.wall), start=1):
            if decided is None or number % _DECIDED_AT_ONCE == 0:
                yield Sleep(0)
            if decided is None:
                continue
            tracker, verdict = decided
            subscription = self._trackers.get(tracker)
            if subscription is None:
                continue
            if verdict is not None:
                self._registry.end(subscription, result=verdict)
            else:
                self._registry.refresh(subscription)

    def _finish(self, cycle: Cycle) -> Flow[None]:
        yield from cycle.deliver_listings()
        yield from self._decide_siblings(cycle.at)
        self._interrupted.expire(cycle.at)
        self.failing = cycle.error
        self._schedule.back_off(failed=cycle.error is not None)
        yield from cycle.finish()
