"""Waiting for a run in a triggerer, on a poller. `blocking` does the same on a worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_provider_agents.clock import now
from airflow_provider_agents.polling.asking import RunSearch
from airflow_provider_agents.polling.progress import RunProgress
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.matching import Missing
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.runs.selector import RunSelector
    from airflow_provider_agents.runs.tracker import WaitPolicy


async def wait_for_end(
    poller: SharedPoller,
    tracker: RunTracker,
    *,
    poll_interval: float,
    deadline_at: datetime,
    say: Say,
    on_known: Callable[[ExecutionEvent], None] = lambda _: None,
    answered: bool = True,
) -> Verdict:
    """Wait until there is a verdict, or until a last poll at the deadline.

    Args:
        poller: of the run's connection.
        tracker: the run.
        poll_interval: seconds between two polls.
        deadline_at: when to give up, on our clock. The run is still running then.
        say: logs changes of state and signs of life.
        on_known: called at most once, when exactly one event is known to be the run's and the run is active.
        answered: whether the platform has answered a request for this run before. If not, the first refusal ends the
            wait.

    Raises:
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    progress = RunProgress(tracker, say, on_known, poller.record_appearance)
    verdict = await poller.wait_for(
        tracker, interval=poll_interval, deadline_at=deadline_at, on_wake=progress.on_wake, answered=answered
    )
    ends = [event.completedAt for event in verdict.events if event.completedAt is not None]
    poller.record_end(verdict.outcome, max(ends, default=None))
    return progress.complete(verdict)


async def find_run(
    poller: SharedPoller,
    selector: RunSelector,
    policy: WaitPolicy,
    *,
    poll_interval: float,
    deadline_at: datetime,
    say: Say,
    answered: bool = True,
) -> tuple[RunTracker, Verdict | None]:
    """Find the run that is sought. The arguments are those of `wait_for_end`.

    Returns:
        The run, and how it ended if that is known. A run that had not started at the deadline is one that has not
        ended, without events. If no run started in the interval that is sought, and none can appear any more, no run
        was found.

    Raises:
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    submission = selector.known(now())
    if submission is not None:
        return RunTracker(submission, selector.policy_once_known(policy), now()), None
    say(logging.INFO, f"Waiting for {selector.words}.")
    search = RunSearch(selector, policy, say)
    found = await poller.wait_for(
        search, interval=poll_interval, deadline_at=deadline_at, on_wake=search.on_wake, answered=answered
    )
    if found is None or isinstance(found, Missing):
        nothing = RunTracker(Submission(agent_id=selector.agent_id, taken_at=now()), policy)
        return nothing, Verdict(Outcome.TIMED_OUT if found is None else Outcome.NOT_FOUND)
    say(logging.INFO, f"Found {selector.words}: event {found.id}, begun at {found.startedAt}.")
    submission = Submission.for_event(found, selector.agent_id, now())
    tracker = RunTracker(submission, selector.policy_once_known(policy), now())
    # Its event is known already.
    return tracker, tracker.apply_listing(Listing((found,), None), now())
