"""The runs that end, as a stream, for a watcher."""

from __future__ import annotations

import logging
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_agents.api.endpoints import list_agent_events, list_events
from airflow_provider_agents.api.errors import RateLimitedError
from airflow_provider_agents.api.flow import ApiCall, Flow, Response, Sleep, Step, paginate, through
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.clock import now
from airflow_provider_agents.polling.subscriptions import ACCOUNT
from airflow_provider_agents.runs.completions import CompletionTracker
from airflow_provider_agents.runs.matching import TOLERANCE, clock_at_least, is_before

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection
    from datetime import datetime

    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.runs.completions import Checkpoint

R = TypeVar("R")


#: Seconds until a request that was over a rate limit is repeated, where the server names no pause. Most limits are per
#: minute.
_LIMIT_SECONDS = 60.0


async def open_tracker(
    poller: SharedPoller,
    agent_id: str | None,
    *,
    settle: float,
    checkpoint: Checkpoint | None,
    statuses: Collection[str] | None = None,
) -> CompletionTracker:
    """A tracker that resumes at a checkpoint, or begins now. One that begins now has read the listings once.

    The arguments are those of `CompletionTracker`.

    Raises:
        AgentsError: the listings cannot be read.
    """
    if checkpoint is not None:
        return CompletionTracker(agent_id, settle, checkpoint, statuses=statuses)
    return await poller.run_flow(_within_limit(track_from_now(agent_id, settle=settle, statuses=statuses)))


def _within_limit(steps: Flow[R]) -> Flow[R]:
    """The same flow, in which a request over the rate limit is repeated after a pause.

    Its listings may be longer than the limit allows at once. A flow that began anew each time would never end.
    """

    def perform(step: Step) -> Flow[Any]:
        while True:
            try:
                return (yield step)
            except RateLimitedError as error:
                pause = Sleep(error.retry_after_seconds or _LIMIT_SECONDS)
            yield pause

    return through(steps, perform)


def track_from_now(
    agent_id: str | None, *, settle: float, statuses: Collection[str] | None = None
) -> Flow[CompletionTracker]:
    """A tracker of what ends from now on. The arguments are those of `CompletionTracker`."""

    def list_all(status: Status | None) -> ApiCall[Page[ExecutionEvent]]:
        return list_events(status=status) if agent_id is ACCOUNT else list_agent_events(agent_id, status=status)

    seen: dict[str, ExecutionEvent] = {}
    server_now: datetime | None = None
    # PENDING first: a run that starts in between is then in both responses, and otherwise would be in neither.
    for status in (Status.PENDING, Status.RUNNING):
        listed = yield from paginate(list_all(status))
        server_now = server_now or listed.server_time
        seen.update((event.id, event) for event in listed.value)
    if server_now is None:
        # Without the server's clock, the newest events say at least how late it is. Runs that have ended by then are
        # not reported, so all of them must be known.
        rows: list[ExecutionEvent] = []

        def stop(answer: Response[Page[ExecutionEvent]]) -> bool:
            rows.extend(answer.value.data)
            stamp = clock_at_least(None, rows)
            not_before = min(stamp, now()) - timedelta(seconds=settle) - TOLERANCE if stamp is not None else None
            return any(is_before(event, not_before) for event in answer.value.data)

        yield from paginate(list_all(None), stop)
        seen.update((event.id, event) for event in rows)
    return CompletionTracker.from_now(agent_id, settle, server_now, seen.values(), local_now=now(), statuses=statuses)


async def stream_completions(
    poller: SharedPoller, tracker: CompletionTracker, *, poll_interval: float, say: Say
) -> AsyncGenerator[list[ExecutionEvent]]:
    """The runs that ended, after each complete listing, in parts of what `CompletionTracker.ended` returns at once.

    The parts are `poll_interval` seconds apart, since Airflow up to 3.3.2 holds back all but the first event of a
    burst.

    Raises:
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    outage = False
    async with aclosing(poller.stream(tracker, interval=poll_interval)) as changes:
        async for subscription in changes:
            if (subscription.outage is not None) != outage:
                outage = subscription.outage is not None
                if subscription.outage is not None:
                    say(
                        logging.WARNING,
                        f"{subscription.outage.error} Polling again until the ended runs can be seen.",
                    )
                else:
                    say(logging.INFO, "The API answers again.")
            if tracker.was_listed():
                for event in tracker.lost():
                    say(
                        logging.WARNING,
                        "No listing has shown a run for an hour: its agent was deleted, or the platform keeps it no "
                        "longer. The watcher gives it up, and its end is not reported. "
                        f"agent={event.agentId or 'unknown'} event={event.id}",
                    )
                yield tracker.ended()
                while tracker.has_ended:
                    await poller.sleep(poll_interval)
                    yield tracker.ended()
