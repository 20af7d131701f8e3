"""What a task remembers of its run from one try to the next. JSON in, JSON out.

::

    submitting ──► accepted ──► deferred ──► ended
                       │            │
                       └──────────► detached ──► (taken up by the next try)

Each phase is written before the step that it names can be interrupted, so that whatever dies, the next try knows the
least that it must assume: in `submitting` a run may have started, from `accepted` on it has.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_agents.api.errors import AgentsError, first_fault
from airflow_provider_agents.runs.submission import Submission


class Phase(StrEnum):
    """How far a task had come with its run."""

    SUBMITTING = "submitting"  # just before the POST, or around it; `sent_at` says if one may have started a run
    ACCEPTED = "accepted"  # the run is known to have been asked for
    DEFERRED = "deferred"  # about to wait in the triggerer
    DETACHED = "detached"  # the task gave up waiting; the run may go on
    ENDED = "ended"  # the worker has seen the end


class UnreadableRecordError(AgentsError):
    """The task's record of its run cannot be read, so it cannot be told whether a run was started."""


class RunRecord(BaseModel):
    """A task's memory of its run.

    Attributes:
        phase: how far it had come.
        agents_conn_id: the connection the run was started with; a record of another one is not this task's.
        submission: what ties the task to the run.
        generation: grows when a user clears the task. A new try within one generation is Airflow's own retry.
        outcome: how the run ended, once `ended`: a `verdict.Outcome`, or `submitted` for a task that does not wait.
        result: what the task returned, once `ended` well. A try that repeats the end returns it again.
        ends_in_trigger: whether the trigger may have ended the task by itself.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    phase: Phase
    agents_conn_id: str
    submission: Submission
    generation: int = 0
    outcome: str | None = None
    result: dict[str, Any] | None = None
    ends_in_trigger: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` gave.

        Raises:
            UnreadableRecordError: it is something else. It is never taken for "no record": that could start a second
                run.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UnreadableRecordError(
                f"The task's record of its run cannot be read ({first_fault(error)}), so a "
                "run may already have been started. Look at the agent's runs; to start a new one, delete the task "
                "state key 'agent_run' of this task instance, or set durable=False."
            ) from None

    def belongs_to(self, agent_id: str, agents_conn_id: str) -> bool:
        """Whether this is the memory of a run of this agent over this connection."""
        return self.submission.agent_id == agent_id and self.agents_conn_id == agents_conn_id

    def changed(self, **fields: Any) -> Self:
        """A copy with other values."""
        return self.model_copy(update=fields)
