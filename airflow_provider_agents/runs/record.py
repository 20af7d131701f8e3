"""What a task remembers of its run from one try to the next. JSON in, JSON out.

::

    submitting ──► accepted ◄──► deferred ──► ended

Each phase is written before the step that it names can be interrupted, so that whatever dies, the next try knows the
least that it must assume: in `submitting` a run may have started, from `accepted` on it has.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.versioned_json import Moment, VersionedJson


class Phase(StrEnum):
    """How far a task had come with its run."""

    SUBMITTING = "submitting"  # just before the POST, or around it; `sent_at` shows if one may have started a run
    ACCEPTED = "accepted"  # the run is known to have been asked for, and this try does not wait for it, or no longer
    DEFERRED = "deferred"  # about to wait in the triggerer
    ENDED = "ended"  # the worker has seen the end


class Attempt(BaseModel):
    """One try of a task, as Airflow counts it.

    Attributes:
        try_number: from 1; each try has the next one, after a clear too.
        max_tries: the last try number that Airflow's own retries may reach. A clear sets it to the number of the last
            try plus the task's `retries`.
        clear_number: how often tasks of the DAG run were cleared, whichever they were; None if that is unknown.
    """

    model_config = ConfigDict(frozen=True)

    try_number: int
    max_tries: int
    clear_number: int | None = None

    def is_cleared_since(self, earlier: Attempt, *, retries: int) -> bool:
        """Whether a user has cleared the task between an earlier try and this one.

        A clear that leaves `max_tries` as it was can only be one after `retries` was lowered. Then the clear came
        after try `max_tries - retries`, which must be one of the tries in between, and it has raised `clear_number`.

        One case cannot be told from a clear: `retries` was lowered by the number of a try in between, another task of
        the DAG run was cleared, and this try is Airflow's own retry. It counts as a clear.

        Args:
            earlier: a try before this one, or this one.
            retries: of the task, as its DAG has them now.
        """
        if self.max_tries != earlier.max_tries:
            return True
        if None not in {self.clear_number, earlier.clear_number} and self.clear_number == earlier.clear_number:
            return False
        return earlier.try_number <= self.max_tries - retries < self.try_number


#: How a task ended: with the end of its run, or, if it does not wait, with its submission.
End = Outcome | Literal["submitted"]


class RunRecord(VersionedJson):
    """A task's record of its run.

    Attributes:
        phase: how far it had come.
        agents_conn_id: the connection the run was started with; a record of another one is not this task's.
        submission: what ties the task to the run.
        attempt: the try that wrote the record.
        outcome: how the task ended, once `ended`.
        result: what the task returned, once `ended` well. A try that repeats the end returns it again.
        is_own: whether `result` is the event of the task's own run; if not, it may be another run's.
        candidate_event_ids: the events that could be the run's, where `result` is not the task's own for certain.
        ends_in_trigger: whether the trigger may have ended the task by itself.
        deadline_at: when the task gives up, while it is deferred.
    """

    # What cannot be read is never taken for "no record": that could start a second run.
    _called: ClassVar = "The task's record of its run"
    _what_to_do: ClassVar = (
        "A run may have been started: look at the agent's runs. To start a new one, delete the task state key "
        "'agent_run' of this task instance, or set durable=False."
    )

    phase: Phase
    agents_conn_id: str
    submission: Submission
    attempt: Attempt
    outcome: End | None = None
    result: dict[str, Any] | None = None
    is_own: bool = False
    candidate_event_ids: tuple[str, ...] = ()
    ends_in_trigger: bool = False
    deadline_at: Moment | None = None

    def belongs_to(self, agent_id: str, agents_conn_id: str) -> bool:
        """Whether this is the record of a run of this agent over this connection."""
        return self.submission.agent_id == agent_id and self.agents_conn_id == agents_conn_id
