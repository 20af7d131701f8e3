"""The waits of a trigger, on a poller. They say and decide what `runs.waiting` does for a worker."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_agents.api.endpoints import list_agent_events, list_events
from airflow_provider_agents.api.errors import AgentsError, PermanentError, RateLimitedError, TemporaryError
from airflow_provider_agents.api.flow import ApiCall, Flow, Response, Sleep, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.clock import timeout
from airflow_provider_agents.polling.poller import SIGN_OF_LIFE_SECONDS, TimedEvent
from airflow_provider_agents.polling.queues import StartQueue
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.journal import Journal
from airflow_provider_agents.runs.matching import TOLERANCE, Look, Missing, clock_at_least, lies_before
from airflow_provider_agents.runs.patience import Patience, is_refusal
from airflow_provider_agents.runs.sought import FirstRun, list_begun
from airflow_provider_agents.runs.submission import Submission, attached_to
from airflow_provider_agents.runs.verdict import Outcome, Verdict, Wait, is_active
from airflow_provider_agents.runs.waiting import (
    LAST_LOOK_SECONDS,
    BusyPause,
    LateWarning,
    Pace,
    StillBusyError,
    in_words,
    state_of,
)
from airflow_provider_agents.runs.waiting import wait_until_idle as idle_steps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence
    from datetime import datetime

    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.polling.subscriptions import Outage, Subscription
    from airflow_provider_agents.runs.journal import Cursor
    from airflow_provider_agents.runs.sought import Sought
    from airflow_provider_agents.runs.submission import Clock
    from airflow_provider_agents.runs.verdict import Rules
    from airflow_provider_agents.runs.waiting import Say

R = TypeVar("R")


#: Seconds until a request that was over a rate limit is repeated, where the server names no pause. Most limits are per
#: minute.
_LIMIT_SECONDS = 60.0


class ProgressLogger:
    """Logs what is new about a wait: changes of state, outages, and now and then that it is still running."""

    __slots__ = ("_outage", "_say", "_state")

    def __init__(self, say: Say) -> None:
        self._say = say
        self._state = ""
        self._outage: Outage | None = None

    def report(self, state: str, outage: Outage | None, *, is_news: bool) -> None:
        """Log what has changed since the last report; without news, log that the wait goes on."""
        before, self._outage = self._outage, outage
        ended = outage is None and before is not None
        began = outage is not None and (before is None or is_refusal(outage.error) != is_refusal(before.error))
        if outage is not None and began:
            self._say(logging.WARNING, in_words(outage.error))
        elif outage is not None and not is_news:
            self._say(
                logging.WARNING,
                f"Still no look at the run since {outage.since:%Y-%m-%d %H:%M:%S} UTC: {outage.error}",
            )
        elif ended and before is not None:
            self._say(logging.INFO, f"The API answers again after {before.polls} failed looks.")
        if state != self._state:
            self._state = state
            self._say(logging.INFO, state)
        elif not (is_news or outage is not None):
            self._say(logging.INFO, f"Still waiting. {state}")


async def wait_for_end(
    poller: SharedPoller,
    wait: Wait,
    *,
    poll_interval: float,
    deadline_at: datetime,
    say: Say,
    on_known: Callable[[ExecutionEvent], None] = lambda _: None,
    answered: bool = True,
) -> Verdict:
    """Wait until there is a verdict, or until a last look at the deadline.

    Args:
        poller: of the run's connection.
        wait: the run.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, on our clock. The run goes on after it.
        say: where changes of state and signs of life go.
        on_known: called at most once, when exactly one event is known to be the run's and the run goes on.
        answered: whether the platform has answered a request for this run before. If not, the first refusal ends the
            wait.

    Raises:
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    logger, late, known = ProgressLogger(say), LateWarning(wait), False
    outage: Outage | None = None

    def note_known() -> None:
        nonlocal known
        if wait.is_known and not known:
            known = True
            on_known(wait.events[0])

    def tell(subscription: Subscription[Verdict], is_news: bool) -> None:
        nonlocal outage
        outage = subscription.outage
        late.log_once(say)
        logger.report(state_of(wait), subscription.outage, is_news=is_news)
        if not subscription.over:
            note_known()

    note_known()
    verdict = await poller.wait_for(wait, interval=poll_interval, deadline_at=deadline_at, tell=tell, answered=answered)
    ends = [event.completedAt for event in verdict.events if event.completedAt is not None]
    poller.note_end(verdict.outcome, max(ends, default=None))
    if verdict.outcome == Outcome.TIMED_OUT and outage is not None:
        return replace(verdict, failure=str(outage.error))
    return verdict


async def wait_for_sought(
    poller: SharedPoller,
    sought: Sought,
    rules: Rules,
    *,
    poll_interval: float,
    deadline_at: datetime,
    now: Clock,
    say: Say,
    on_known: Callable[[ExecutionEvent], None] = lambda _: None,
    answered: bool = True,
) -> tuple[Submission, Verdict]:
    """Find the run that is sought, and wait until it is over. The arguments are those of `wait_for_end`.

    Returns:
        The run, and how it ended. A run that had not begun at the deadline is one that is not over, without events. If
        no run began in the interval that is sought, and none can appear any more, no run was found.

    Raises:
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    submission, first = sought.known(now()), None
    if submission is None and sought.started_after is not None:
        pace = Pace(poll_interval, deadline_at, now, say, Patience(answered=answered))
        found = await _wait_for_first(poller, sought, sought.started_after, rules.settle, pace)
        answered = True
        if found is None or isinstance(found, Missing):
            nothing = Submission(agent_id=sought.agent_id, taken_at=now())
            return nothing, Verdict(Outcome.TIMED_OUT if found is None else Outcome.NOT_FOUND)
        first = found
        submission = attached_to(first, sought.agent_id, now())
        say(logging.INFO, f"The first run of agent {sought.agent_id} is event {first.id}, begun at {first.startedAt}.")
    if submission is None:
        raise AssertionError("unreachable: a run is known, or sought by its begin")
    wait = Wait(submission, rules, now())
    if first is not None:
        # It has been shown already, so it need not be looked for again.
        verdict = wait.take(Look((first,), None), now())
        if verdict is not None:
            return submission, verdict
    return submission, await wait_for_end(
        poller,
        wait,
        poll_interval=poll_interval,
        deadline_at=deadline_at,
        say=say,
        on_known=on_known,
        answered=answered,
    )


async def _wait_for_first(
    poller: SharedPoller, sought: Sought, after: datetime, settle: float, pace: Pace
) -> ExecutionEvent | Missing | None:
    """The first run of an interval, or None at the deadline."""
    agent_id, before, search = sought.agent_id, sought.started_before, FirstRun(sought.started_before, settle)
    pace.speak(logging.INFO, f"Waiting for the first run of agent {agent_id} that begins {sought.interval}.")
    while True:
        over = pace.is_over()
        try:
            look = await poller.single_flight(
                ("first", agent_id, after, before),
                lambda: list_begun(agent_id, after, before, now=poller.now),
                deadline_at=pace.deadline_at,
            )
        except (TemporaryError, PermanentError) as error:
            pause = pace.failed(error).seconds
        else:
            pause = pace.looked().seconds
            found = search.take(look)
            if found is not None:
                return found
            pace.sign_of_life(
                logging.INFO, f"Still waiting for a run of agent {agent_id} that begins {sought.interval}."
            )
        if over:
            return None
        await poller.sleep(pause)


class _Busy:
    """The runs that an agent was busy with: something to wait for until all of them are over."""

    seek = None

    def __init__(self, agent_id: str, active: Sequence[ExecutionEvent]) -> None:
        self.agent_id = agent_id
        self._active = {event.id: event for event in active}

    @property
    def going_on(self) -> Collection[ExecutionEvent]:
        return self._active.values()

    def take(self, look: Look, began_at: datetime) -> bool | None:  # noqa: ARG002 - it seeks nothing
        return None

    def update(self, event: ExecutionEvent) -> bool | None:
        if not is_active(event):
            self._active.pop(event.id, None)
        return None if self._active else True

    def expire(self) -> bool:
        return False


#: Seconds after which an agent is asked for again although the runs that it is busy with are followed. A run that has
#: vanished, with its agent or from a queue, never ends.
_ASK_AGAIN_SECONDS = 60.0
_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], StartQueue]] = WeakKeyDictionary()


def _queue_of(poller: SharedPoller, agent_id: str, now: Clock) -> StartQueue:
    """The queue for an agent. It outlives the poller, which is closed as soon as the last task is released."""
    queues = _queues.setdefault(asyncio.get_running_loop(), {})
    for key in [key for key, queue in queues.items() if not queue.is_of_use(now())]:
        del queues[key]
    return queues.setdefault((poller.name, agent_id), StartQueue())


async def wait_until_idle(
    poller: SharedPoller,
    agent_id: str,
    *,
    poll_interval: float,
    deadline_at: datetime,
    settle: float,
    hold_seconds: float,
    now: Clock,
    say: Say,
) -> None:
    """Wait until no run of the agent is active, and until it is this task's turn to start one.

    The runs that are active are followed with everything else.

    Args:
        poller: of the agent's connection.
        agent_id: the agent.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, on our clock.
        settle: seconds within which the event of a run appears.
        hold_seconds: for how long no other task is released after this one, unless its run is seen.
        now: our clock.
        say: where changes of state and signs of life go.

    Raises:
        StillBusyError: the agent was not idle at the deadline, or other tasks came first.
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    queue, task, news = _queue_of(poller, agent_id, now), object(), TimedEvent(asyncio.get_running_loop())
    pace = Pace(poll_interval, deadline_at, now, say, queue.patience)

    def may_start(active: Sequence[ExecutionEvent]) -> str | None:
        if active:
            queue.see_active_run(settle, now())
        return "a task that came first was just released" if queue.is_taken(now()) else None

    def tell(subscription: Subscription[bool], is_news: bool) -> None:  # noqa: ARG001 - the pace knows when to speak
        if subscription.outage is not None:
            pace.sign_of_life(logging.WARNING, f"Still no look at agent {agent_id}: {subscription.outage.error}")
        elif not subscription.over:
            pace.sign_of_life(logging.INFO, f"Still waiting for agent {agent_id} to become idle.")

    async def rest(pause: Sleep) -> None:
        # A row without an id cannot be followed.
        if not isinstance(pause, BusyPause) or any(event.lacks_id for event in pause.active):
            await poller.sleep(pause.seconds)
            return
        ask_again_at = now() + timedelta(seconds=max(_ASK_AGAIN_SECONDS, poll_interval))
        await poller.wait_for(
            _Busy(agent_id, pause.active),
            interval=poll_interval,
            deadline_at=min(deadline_at, ask_again_at),
            tell=tell,
        )

    queue.join(task, news.wake)
    try:
        await _wait_for_turn(queue, task, agent_id, pace, news, now)
        async with timeout((deadline_at - now()).total_seconds() + LAST_LOOK_SECONDS):
            await poller.ask(idle_steps(agent_id, pace, may_start=may_start), patient=True, rest=rest)
        queue.release(hold_seconds, now())
    except TimeoutError:
        raise StillBusyError(
            f"Agent {agent_id} was not seen idle before the deadline (the API has not answered in full). Nothing was "
            "started. Raise timeout, or clear the task once the API answers."
        ) from None
    finally:
        queue.leave(task)


async def _wait_for_turn(
    queue: StartQueue, task: object, agent_id: str, pace: Pace, news: TimedEvent, now: Clock
) -> None:
    """Wait until no other task comes first."""
    if not queue.is_first(task):
        pace.speak(logging.INFO, f"Waiting for agent {agent_id}. Tasks that come first: {queue.ahead_of(task)}.")
    while not queue.is_first(task):
        if pace.is_over():
            raise StillBusyError(
                f"Agent {agent_id} was not free before the deadline. Tasks that came first and still wait for it: "
                f"{queue.ahead_of(task)}. Nothing was started."
            )
        await news.wait(min((pace.deadline_at - now()).total_seconds(), SIGN_OF_LIFE_SECONDS))
        pace.sign_of_life(
            logging.INFO, f"Still waiting for agent {agent_id}. Tasks that come first: {queue.ahead_of(task)}."
        )


async def open_journal(
    poller: SharedPoller,
    agent_id: str | None,
    *,
    settle: float,
    cursor: Cursor | None,
    statuses: Collection[str] | None = None,
) -> Journal:
    """A journal that goes on from a cursor, or from now; from now, it is known that it can be read.

    The arguments are those of `Journal`.

    Raises:
        AgentsError: it cannot.
    """
    if cursor is not None:
        return Journal(agent_id, settle, cursor, statuses=statuses)
    return await poller.ask(_within_limit(journal_from_now(agent_id, settle=settle, now=poller.now, statuses=statuses)))


def _within_limit(steps: Flow[R]) -> Flow[R]:
    """The same dialogue, in which a request over the rate limit is repeated after a pause.

    Its listings may be longer than the limit allows at once. To begin them anew would never end.
    """
    step = next(steps)
    while True:
        try:
            try:
                answer = yield step
            except RateLimitedError as error:
                yield Sleep(error.retry_after_seconds or _LIMIT_SECONDS)
            except AgentsError as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # a generator's return value is untyped


def journal_from_now(
    agent_id: str | None, *, settle: float, now: Clock, statuses: Collection[str] | None = None
) -> Flow[Journal]:
    """A journal of what ends from now on. The arguments are those of `Journal`, and our clock."""

    def list_all(status: Status | None) -> ApiCall[Page[ExecutionEvent]]:
        return list_events(status=status) if agent_id is ACCOUNT else list_agent_events(agent_id, status=status)

    seen: dict[str, ExecutionEvent] = {}
    server_now: datetime | None = None
    # What is queued first: a run that begins in between is then in both answers, and otherwise would be in neither.
    for status in (Status.PENDING, Status.RUNNING):
        listed = yield from paginate(list_all(status))
        server_now = server_now or listed.server_time
        seen.update((event.id, event) for event in listed.value)
    if server_now is None:
        # Without the server's clock, its newest events say at least how late it is. What has ended by then is not
        # reported, so all of it must be known.
        rows: list[ExecutionEvent] = []

        def enough(answer: Response[Page[ExecutionEvent]]) -> bool:
            rows.extend(answer.value.data)
            stamp = clock_at_least(None, rows)
            floor = min(stamp, now()) - timedelta(seconds=settle) - TOLERANCE if stamp is not None else None
            return any(lies_before(event, floor) for event in answer.value.data)

        yield from paginate(list_all(None), enough)
        seen.update((event.id, event) for event in rows)
    return Journal.from_now(agent_id, settle, server_now, seen.values(), local_now=now(), statuses=statuses)


async def stream_completions(
    poller: SharedPoller, journal: Journal, *, poll_interval: float, say: Say
) -> AsyncGenerator[list[ExecutionEvent]]:
    """What has ended, after each complete look; more than `Journal.ended` returns at once comes in several parts.

    The parts are `poll_interval` seconds apart, since Airflow up to 3.3.2 holds back all but the first event of a
    burst.

    Raises:
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    looks, outage = journal.looks, False
    async with aclosing(poller.stream(journal, interval=poll_interval)) as changes:
        async for subscription in changes:
            if (subscription.outage is not None) != outage:
                outage = subscription.outage is not None
                if subscription.outage is not None:
                    say(
                        logging.WARNING,
                        f"{subscription.outage.error} Looking again until it can be seen what has ended.",
                    )
                else:
                    say(logging.INFO, "The API answers again.")
            if journal.looks != looks:
                looks = journal.looks
                for event in journal.lost():
                    say(
                        logging.WARNING,
                        "No listing has shown a run for an hour: its agent was deleted, or the platform keeps it no "
                        "longer. The watcher gives it up, and its end is not reported. "
                        f"agent={event.agentId or 'unknown'} event={event.id}",
                    )
                yield journal.ended()
                while journal.has_ended:
                    await poller.sleep(poll_interval)
                    yield journal.ended()
