"""What triggers hand to tasks: versioned, so that a task never guesses what a trigger of another version means."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, get_args

from airflow_provider_agents.api.models import read_event
from airflow_provider_agents.runs.outcome import Outcome, Verdict
from airflow_provider_agents.runs.selector import AnySelector
from airflow_provider_agents.runs.status import is_success
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.version_compat import NEXT_TRY_WAITS
from airflow_provider_agents.versioned_json import Moment, Seconds, UnusableDataError, VersionedJson

#: The keys of a task's own XComs.
XComKey = Literal["return_value", "request_id", "event_id", "candidate_event_ids", "usage", "run_url"]
XCOM_KEYS: tuple[XComKey, ...] = get_args(XComKey)
#: Those that a trigger pushes if it ends the task of a COMPLETED run. Airflow itself writes a link whatever
#: `do_xcom_push` says.
END_KEYS: tuple[XComKey, ...] = ("return_value", "event_id", "candidate_event_ids", "usage", "run_url")
END_KEYS_WITHOUT_PUSH: tuple[XComKey, ...] = ("run_url",)
#: Those that a trigger pushes as soon as the run's event is known.
EARLY_KEYS: tuple[XComKey, ...] = ("event_id", "run_url")


class Payload(VersionedJson):
    """What a trigger hands to the task: versioned, small, JSON types, never the key."""

    _called: ClassVar = "The trigger's event"
    _what_to_do: ClassVar = (
        f"Workers and triggerers must run the same version. The run is left as it is. {NEXT_TRY_WAITS}"
    )


class RunEnded(Payload):
    """The end of a wait for a run.

    It says all that the task needs to end: templates are rendered again when a task resumes, and may give other values.

    Attributes:
        agents_conn_id: the connection over which the run was waited for.
        submission: whose run it was.
        outcome: a `outcome.Outcome`, or `error` if the wait itself failed.
        events: the run's event as the API sent it, or those of all candidates, oldest first.
        late: as in `outcome.Verdict`.
        is_shared: likewise.
        error: why the wait failed, or why the last poll before its deadline failed.
        for_good: whether a new wait would fail the same way.
        selector: how a sensor has selected the run; None if it was named by its submission or its event.
    """

    kind: Literal["run"] = "run"
    agents_conn_id: str
    submission: Submission
    outcome: Outcome | Literal["error"]
    events: tuple[dict[str, Any], ...] = ()
    late: bool = False
    is_shared: bool = False
    error: str | None = None
    for_good: bool = False
    selector: AnySelector | None = None

    def verdict(self) -> Verdict | None:
        """How the wait ended, or None if the wait failed.

        Raises:
            UnusableDataError: the events are none, or say something else than the outcome.
        """
        if self.outcome == "error":
            return None
        events = tuple(map(read_event, self.events))
        if self.outcome == Outcome.FAILED and any(event.unreadable is not None for event in events):
            raise UnusableDataError("The trigger reports a run that FAILED and does not hold its event.")
        if self.outcome == Outcome.COMPLETED and not (events and is_success(events[0])):
            raise UnusableDataError("The trigger reports a run that COMPLETED and does not hold its event.")
        return Verdict(self.outcome, events, self.late, self.error, self.is_shared)


class AgentIdle(Payload):
    """The end of a wait for an agent to become idle.

    Attributes:
        agents_conn_id: the connection over which the agent was asked for.
        agent_id: the agent.
        deadline_at: the deadline that the task set itself, so that a second wait does not start a new one.
        released_at: since when it is this task's turn to start a run, on the triggerer's clock.
        hold_seconds: for how long no other task is released.
        error: why the agent is not known to be idle.
        for_good: whether asking again would fail the same way.
    """

    kind: Literal["idle"] = "idle"
    agents_conn_id: str
    agent_id: str
    deadline_at: Moment
    released_at: Moment | None = None
    hold_seconds: Seconds = 0.0
    error: str | None = None
    for_good: bool = False

    def is_stale(self, now: datetime) -> bool:
        """Whether another task may have been released since."""
        return self.released_at is None or now - self.released_at > timedelta(seconds=self.hold_seconds)
