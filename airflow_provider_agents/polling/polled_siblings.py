"""The siblings of a run that is polled now and then: what the starts of other processes say about its events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_agents.clock import now
from airflow_provider_agents.polling.blocking import read_or_none
from airflow_provider_agents.runs.listing import read_listing
from airflow_provider_agents.runs.siblings import Siblings

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.polling.blocking import ReadStarts
    from airflow_provider_agents.runs.listing import Listing
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.starts import StartTracker
    from airflow_provider_agents.runs.tracker import RunTracker

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class PolledSiblings:
    """The siblings of one run.

    Args:
        tracker: of the run. From now on, it leaves a verdict that depends on siblings to `decide`.
        read_starts: reads the starts of an agent that other processes wait for.
        at: now.

    Attributes:
        searching: the starts of which it is not known yet which events can be theirs.
    """

    def __init__(self, tracker: RunTracker, read_starts: ReadStarts, at: datetime) -> None:
        self.searching: list[StartTracker] = []
        self._tracker, self._read_starts = tracker, read_starts
        self._siblings = Siblings(reads_starts=True)
        self._siblings.join(tracker, at)

    def decide(self, run_flow: Callable[[Flow[Listing]], Listing]) -> Verdict | None:
        """The verdict of the run after a poll that brought none; None if it waits on.

        Args:
            run_flow: carries out a request.

        Raises:
            AgentsError: the request has failed.
        """
        for agent_id in self._siblings.wanted_starts():
            starts = read_or_none(self._read_starts, agent_id)
            self.searching += self._siblings.add_starts(agent_id, starts, now())
        if self.searching:
            self._search(run_flow)
        decided = dict(filter(None, self._siblings.decide(now())))
        return decided.get(self._tracker)

    def _search(self, run_flow: Callable[[Flow[Listing]], Listing]) -> None:
        """Read one listing for all starts: it goes back to the earliest."""
        began_at = now()
        windows = [start.submission.window for start in self.searching]
        earliest = min(windows, key=lambda window: window.not_before or _LONG_AGO)
        # An event that names the earliest start must not end the listing before the events of the others.
        listing = run_flow(read_listing(self._tracker.agent_id, replace(earliest, request_id=None)))
        for start in [*self.searching]:
            verdict = start.apply_listing(listing, began_at)
            if verdict is not None:
                self.searching.remove(start)
                self._siblings.leave(start, verdict, now())
