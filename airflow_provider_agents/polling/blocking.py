"""The same plan on a worker: one subscription, driven by a client that blocks."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from airflow_provider_agents import clock
from airflow_provider_agents.api.errors import NoAnswerError, TemporaryError
from airflow_provider_agents.api.flow import ApiCall, NoRetry, through
from airflow_provider_agents.polling.asking import IdleAgent
from airflow_provider_agents.polling.plan import Plan
from airflow_provider_agents.polling.progress import (
    LAST_POLL_SECONDS,
    SIGN_OF_LIFE_SECONDS,
    RunProgress,
    slow_appearance,
)
from airflow_provider_agents.polling.starts_reading import NOT_READ
from airflow_provider_agents.polling.subscriptions import ClockReading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.api.flow import Flow, Step
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.polling.subscriptions import Subscriber, Subscription
    from airflow_provider_agents.runs.appearance import Appearance
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.starts import Start
    from airflow_provider_agents.runs.tracker import RunTracker

R = TypeVar("R")

#: Reads the starts of an agent, by its id.
ReadStarts: TypeAlias = "Callable[[str], Sequence[Start]]"

log = logging.getLogger(__name__)

_LAST_POLL = timedelta(seconds=LAST_POLL_SECONDS)


def wait_for_end(
    client: Client,
    tracker: RunTracker,
    *,
    poll_interval: float,
    deadline_at: datetime,
    say: Say,
    on_known: Callable[[ExecutionEvent], None] = lambda _: None,
    read_starts: ReadStarts | None = None,
) -> Verdict:
    """As `waits.wait_for_end`, on a worker. `read_starts` may fail."""

    def on_appeared(tracker: RunTracker, appearance: Appearance) -> None:
        if appearance.is_slow and not tracker.is_late:  # a late event has a warning of its own
            say(logging.WARNING, slow_appearance(tracker, appearance))

    progress = RunProgress(tracker, say, on_known, on_appeared)
    verdict = wait_for(
        client,
        tracker,
        interval=poll_interval,
        deadline_at=deadline_at,
        on_wake=progress.on_wake,
        read_starts=read_starts,
    )
    return progress.complete(verdict)


def wait_until_idle(client: Client, agent_id: str, *, poll_interval: float, deadline_at: datetime, say: Say) -> None:
    """Wait on a worker until no run of an agent is active.

    Raises:
        AgentBusyError: a run was active at a last poll at the deadline.
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
    """
    idle = IdleAgent(agent_id, say)
    idle.check(wait_for(client, idle, interval=poll_interval, deadline_at=deadline_at, on_wake=idle.on_wake))


def run_flow_until(client: Client, flow: Flow[R], deadline_at: datetime) -> R:
    """Run a flow, and give it up `LAST_POLL_SECONDS` after a deadline: a listing can have many slow pages.

    Raises:
        NoAnswerError: the flow was given up.
    """

    def perform(step: Step) -> Flow[Any]:
        _refuse_after(deadline_at)
        return (yield step)

    return client.run_flow(through(flow, perform))


def wait_for(
    client: Client,
    subscriber: Subscriber[R],
    *,
    interval: float,
    deadline_at: datetime,
    on_wake: Callable[[Subscription[R], bool], None],
    read_starts: ReadStarts | None = None,
) -> R:
    """As `SharedPoller.wait_for`, on a worker.

    Args:
        client: of the run's connection.
        subscriber: what is waited for.
        interval: seconds between two polls.
        deadline_at: when to give up, on our clock.
        on_wake: called with True when the subscriber may have changed, with False after some minutes without a change.
        read_starts: reads the starts of an agent that other processes wait for. If it fails, they are done without.

    Raises:
        AgentsError: the subscriber cannot get a result.
        SystemExit: the task that waits was killed.
    """
    driver = _Driver(client, deadline_at, read_starts)
    subscription = driver.plan.subscribe(
        subscriber, interval=interval, deadline_at=deadline_at, wake=driver.wake, at=_read_clocks()
    )
    woken_at = clock.monotonic()
    while not subscription.has_ended:
        if clock.now() >= deadline_at + _LAST_POLL:
            # The plan ends a wait at its deadline, but not while a poll is under way.
            return subscriber.expire()
        quiet_until = woken_at + SIGN_OF_LIFE_SECONDS
        driver.poll_or_sleep(quiet_until)
        if driver.has_news or clock.monotonic() >= quiet_until:
            is_news, driver.has_news, woken_at = driver.has_news, False, clock.monotonic()
            on_wake(subscription, is_news)
    if subscription.error is not None:
        raise subscription.error
    return subscription.result  # type: ignore[return-value]  # ended without an error, so there is a result


def read_or_none(read_starts: ReadStarts | None, agent_id: str) -> Sequence[Start]:
    """The starts of an agent; none, with a warning, if they cannot be read."""
    if read_starts is None:
        return ()
    try:
        return read_starts(agent_id)
    except Exception as error:  # noqa: BLE001 - after any error, the run is matched without
        log.warning(NOT_READ, agent_id, type(error).__name__)
        return ()


def _read_clocks() -> ClockReading:
    return ClockReading(clock.monotonic(), clock.now())


def _refuse_after(deadline_at: datetime) -> None:
    if clock.now() >= deadline_at + _LAST_POLL:
        raise NoAnswerError("The API has not answered in full before the deadline.")


class _Driver:
    """A plan with one subscription, and the client that carries it out."""

    def __init__(self, client: Client, deadline_at: datetime, read_starts: ReadStarts | None) -> None:
        self.plan, self.has_news = Plan(reads_starts=read_starts is not None), False
        self._client, self._deadline_at, self._read_starts = client, deadline_at, read_starts

    def wake(self) -> None:
        self.has_news = True

    def poll_or_sleep(self, until: float) -> None:
        """Poll if that is due. Else sleep until it is, or until a monotonic second."""
        at = _read_clocks()
        if self.plan.is_due(at):
            for batch in self.plan.cycle(at):
                for flow in batch:
                    self._client.run_flow(through(flow, self._perform))
            for agent_id in self.plan.wanted_starts():
                starts = read_or_none(self._read_starts, agent_id)
                self._client.run_flow(self.plan.add_starts(agent_id, starts, _read_clocks()))
        elif (next_at := self.plan.next_at(at)) is not None:
            clock.sleep(max(0.0, min(next_at, until) - at.monotonic))

    def _perform(self, step: Step) -> Flow[Any]:
        _refuse_after(self._deadline_at)
        try:
            # The next poll repeats a request that has failed.
            return (yield NoRetry(step) if isinstance(step, ApiCall) else step)
        except TemporaryError as error:
            if error.retry_after_seconds is not None:
                self.plan.pause(error.retry_after_seconds, _read_clocks())
            raise
