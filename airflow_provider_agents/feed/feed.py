"""The async shell around a plan: one feed for each event loop and connection.

What holds at any time, whatever is cancelled at whatever await:

1. A feed is in the registry exactly as long as somebody holds it. The last holder takes it out before it closes it, in
   one step without an await, so a newcomer never joins a feed that closes: it makes a new one.
2. Whoever waits has a ticket in the plan, from before the first await until `watch` or `listen` is left. A ticket is
   told its end once, by the plan, and never after it has left.
3. As long as there is a ticket, the feed's task runs, and it sleeps no longer than until the next sweep or deadline
   of any of them. If that task ends for whatever reason, everybody is told first. So nobody waits for ever.
4. A sweep serves those who had joined when it began. Who joins later is served by the next one and misses nothing:
   the plan asks for everything since that subject's own floor.
5. One client at a time, opened by the first request; all that were opened are closed when the feed is.

The feed's task runs in a context of its own: its log lines belong to no task, and the first task's log context, which
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
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_agents import clock as our_clock
from airflow_provider_agents.api.errors import (
    AgentsError,
    AuthenticationError,
    MissingConnectionError,
    NoAnswerError,
    NotSentError,
    RateLimitedError,
    TemporaryError,
)
from airflow_provider_agents.api.flow import ApiCall, Flow, NoRetry, Response, Sleep, run_flow
from airflow_provider_agents.feed.plan import Plan, PollStats
from airflow_provider_agents.feed.tickets import At, Subject, Ticket
from airflow_provider_agents.runs.waiting import LAST_LOOK_SECONDS

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from airflow_provider_agents.api.client import AsyncClient
    from airflow_provider_agents.api.settings import Settings

R = TypeVar("R")
T = TypeVar("T")

log = logging.getLogger(__name__)

#: Errands that are followed at once. Over a network with 100 ms to and fro, that many keep 80 requests a second going,
#: which is above the ceiling that a connection has by default.
CONCURRENT_ERRANDS = 8
#: Whoever waits wakes up at least this often, in seconds, to say that it still does.
SIGN_OF_LIFE_SECONDS = 300.0
_NEVER = datetime.max.replace(tzinfo=UTC)
#: For so many seconds a connection that cannot be read is tried again. Airflow also says "not found" while its own
#: database or API server restarts, and whoever waits here has used the connection before.
OPENING_PATIENCE_SECONDS = 300.0
#: Seconds until the look-up of a connection is given up. Airflow took up to 15 for 500 look-ups at once.
OPENING_SECONDS = 60.0
#: Seconds until the closing of a client is given up: there is nothing left to say to the server.
CLOSING_SECONDS = 10.0
#: Seconds after which a poll asks for nothing more: a server that answers slowly for one agent, page by page, must not
#: keep the others from their next look. At 25 requests a second, a poll of 7,500 pages takes as long.
SWEEP_SECONDS = 300.0

#: The metrics, in Airflow's own statistics; each is tagged with `conn_id`.
METRIC_REQUESTS = "agents.feed.requests"
METRIC_FAILURES = "agents.feed.failures"
METRIC_SWEEP = "agents.feed.sweep"
METRIC_SUBSCRIBERS = "agents.feed.subscribers"
METRIC_ENDS = "agents.run.ended"
METRIC_DELAY = "agents.run.notice_delay"


class Stats(Protocol):
    """What of Airflow's statistics a feed uses."""

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str] | None = None) -> None:
        """Count."""

    def gauge(self, stat: str, value: float, *, tags: dict[str, str] | None = None) -> None:
        """Set."""

    def timing(self, stat: str, dt: timedelta, *, tags: dict[str, str] | None = None) -> None:
        """Measure."""


class FeedClosedError(AgentsError):
    """The feed was closed while somebody still waited: the event loop is being shut down."""


class _Line:
    """The client at hand; another one once the connection's key has changed."""

    def __init__(self, open_client: Callable[[], Awaitable[AsyncClient]], clock: Callable[[], float]) -> None:
        self._open_client, self._clock = open_client, clock
        self._client: AsyncClient | None = None
        self._opening: Task[AsyncClient] | None = None
        # How many requests each open client has under way.
        self._busy: dict[AsyncClient, int] = {}
        self._lock = asyncio.Lock()
        self._failing_since: float | None = None
        self._polls, self._read_again_in = 0, -1

    @property
    def clients(self) -> int:
        """How many are open."""
        return len(self._busy)

    def begin_poll(self) -> None:
        """Allow one more look-up of the connection after a 401."""
        self._polls += 1

    async def send(self, call: ApiCall[T]) -> Response[T]:
        """Send once; after a 401 read the connection again, once in a poll, and resend if it has changed."""
        client = await self.client()
        try:
            return await self._send(client, call)
        except AuthenticationError:
            async with self._lock:
                if self._client is client:
                    if self._read_again_in == self._polls:
                        raise
                    self._read_again_in = self._polls
                    if not await self._renew(client):
                        raise
        return await self._send(await self.client(), call)

    async def _send(self, client: AsyncClient, call: ApiCall[T]) -> Response[T]:
        self._busy[client] += 1
        try:
            return await client.send_once(call)
        finally:
            self._busy[client] -= 1
            await self._retire(client)

    async def _renew(self, refused: AsyncClient) -> bool:
        """Read the connection again; whether it has changed."""
        try:
            renewed = await self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the 401 decides what becomes of the waits
            log.warning("The API key was refused, and the connection cannot be read again. %s", _words(error))
            return False
        changed = renewed.settings != refused.settings
        if changed:
            log.info("The API key was refused and the connection has changed since; going on with it.")
            self._client = renewed
        await self._retire(refused if changed else renewed)
        return changed

    async def _retire(self, client: AsyncClient) -> None:
        """Close a client that has been replaced, once nobody uses it."""
        if client is not self._client and self._busy.get(client) == 0:
            del self._busy[client]
            await _close(client)

    async def client(self, *, patient: bool = True) -> AsyncClient:
        """The client at hand, opened if there is none.

        Raises:
            NotSentError: it cannot be opened now, if that may pass and the caller is patient.
        """
        if self._client is not None:
            return self._client
        # All callers share one attempt: a look-up that hangs must not hang for each of them in turn.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), context=contextvars.Context())
            self._opening.add_done_callback(self._opened)
        try:
            # A caller that is cancelled must not take the client from the others.
            return await asyncio.shield(self._opening)
        except Exception as error:
            if isinstance(error, AgentsError) and not isinstance(error, MissingConnectionError):
                raise
            now = self._clock()
            self._failing_since = since = self._failing_since if self._failing_since is not None else now
            if not patient or now - since >= OPENING_PATIENCE_SECONDS:
                raise
            raise NotSentError(f"The connection could not be read. {_words(error)}") from error

    def _opened(self, opening: Task[AsyncClient]) -> None:
        self._opening = None
        # The callers may all be gone, and an error that nobody has looked at is reported as a fault.
        if not opening.cancelled() and opening.exception() is None:
            self._client, self._failing_since = opening.result(), None

    async def _open(self) -> AsyncClient:
        async with asyncio.timeout(OPENING_SECONDS):
            client = await self._open_client()
        self._busy[client] = 0
        return client

    @property
    def settings(self) -> Settings | None:
        """Those of the client at hand."""
        return self._client.settings if self._client is not None else None

    async def aclose(self) -> None:
        """Close every client that was opened."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        self._client = None
        while self._busy:
            await _close(self._busy.popitem()[0])


def _words(error: Exception) -> str:
    """Why a connection cannot be read."""
    if isinstance(error, TimeoutError):
        return f"The look-up took longer than {OPENING_SECONDS:g} seconds."
    return str(error) if isinstance(error, AgentsError) else f"It failed with {type(error).__name__}."


async def _close(client: AsyncClient) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSING_SECONDS):
            await client.aclose()


class _Gate:
    """Lets requests through at a rate, in bursts of no more than a second's worth."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0

    def delay(self, per_second: float) -> float:
        """Seconds that the next request must wait. Each call is one request."""
        now = self._clock()
        slot = max(self._next, now - 1.0)
        self._next = slot + 1.0 / per_second
        return max(0.0, slot - now)


class News:
    """Whether there is news. Thousands wait on one each, so it is a bare future and a bare timer."""

    __slots__ = ("_loop", "_there", "_waiter")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop, self._there = loop, False
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """There is news."""
        self._there = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Return when there is news, and after so many seconds without any; whether there is."""
        if not self._there:
            self._waiter = self._loop.create_future()
            timer = our_clock.call_later(seconds, self._end_wait)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        there, self._there = self._there, False
        return there


class Feed:
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
        self._line = _Line(open_client, self._clock)
        self._gate = _Gate(self._clock)
        self._stats, self._tags = stats, {"conn_id": name}
        self._changed = asyncio.Event()
        self._task: Task[None] | None = None
        self._ends_at = math.inf
        self._asked: dict[object, Task[Any]] = {}

    def _at(self) -> At:
        return At(self._clock(), self.now())

    @property
    def settings(self) -> Settings | None:
        """The connection as it was last read; None before the first request."""
        return self._line.settings

    def stats(self) -> PollStats:
        """How much the feed holds."""
        return replace(self._plan.stats(), clients=self._line.clients, shared_requests=len(self._asked))

    def note_end(self, outcome: str, completed_at: datetime | None) -> None:
        """Count how a run ended, and how long after its end, on the server's clock, that is known."""
        if self._stats is None:
            return
        self._stats.incr(METRIC_ENDS, tags={**self._tags, "outcome": outcome})
        if completed_at is not None:
            delay = self.now() + self._plan.server_ahead - completed_at
            self._stats.timing(METRIC_DELAY, max(delay, timedelta()), tags=self._tags)

    # --- for those who wait ---------------------------------------------------------------------------------------

    async def watch(
        self,
        subject: Subject[R],
        *,
        interval: float,
        deadline_at: datetime,
        tell: Callable[[Ticket[R], bool], None] = lambda *_: None,
        answered: bool = True,
    ) -> R:
        """Wait until a subject has a result.

        Args:
            subject: what is waited for.
            interval: seconds between two looks, at most.
            deadline_at: when to give up, on our clock.
            tell: called in the caller's own context with True when there may be news, and with False after a few
                minutes without any.
            answered: whether the platform has answered a request for this subject before. If not, the first refusal
                ends the wait.

        Raises:
            AgentsError: waiting is of no use.
        """
        with self._joined(subject, interval, deadline_at, answered=answered) as (ticket, news):
            while not ticket.over:
                left = (deadline_at - self.now()).total_seconds() + LAST_LOOK_SECONDS
                if left <= 0.0:
                    # The plan ends a wait at its deadline, but not while a poll is under way.
                    return subject.expire()
                tell(ticket, await news.wait(min(SIGN_OF_LIFE_SECONDS, left)))
            if ticket.error is not None:
                # One error may end thousands of waits: each raises it with a traceback of its own.
                raise ticket.error.with_traceback(None)
            return ticket.result  # type: ignore[return-value]  # over and no error, so there is a result

    async def listen(self, subject: Subject[Any], *, interval: float) -> AsyncGenerator[Ticket[Any]]:
        """Follow a subject that has no end: yields after each change, and every few minutes without one.

        Args:
            subject: what is listened to.
            interval: seconds between two looks, at most.

        Raises:
            AgentsError: listening is of no use.
        """
        with self._joined(subject, interval, _NEVER) as (ticket, news):
            while not ticket.over:
                await news.wait(SIGN_OF_LIFE_SECONDS)
                if not ticket.over:
                    yield ticket
            if ticket.error is not None:
                raise ticket.error.with_traceback(None)

    @contextlib.contextmanager
    def _joined(
        self, subject: Subject[R], interval: float, deadline_at: datetime, *, answered: bool = True
    ) -> Iterator[tuple[Ticket[R], News]]:
        """A place in the plan for the length of a block."""
        news = News(asyncio.get_running_loop())
        ticket = self._plan.join(
            subject, interval=interval, deadline_at=deadline_at, wake=news.wake, at=self._at(), answered=answered
        )
        try:
            self._start()
            yield ticket, news
        finally:
            self._plan.leave(ticket)

    async def ask(
        self, steps: Flow[R], *, patient: bool = False, rest: Callable[[Sleep], Awaitable[None]] | None = None
    ) -> R:
        """Follow a dialogue through the shared client.

        Args:
            steps: the dialogue.
            patient: take a connection that is not found for one that cannot be read now.
            rest: how to spend a pause; it is slept by default.
        """
        self._line.begin_poll()
        if not patient:
            await self._line.client(patient=False)

        async def take(step: ApiCall[Any] | NoRetry | Sleep) -> Response[Any] | None:
            if not isinstance(step, Sleep):
                return await self._take(step)
            await (self._take(step) if rest is None else rest(step))
            self._line.begin_poll()
            return None

        return await run_flow(steps, take)

    async def ask_together(self, key: object, steps: Callable[[], Flow[R]], *, deadline_at: datetime) -> R:
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
        """Pause, on the feed's own time."""
        await our_clock.asleep(seconds)

    # --- the task -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._run(), name=f"agents-feed-{self.name}", context=contextvars.Context()
            )

    async def _run(self) -> None:
        try:
            while True:
                self._changed.clear()
                at = self._at()
                next_at = self._plan.next_at(at)
                if next_at is not None and self._plan.is_due(at):
                    await self._sweep(at)
                    continue
                # What `is_due` told may have been the last.
                next_at = self._plan.next_at(at)
                timer = None
                if next_at is not None:
                    timer = our_clock.call_later(max(0.0, next_at - at.clock), self._changed.set)
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
                log.exception("The feed of connection %s broke; all that wait on it fail.", self.name)
            self._plan.fail_all(cause)
        finally:
            self._plan.fail_all(FeedClosedError(f"The feed of connection {self.name!r} was closed."))

    async def _sweep(self, at: At) -> None:
        was_failing = self._plan.failing is not None
        self._line.begin_poll()
        self._ends_at = at.clock + SWEEP_SECONDS
        for stage in self._plan.sweep(at):
            await self._follow_all(stage)
        if self._stats is not None:
            self._stats.timing(METRIC_SWEEP, timedelta(seconds=self._clock() - at.clock), tags=self._tags)
            self._stats.gauge(METRIC_SUBSCRIBERS, len(self._plan.tickets), tags=self._tags)
        if self._plan.failing is not None and not was_failing:
            log.warning("Connection %s: %s The runs are still running; asking again.", self.name, self._plan.failing)
        elif self._plan.failing is None and was_failing:
            log.info("Connection %s: the API answers again.", self.name)

    async def _follow_all(self, stage: Sequence[Flow[None]]) -> None:
        errands = iter(stage)

        async def work() -> None:
            for errand in errands:
                await run_flow(errand, self._take_in_sweep)

        if len(stage) <= 1:
            await work()
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENT_ERRANDS, len(stage))):
                group.create_task(work())

    async def _take_in_sweep(self, step: ApiCall[Any] | NoRetry | Sleep) -> Response[Any] | None:
        if isinstance(step, ApiCall) and self._clock() >= self._ends_at:
            raise NotSentError(
                f"{step.label}: not asked for now, since this poll takes longer than {SWEEP_SECONDS:g} s."
            )
        return await self._take(step)

    async def _take(self, step: ApiCall[Any] | NoRetry | Sleep) -> Response[Any] | None:
        if isinstance(step, Sleep):
            await self.sleep(step.seconds)
            return None
        call = step.call if isinstance(step, NoRetry) else step
        delay = self._gate.delay((await self._line.client()).settings.max_requests_per_second)
        if delay > 0.0:
            await self.sleep(delay)
        held = self._plan.held_seconds(self._at())
        if held > 0.0:
            # Another answer said so, perhaps while this request waited for its turn.
            raise RateLimitedError("The server has asked for a pause.", retry_after_seconds=held)
        if self._stats is not None:
            self._stats.incr(METRIC_REQUESTS, tags=self._tags)
        try:
            return await self._line.send(call)
        except TemporaryError as error:
            if self._stats is not None:
                self._stats.incr(METRIC_FAILURES, tags=self._tags)
            if error.retry_after_seconds is not None:
                self._plan.hold(error.retry_after_seconds, self._at())
            raise

    async def aclose(self) -> None:
        """End the task and close the client. Those who still wait are told."""
        tasks = [task for task in (self._task, *self._asked.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._line.aclose()
        if self._stats is not None:
            self._stats.gauge(METRIC_SUBSCRIBERS, 0, tags=self._tags)


_feeds: WeakKeyDictionary[AbstractEventLoop, dict[str, Feed]] = WeakKeyDictionary()


def count_shared(loop: AbstractEventLoop) -> int:
    """How many feeds a loop shares now."""
    return len(_feeds.get(loop, {}))


@asynccontextmanager
async def shared_feed(name: str, make: Callable[[], Feed]) -> AsyncIterator[Feed]:
    """The one feed of this loop and connection, for the length of a block.

    Args:
        name: the connection's.
        make: makes the feed if there is none.
    """
    of_loop = _feeds.setdefault(asyncio.get_running_loop(), {})
    feed = of_loop.get(name)
    if feed is None:
        feed = of_loop[name] = make()
    feed.holders += 1
    try:
        yield feed
    finally:
        feed.holders -= 1
        if not feed.holders:
            del of_loop[name]
            # Shielded: a holder that is cancelled once more must not leave a client open.
            await asyncio.shield(asyncio.ensure_future(feed.aclose()))
