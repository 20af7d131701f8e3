"""The async shell around a plan: one poller for each event loop and connection.

The invariant, whatever is cancelled at whatever await:

1. A poller is in `_pollers` exactly as long as it has a holder. The last holder removes it and then closes it. There is
   no await between the two, so a new holder never gets a poller that closes: it makes a new one.
2. Each waiting task has a subscription in the plan, from before its first await until it leaves `wait_for` or `stream`.
   The plan ends a subscription once, and never after the task has left.
3. While there is a subscription, the poller's task runs. It sleeps no longer than until the next poll cycle or the next
   deadline. If that task ends for any reason, it first ends all subscriptions. So no task waits forever.
4. A poll cycle serves the subscriptions that existed when it began. A later one is served by the next cycle and misses
   nothing: the plan asks for everything since the moment from which that subscriber seeks.
5. There is one client at a time, opened by the first request. Closing the poller closes every client that was opened.

The poller's task runs in a context of its own: its log lines belong to no task, and it does not keep the log context of
the first task, which it would inherit otherwise.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_agents import clock as our_clock
from airflow_provider_agents.api.errors import (
    AgentsError,
    NotSentError,
    RateLimitedError,
    TemporaryError,
)
from airflow_provider_agents.api.flow import ApiCall, Flow, NoRetry, Response, Sleep, Step, run_flow
from airflow_provider_agents.polling.clients import ClientProvider, RateLimiter
from airflow_provider_agents.polling.metrics import Metrics
from airflow_provider_agents.polling.plan import Plan, PollStats
from airflow_provider_agents.polling.progress import LAST_POLL_SECONDS, SIGN_OF_LIFE_SECONDS, slow_appearance
from airflow_provider_agents.polling.starts_reading import StartsReading
from airflow_provider_agents.polling.subscriptions import ClockReading, Subscriber, Subscription
from airflow_provider_agents.polling.timed_event import TimedEvent
from airflow_provider_agents.runs.siblings import Siblings

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from airflow_provider_agents.api.client import AsyncClient
    from airflow_provider_agents.api.settings import Settings
    from airflow_provider_agents.polling.metrics import Stats
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.polling.starts_reading import ReadStarts
    from airflow_provider_agents.runs.appearance import Appearance
    from airflow_provider_agents.runs.tracker import RunTracker

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger(__name__)

#: Request flows that run at the same time. At a round trip of 100 ms, this many make 80 requests a second, which is
#: above the default limit of a connection.
CONCURRENT_FLOWS = 8
_NEVER = datetime.max.replace(tzinfo=UTC)
#: Seconds after which a poll cycle sends no more requests: a server that responds slowly for one agent, page by page,
#: must not delay the next poll of the others. At 25 requests a second, this is enough for 7,500 pages.
CYCLE_SECONDS = 300.0


class PollerClosedError(AgentsError):
    """The poller was closed while a task still waited: the event loop is being shut down."""


class SharedPoller:
    """One poll for all tasks that wait on a connection, on one event loop.

    Args:
        name: the connection's, for logs and metrics.
        open_client: reads the connection and makes a client. If it raises, it is tried again for some minutes, unless
            the error is an `AgentsError` other than `MissingConnectionError`.
        stats: where metrics go.
        siblings: `siblings_of(name)`; by default, what this poller alone gets to know.
        read_starts: reads the starts of an agent that other processes wait for. If it fails, they are done without.

    Attributes:
        name: as above.
        holders: how many tasks use the poller now.
    """

    def __init__(
        self,
        name: str,
        open_client: Callable[[], Awaitable[AsyncClient]],
        *,
        stats: Stats | None = None,
        plan: Plan | None = None,
        siblings: Siblings | None = None,
        read_starts: ReadStarts | None = None,
    ) -> None:
        self.name = name
        self.holders = 0
        self._plan = plan if plan is not None else Plan(siblings=siblings, reads_starts=read_starts is not None)
        self._starts = StartsReading(read_starts, self._wake)
        self._clients = ClientProvider(open_client)
        self._limiter = RateLimiter()
        self._metrics = Metrics(stats, name)
        self._changed = asyncio.Event()
        self._task: Task[None] | None = None
        self._ends_at = math.inf
        self._has_warned_of_slow = False

    def _at(self) -> ClockReading:
        return ClockReading(our_clock.loop_time(), our_clock.now())

    @property
    def settings(self) -> Settings | None:
        """The connection as it was last read; None before the first request."""
        return self._clients.settings

    async def read_settings(self, *, interval: float, deadline_at: datetime, say: Say) -> Settings:
        """The connection, read unless it was read before.

        Args:
            interval: seconds between two tries.
            deadline_at: when to give up, on our clock.
            say: logs the first failure.

        Raises:
            AgentsError: the connection cannot be used, or could not be read in time.
        """
        has_failed = False
        while True:
            try:
                return (await self._clients.client()).settings
            except NotSentError as error:
                if our_clock.now() >= deadline_at:
                    raise
                if not has_failed:
                    say(logging.WARNING, f"{error} Reading it again.")
                has_failed = True
            await self.sleep(interval)

    def stats(self) -> PollStats:
        """How much the poller holds."""
        return replace(self._plan.stats(), clients=self._clients.clients)

    def record_end(self, outcome: str, completed_at: datetime | None) -> None:
        """Count how a run ended, and after what delay on the server's clock that is known."""
        known_at = our_clock.now() + self._plan.server_ahead
        self._metrics.ended(outcome, known_at - completed_at if completed_at is not None else None)

    def record_appearance(self, tracker: RunTracker, appearance: Appearance) -> None:
        """Count how soon the event of a run appeared. The first that was slow is logged."""
        if appearance.seconds is not None:
            self._metrics.appeared(appearance.seconds)
        if appearance.is_slow and not self._has_warned_of_slow:
            self._has_warned_of_slow = True
            log.warning("Connection %s: %s", self.name, slow_appearance(tracker, appearance))

    def awaits_event(self, agent_id: str) -> bool:
        """Whether a task waits for a run of an agent that was accepted and has not appeared yet."""
        return self._plan.awaits_event(agent_id)

    # --- for waiting tasks ----------------------------------------------------------------------------------------

    async def wait_for(
        self,
        subscriber: Subscriber[R],
        *,
        interval: float,
        deadline_at: datetime,
        on_wake: Callable[[Subscription[R], bool], None] = lambda *_: None,
        answered: bool = True,
    ) -> R:
        """Wait until a subscriber has a result.

        Args:
            subscriber: what is waited for.
            interval: seconds between two polls, at most.
            deadline_at: when to give up, on our clock.
            on_wake: called in the caller's own context: with True when the subscriber may have changed, with False
                after some minutes without a change.
            answered: whether the platform has answered a request for this subscriber before. If not, the first refusal
                ends the wait.

        Raises:
            AgentsError: the subscriber cannot get a result.
        """
        news = TimedEvent(asyncio.get_running_loop())
        subscription = self._subscribe(subscriber, interval, deadline_at, news, answered=answered)
        try:
            while not subscription.has_ended:
                left = (deadline_at - our_clock.now()).total_seconds() + LAST_POLL_SECONDS
                if left <= 0.0:
                    # The plan ends a wait at its deadline, but not while a poll is under way.
                    return subscriber.expire()
                on_wake(subscription, await news.wait(min(SIGN_OF_LIFE_SECONDS, left)))
            if subscription.error is not None:
                # One error may end thousands of waits: each raises it with a traceback of its own.
                raise subscription.error.with_traceback(None)
            return subscription.result  # type: ignore[return-value]  # ended without an error, so there is a result
        finally:
            self._plan.unsubscribe(subscription)

    async def stream(self, subscriber: Subscriber[Any], *, interval: float) -> AsyncGenerator[Subscription[Any]]:
        """Follow a subscriber that has no end: yields after each change, and every few minutes without one.

        Args:
            subscriber: what is followed.
            interval: seconds between two polls, at most.

        Raises:
            AgentsError: the subscriber cannot be followed.
        """
        news = TimedEvent(asyncio.get_running_loop())
        subscription = self._subscribe(subscriber, interval, _NEVER, news)
        try:
            while not subscription.has_ended:
                await news.wait(SIGN_OF_LIFE_SECONDS)
                if not subscription.has_ended:
                    yield subscription
            if subscription.error is not None:
                raise subscription.error.with_traceback(None)
        finally:
            self._plan.unsubscribe(subscription)

    def _subscribe(
        self,
        subscriber: Subscriber[R],
        interval: float,
        deadline_at: datetime,
        news: TimedEvent,
        *,
        answered: bool = True,
    ) -> Subscription[R]:
        subscription = self._plan.subscribe(
            subscriber, interval=interval, deadline_at=deadline_at, wake=news.set, at=self._at(), answered=answered
        )
        self._start()
        return subscription

    async def run_flow(self, steps: Flow[R]) -> R:
        """Run a request flow through the shared client."""
        self._clients.begin_poll()
        await self._clients.client(patient=False)

        async def perform(step: Step) -> Response[Any] | None:
            if isinstance(step, Sleep):
                self._clients.begin_poll()
            return await self._perform(step)

        return await run_flow(steps, perform)

    async def sleep(self, seconds: float) -> None:
        """Pause, on the poller's own time."""
        await our_clock.asleep(seconds)

    # --- the task -------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._changed.set()

    def _start(self) -> None:
        self._wake()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._run(), name=f"agents-poller-{self.name}", context=contextvars.Context()
            )

    async def _run(self) -> None:
        try:
            while True:
                self._changed.clear()
                for agent_id, starts in self._starts.done():
                    await run_flow(self._plan.add_starts(agent_id, starts, self._at()), self._perform)
                at = self._at()
                next_at = self._plan.next_at(at)
                if next_at is not None and self._plan.is_due(at):
                    await self._cycle(at)
                    continue
                # `is_due` may have ended the last subscription.
                next_at = self._plan.next_at(at)
                timer = None
                if next_at is not None:
                    timer = our_clock.call_later(max(0.0, next_at - at.monotonic), self._changed.set)
                try:
                    await self._changed.wait()
                finally:
                    if timer is not None:
                        timer.cancel()
        except Exception as error:
            cause: Exception = error
            while isinstance(cause, ExceptionGroup):
                cause = cause.exceptions[0]
            if not isinstance(cause, AgentsError):
                log.exception("The poller of connection %s broke; all that wait on it fail.", self.name)
            self._plan.fail_all(cause)
        finally:
            self._plan.fail_all(PollerClosedError(f"The poller of connection {self.name!r} was closed."))

    async def _cycle(self, at: ClockReading) -> None:
        was_failing = self._plan.failing is not None
        self._clients.begin_poll()
        self._ends_at = at.monotonic + CYCLE_SECONDS
        for batch in self._plan.cycle(at):
            await self._run_batch(batch)
        self._starts.begin(self._plan.wanted_starts())
        self._metrics.polled(our_clock.loop_time() - at.monotonic, len(self._plan.subscriptions))
        if self._plan.failing is not None and not was_failing:
            log.warning("Connection %s: %s The runs are still running; asking again.", self.name, self._plan.failing)
        elif self._plan.failing is None and was_failing:
            log.info("Connection %s: the API answers again.", self.name)

    async def _run_batch(self, batch: Sequence[Flow[None]]) -> None:
        flows = iter(batch)

        async def work() -> None:
            for flow in flows:
                await run_flow(flow, self._perform_in_cycle)

        if len(batch) <= 1:
            await work()
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENT_FLOWS, len(batch))):
                group.create_task(work())

    async def _perform_in_cycle(self, step: Step) -> Response[Any] | None:
        if isinstance(step, ApiCall) and our_clock.loop_time() >= self._ends_at:
            raise NotSentError(
                f"{step.label}: not asked for now, since this poll takes longer than {CYCLE_SECONDS:g} s."
            )
        return await self._perform(step)

    async def _perform(self, step: Step) -> Response[Any] | None:
        if isinstance(step, Sleep):
            await self.sleep(step.seconds)
            return None
        call = step.call if isinstance(step, NoRetry) else step
        delay = self._limiter.delay((await self._clients.client()).settings.max_requests_per_second)
        if delay > 0.0:
            await self.sleep(delay)
        pause = self._plan.pause_seconds(self._at())
        if pause > 0.0:
            # Another response asked for it, perhaps while this request waited for the rate limit.
            raise RateLimitedError("The server has asked for a pause.", retry_after_seconds=pause)
        self._metrics.sent()
        try:
            return await self._clients.send(call)
        except TemporaryError as error:
            self._metrics.failed()
            if error.retry_after_seconds is not None:
                self._plan.pause(error.retry_after_seconds, self._at())
            raise

    async def aclose(self) -> None:
        """End the task and all subscriptions, and close the client."""
        self._starts.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._clients.aclose()
        self._metrics.closed()


_pollers: WeakKeyDictionary[AbstractEventLoop, dict[str, SharedPoller]] = WeakKeyDictionary()
#: Outlive the pollers: a task that starts after the poller has closed must not be given an event of a task before it.
_siblings: WeakKeyDictionary[AbstractEventLoop, dict[str, Siblings]] = WeakKeyDictionary()


def siblings_of(name: str) -> Siblings:
    """The submissions that this event loop knows of a connection."""
    return _siblings.setdefault(asyncio.get_running_loop(), {}).setdefault(name, Siblings())


def count_shared(loop: AbstractEventLoop) -> int:
    """How many pollers an event loop has now."""
    return len(_pollers.get(loop, {}))


def shared_poller(name: str, make: Callable[[str], SharedPoller]) -> AbstractAsyncContextManager[SharedPoller]:
    """The one poller of this event loop and connection, for the length of a block.

    Args:
        name: the connection's.
        make: makes the poller of a connection if there is none.
    """
    return _Held(name, make)


class _Held:
    # There are thousands: a generator would take 500 bytes more.
    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[[str], SharedPoller]) -> None:
        self._name, self._make = name, make

    async def __aenter__(self) -> SharedPoller:
        of_loop = _pollers.setdefault(asyncio.get_running_loop(), {})
        poller = of_loop.get(self._name)
        if poller is None:
            poller = of_loop[self._name] = self._make(self._name)
        poller.holders += 1
        return poller

    async def __aexit__(self, *_: object) -> None:
        of_loop = _pollers[asyncio.get_running_loop()]
        poller = of_loop[self._name]
        poller.holders -= 1
        if not poller.holders:
            del of_loop[self._name]
            # Shielded: a holder that is cancelled once more must not leave a client open.
            await asyncio.shield(asyncio.ensure_future(poller.aclose()))
