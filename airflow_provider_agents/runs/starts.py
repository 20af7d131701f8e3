"""The starts of an agent that other processes of ours wait for. Pure.

Tasks that start one agent side by side can be told apart together (`joint`). Where they wait in several triggerers and
workers, each process reads the starts of the others and waits until it knows which events can be theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.tracker import RunTracker, WaitPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from airflow_provider_agents.runs.listing import Listing
    from airflow_provider_agents.runs.submission import Submission


@dataclass(frozen=True, slots=True)
class Start:
    """A run that a task of ours has started, as its process has written it down.

    Attributes:
        submission: of an accepted POST.
        settle: seconds after acceptance within which its event appears, as the task has it.
        appear_within: seconds after which the task gives its run up.
        given_event_id: the event that the task was given; None if the task still waits, or was given none.
    """

    submission: Submission
    settle: float
    appear_within: float
    given_event_id: str | None = None

    def tracker(self, began_at: datetime) -> StartTracker:
        """A tracker that finds out which events can be its run.

        Args:
            began_at: when this process begins to look, on its own clock.
        """
        policy = WaitPolicy(settle=self.settle, appear_within=max(self.appear_within, self.settle))
        return StartTracker(self.submission, policy, began_at)


class StartTracker(RunTracker):
    """A start that this process does not wait for. It ends as soon as it is known which events can be its run."""

    __slots__ = ()

    def apply_listing(self, listing: Listing, began_at: datetime) -> Verdict | None:
        """Take in a listing. The verdict says only that no further listing is needed."""
        verdict = super().apply_listing(listing, began_at)
        if verdict is None and not self.is_settled and not self.has_stayed_empty:
            return None
        return Verdict(Outcome.TIMED_OUT, self.events)


def starts_beside(starts: Iterable[Start], trackers: Iterable[RunTracker], margin: timedelta) -> list[Start]:
    """The starts whose runs could be mistaken for those of these trackers, directly or through another start.

    To look for an old run, a listing must go far back. So a start that lies further away than `margin` is left out,
    which makes no verdict wrong.

    Args:
        starts: of one agent.
        trackers: of the same agent.
        margin: how far before and after the windows of the trackers.
    """
    earliest, latest = None, None
    for tracker in trackers:
        window = tracker.submission.window
        not_before, not_after = window.not_before, window.not_after(tracker.policy.settle)
        if not_before is None or not_after is None:
            # Without the server's clock, nothing says how far away a start is.
            return list(starts)
        earliest = not_before if earliest is None else min(earliest, not_before)
        latest = not_after if latest is None else max(latest, not_after)
    if earliest is None or latest is None:
        return []
    beside = []
    for start in starts:
        window = start.submission.window
        not_before, not_after = window.not_before, window.not_after(start.settle)
        if not_before is None or not_after is None:
            continue
        if not_after >= earliest - margin and not_before <= latest + margin:
            beside.append(start)
    return beside
