"""One poll at a time for the run that a sensor waits for, on a worker: Airflow decides when the next poll comes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_provider_agents.clock import now
from airflow_provider_agents.polling.blocking import run_flow_until
from airflow_provider_agents.polling.polled_siblings import PolledSiblings
from airflow_provider_agents.polling.progress import ExclusiveWarning, LateWarning, state_of
from airflow_provider_agents.runs.listing import Listing
from airflow_provider_agents.runs.matching import Missing
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.status import is_terminal
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import RunTracker

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.blocking import ReadStarts
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.runs.first_run import FirstRunSearch
    from airflow_provider_agents.runs.selector import RunSelector
    from airflow_provider_agents.runs.tracker import WaitPolicy


class SinglePolls:
    """The polls of one process.

    Attributes:
        state: what was logged last of the run.
        lacks_only_time: whether another poll of this process, `settle` seconds later, would give a verdict. Another
            process would have to count from nothing again.
    """

    def __init__(self) -> None:
        self.state, self.lacks_only_time = "", False
        self._first: FirstRunSearch | None = None
        self._tracker: RunTracker | None = None
        self._siblings: PolledSiblings | None = None
        self._warnings: list[LateWarning | ExclusiveWarning] = []

    @property
    def known(self) -> ExecutionEvent | None:
        """The run's event, once it is known."""
        return self._tracker.events[0] if self._tracker is not None and self._tracker.is_known else None

    def poll(
        self,
        client: Client,
        selector: RunSelector,
        policy: WaitPolicy,
        *,
        deadline_at: datetime,
        say: Say,
        is_followed: bool,
        read_starts: ReadStarts | None,
    ) -> tuple[Verdict | None, Submission]:
        """Poll once.

        Args:
            client: of the sensor's connection.
            selector: which run.
            policy: how to wait.
            deadline_at: when to give up.
            say: logs what is new.
            is_followed: whether another process or a trigger may poll next. If so, that one logs the warnings.
            read_starts: reads the starts of an agent that other processes wait for. If it fails, they are done without.

        Returns:
            How the wait has ended, None if it has not; and the run, as far as it is known.

        Raises:
            AgentsError: the poll has failed.
        """
        submission = self._tracker.submission if self._tracker is not None else selector.known(now())
        first: ExecutionEvent | None = None
        if submission is None:
            found = self._find_first(client, selector, policy, deadline_at)
            self._log_warnings(say, found is None and is_followed)
            if found is None or isinstance(found, Missing):
                self._report(f"Not known yet: {selector.words}. agent={selector.agent_id}", say)
                verdict = None if found is None else Verdict(Outcome.NOT_FOUND)
                return verdict, Submission(agent_id=selector.agent_id, taken_at=now())
            first = found
            submission = Submission.for_event(first, selector.agent_id, now())
        began_at = now()
        if self._tracker is None:
            self._tracker = RunTracker(submission, selector.policy_once_known(policy), began_at)
            self._warnings += [LateWarning(self._tracker), ExclusiveWarning(self._tracker, selector.agent_id)]
            if read_starts is not None:
                self._siblings = PolledSiblings(self._tracker, read_starts, began_at)
        tracker = self._tracker
        # A run that was just shown need not be listed again.
        listing = (
            Listing((first,), None)
            if first is not None
            else run_flow_until(client, tracker.read_listing(), deadline_at)
        )
        verdict, searching = tracker.apply_listing(listing, began_at), [tracker]
        if verdict is None and self._siblings is not None:
            verdict = self._siblings.decide(lambda flow: run_flow_until(client, flow, deadline_at))
            searching += self._siblings.searching
        is_timeless = any(
            one.criteria is not None and (listing.server_time is None or one.submission.server_after is None)
            for one in searching
        )
        self.lacks_only_time = is_timeless and all(map(is_terminal, tracker.events))
        self._log_warnings(say, verdict is None and is_followed)
        self._report(state_of(tracker), say)
        return verdict, submission

    def _find_first(
        self, client: Client, selector: RunSelector, policy: WaitPolicy, deadline_at: datetime
    ) -> ExecutionEvent | Missing | None:
        if self._first is None:
            self._first = selector.search(policy)
            self._warnings.append(ExclusiveWarning(self._first, selector.agent_id))
        listing = run_flow_until(client, selector.list_runs(), deadline_at)
        self.lacks_only_time = listing.server_time is None and bool(listing.events) and is_terminal(listing.events[0])
        return self._first.apply_listing(listing)

    def _log_warnings(self, say: Say, is_followed: bool) -> None:
        if not is_followed:
            for warning in self._warnings:
                warning.log_once(say)

    def _report(self, state: str, say: Say) -> None:
        if state != self.state:
            self.state = state
            say(logging.INFO, state)
