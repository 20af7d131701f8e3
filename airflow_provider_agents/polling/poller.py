"""The async shell around a plan: one poller for each event loop and connection.

What holds at any time, whatever is cancelled at whatever await:

1. A poller is in the registry exactly as long as somebody holds it. The last holder takes it out before it closes it,
   in one step without an await, so a newcomer never joins a poller that closes: it makes a new one.
2. Whoever waits has a subscription in the plan, from before the first await until `wait_for` or `stream` is left. A
   subscription is told its end once, by the plan, and never after it has left.
3. As long as there is a subscription, the poller's task runs, and it sleeps no longer than until the next cycle or
   deadline of any of them. If that task ends for whatever reason, everybody is told first. So nobody waits for ever.
4. A cycle serves those who had joined when it began. Who joins later is served by the next one and misses nothing:
   the plan asks for everything since that subscriber's own floor.
5. One client at a time, opened by the first request; all that were opened are closed when the poller is.

The poller's task runs in a context of its own: its log lines belong to no task, and the first task's log context, which
would otherwise be inherited, to nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_agents import clock as our_clock
from airflow_provider_agents.api.errors import (
    AgentsError,
    NoAnswerError,
    NotSentError,
    RateLimitedError,
    TemporaryError,
)
from airflow_provider_agents.api.flow import ApiCall, Flow, NoRetry, Response, Sleep, run_flow
from airflow_provider_agents.polling.clients import ClientProvider, RateLimiter
from airflow_provider_agents.polling.metrics import Metrics
from airflow_provider_agents.polling.plan import Plan, PollStats
from airflow_provider_agents.polling.subscriptions import ClockReading, Subscriber, Subscription
from airflow_provider_agents.polling.timed_event import TimedEvent
from airflow_provider_agents.runs.waiting import LAST_LOOK_SECONDS

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from airflow_provider_agents.api.client import AsyncClient
    from airflow_provider_agents.api.settings import Settings
    from airflow_provider_agents.polling.metrics import Stats

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger(__name__)

#: Request flows that are followed at once. Over a network with 100 ms to and fro, that many keep 80 requests a second
#: going, which is above the ceiling that a connection has by default.
CONCURRENT_FLOWS = 8
#: Whoever waits wakes up at least this often, in seconds, to say that it still does.
SIGN_OF_LIFE_SECONDS = 300.0
_NEVER = datetime.max.replace(tzinfo=UTC)
#: Seconds after which a poll asks for nothing more: a server that answers slowly for one agent, page by page, must not
#: keep the others from their next look. At 25 requests a second, a poll of 7,500 pages takes as long.
CYCLE_SECONDS = 300.0


class PollerClosedError(AgentsError):
    """The poller was closed while somebody still waited: the event loop is being shut down."""


class SharedPoller:
    """One poll for everybody who waits on a connection, on one event loop.

    Args:
        name: the connection's, for logs and metrics.
        open_client: reads the connection and makes a client. What it raises may pass, and is tried again for some
            minutes, unless it is an `AgentsError` other than `MissingConnectionError`.
        stats: where metrics go.
        clock: monotonic seconds; the loop's time by default.
        now: our clock.

    Attributes:
        now: our clock.
    """

    def __init__(
        self,
        name: str,
        open_client: Callable[[], Awaitable[AsyncClient]],
        *,
        stats: Stats | None = None,
        clock: Callable[[], float] | None = None,
        now: Callable[[], datetime] = our_clock.now,
        plan: Plan | None = None,
    ) -> None:
        self.name = name
        self.holders = 0
        self.now = now
        self._clock = clock if clock is not None else our_clock.loop_time
        self._plan = plan if plan is not None else Plan()
        self._clients = ClientProvider(open_client, self._clock)
        self._limiter = RateLimiter(self._clock)
        self._metrics = Metrics(stats, name)
        self._changed = asyncio.Event()
        self._task: Task[None] | None = None
        self._ends_at = math.inf
        self._asked: dict[object, Task[Any]] = {}

    def _at(self) -> ClockReading:
        return ClockReading(self._clock(), self.now())

    @property
    def settings(self) -> Settings | None:
        """The connection as it was last read; None before the first request."""
        return self._clients.settings

    def stats(self) -> PollStats:
        """How much the poller holds."""
        return replace(self._plan.stats(), clients=self._clients.clients, shared_requests=len(self._asked))

    def record_end(self, outcome: str, completed_at: datetime | None) -> None:
        """Count how a run ended, and how long after its end, on the server's clock, that is known."""
        known_at = self.now() + self._plan.server_ahead
        self._metrics.ended(outcome, known_at - completed_at if completed_at is not None else None)

    # --- for those who wait ---------------------------------------------------------------------------------------

    async def wait_for(
        self,
        subscriber: Subscriber[R],
        *,
        interval: float,
        deadline_at: datetime,
        tell: Callable[[Subscription[R], bool], None] = lambda *_: None,
        answered: bool = True,
    ) -> R:
        """Wait until a subscriber has a result.

        Args:
            subscriber: what is waited for.
            interval: seconds between two looks, at most.
            deadline_at: when to give up, on our clock.
            tell: called in the caller's own context with True when there may be news, and with False after a few
                minutes without any.
            answered: whether the platform has answered a request for this subscriber before. If not, the first refusal
                ends the wait.

        Raises:
            AgentsError: waiting is of no use.
        """
        with self._subscribed(subscriber, interval, deadline_at, answered=answered) as (subscription, news):
            while not subscription.over:
                left = (deadline_at - self.now()).total_seconds() + LAST_LOOK_SECONDS
                if left <= 0.0:
                    # The plan ends a wait at its deadline, but not while a poll is under way.
                    return subscriber.expire()
                tell(subscription, await news.wait(min(SIGN_OF_LIFE_SECONDS, left)))
            if subscription.error is not None:
                # One error may end thousands of waits: each raises it with a traceback of its own.
                raise subscription.error.with_traceback(None)
            return subscription.result  # type: ignore[return-value]  # over and no error, so there is a result

    async def stream(self, subscriber: Subscriber[Any], *, interval: float) -> AsyncGenerator[Subscription[Any]]:
        """Follow a subscriber that has no end: yields after each change, and every few minutes without one.

        Args:
            subscriber: what is listened to.
            interval: seconds between two looks, at most.

        Raises:
            AgentsError: listening is of no use.
        """
        with self._subscribed(subscriber, interval, _NEVER) as (subscription, news):
            while not subscription.over:
                await news.wait(SIGN_OF_LIFE_SECONDS)
                if not subscription.over:
                    yield subscription
            if subscription.error is not None:
                raise subscription.error.with_traceback(None)

    @contextlib.contextmanager
    def _subscribed(
        self, subscriber: Subscriber[R], interval: float, deadline_at: datetime, *, answered: bool = True
    ) -> Iterator[tuple[Subscription[R], TimedEvent]]:
        """A place in the plan for the length of a block."""
        news = TimedEvent(asyncio.get_running_loop())
        subscription = self._plan.subscribe(
            subscriber, interval=interval, deadline_at=deadline_at, wake=news.set, at=self._at(), answered=answered
        )
        try:
            self._start()
            yield subscription, news
        finally:
            self._plan.unsubscribe(subscription)

    async def ask(
        self, steps: Flow[R], *, patient: bool = False, rest: Callable[[Sleep], Awaitable[None]] | None = None
    ) -> R:
        """Follow a dialogue through the shared client.

        Args:
            steps: the dialogue.
            patient: take a connection that is not found for one that cannot be read now.
            rest: how to spend a pause; it is slept by default.
        """
        self._clients.begin_poll()
        if not patient:
            await self._clients.client(patient=False)

        async def take(step: ApiCall[Any] | NoRetry | Sleep) -> Response[Any] | None:
            if not isinstance(step, Sleep):
                return await self._take(step)
            await (self._take(step) if rest is None else rest(step))
            self._clients.begin_poll()
            return None

        return await run_flow(steps, take)

    async def single_flight(self, key: object, steps: Callable[[], Flow[R]], *, deadline_at: datetime) -> R:
        """As `ask`, but all who ask for the same key while an answer is under way share it.

        Args:
            key: what is asked for.
            steps: makes the dialogue.
            deadline_at: when to give up, on our clock; a last answer may come a minute later.

        Raises:
            NoAnswerError: the answer was not there in time.
        """
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(
                self.ask(steps(), patient=True), context=contextvars.Context()
            )
            task.add_done_callback(lambda done: self._answered(key, done))
        try:
            async with our_clock.timeout((deadline_at - self.now()).total_seconds() + LAST_LOOK_SECONDS):
                # One that is cancelled must not take the answer from the others.
                result: R = await asyncio.shield(task)
        except TimeoutError:
            raise NoAnswerError("The API has not answered in full before the deadline.") from None
        return result

    def _answered(self, key: object, task: Task[Any]) -> None:
        self._asked.pop(key, None)
        if not task.cancelled():
            # Whoever asked may be gone; then nobody else would ever look at the error.
            task.exception()

    async def sleep(self, seconds: float) -> None:
        """Pause, on the poller's own time."""
        await our_clock.asleep(seconds)

    # --- the task -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._run(), name=f"agents-poller-{self.name}", context=contextvars.Context()
            )

    async def _run(self) -> None:
        try:
            while True:
                self._changed.clear()
                at = self._at()
                next_at = self._plan.next_at(at)
                if next_at is not None and self._plan.is_due(at):
                    await self._cycle(at)
                    continue
                # What `is_due` told may have been the last.
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
            await self._follow_all(batch)
        self._metrics.polled(self._clock() - at.monotonic, len(self._plan.subscriptions))
        if self._plan.failing is not None and not was_failing:
            log.warning("Connection %s: %s The runs are still running; asking again.", self.name, self._plan.failing)
        elif self._plan.failing is None and was_failing:
            log.info("Connection %s: the API answers again.", self.name)

    async def _follow_all(self, batch: Sequence[Flow[None]]) -> None:
        flows = iter(batch)

        async def work() -> None:
            for flow in flows:
                await run_flow(flow, self._take_in_cycle)

        if len(batch) <= 1:
            await work()
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENT_FLOWS, len(batch))):
                group.create_task(work())

    async def _take_in_cycle(self, step: ApiCall[Any] | NoRetry | Sleep) -> Response[Any] | None:
        if isinstance(step, ApiCall) and self._clock() >= self._ends_at:
            raise NotSentError(
                f"{step.label}: not asked for now, since this poll takes longer than {CYCLE_SECONDS:g} s."
            )
        return await self._take(step)

    async def _take(self, step: ApiCall[Any] | NoRetry | Sleep) -> Response[Any] | None:
        if isinstance(step, Sleep):
            await self.sleep(step.seconds)
            return None
        call = step.call if isinstance(step, NoRetry) else step
        delay = self._limiter.delay((await self._clients.client()).settings.max_requests_per_second)
        if delay > 0.0:
            await self.sleep(delay)
        held = self._plan.held_seconds(self._at())
        if held > 0.0:
            # Another answer said so, perhaps while this request waited for its turn.
            raise RateLimitedError("The server has asked for a pause.", retry_after_seconds=held)
        self._metrics.sent()
        try:
            return await self._clients.send(call)
        except TemporaryError as error:
            self._metrics.failed()
            if error.retry_after_seconds is not None:
                self._plan.hold(error.retry_after_seconds, self._at())
            raise

    async def aclose(self) -> None:
        """End the task and close the client. Those who still wait are told."""
        tasks = [task for task in (self._task, *self._asked.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._clients.aclose()
        self._metrics.closed()


_pollers: WeakKeyDictionary[AbstractEventLoop, dict[str, SharedPoller]] = WeakKeyDictionary()


def count_shared(loop: AbstractEventLoop) -> int:
    """How many pollers a loop shares now."""
    return len(_pollers.get(loop, {}))


@asynccontextmanager
async def shared_poller(name: str, make: Callable[[], SharedPoller]) -> AsyncIterator[SharedPoller]:
    """The one poller of this loop and connection, for the length of a block.

    Args:
        name: the connection's.
        make: makes the poller if there is none.
    """
    of_loop = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller = of_loop.get(name)
    if poller is None:
        poller = of_loop[name] = make()
    poller.holders += 1
    try:
        yield poller
    finally:
        poller.holders -= 1
        if not poller.holders:
            del of_loop[name]
            # Shielded: a holder that is cancelled once more must not leave a client open.
            await asyncio.shield(asyncio.ensure_future(poller.aclose()))
