"""The triggers: waiting in the triggerer, for a run to end or for an agent to become idle.

They only read. Airflow may run a trigger twice, move it to another triggerer, or start it again after a crash, so
nothing here starts a run or writes the task's state. The class paths are stored in users' databases: they are public.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow.triggers.base import BaseTrigger, TriggerEvent
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from airflow_provider_agents.api.errors import (
    AgentsError,
    InvalidConnectionError,
    PermanentError,
    TemporaryError,
    first_fault,
)
from airflow_provider_agents.api.models import ExecutionEvent
from airflow_provider_agents.feed.waits import wait_for_end, wait_until_idle
from airflow_provider_agents.hooks import feed_of
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.verdict import Outcome, Rules, Verdict, Wait
from airflow_provider_agents.runs.waiting import StillBusyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class UnknownTriggerEventError(AgentsError):
    """What a task was resumed with is not what its trigger sends."""


class _Payload(BaseModel):
    """What a trigger hands to the task: versioned, small, JSON types, never the key."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` gave.

        Raises:
            UnknownTriggerEventError: it is something else.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UnknownTriggerEventError(
                f"The trigger sent something that this version of the provider does not know ({first_fault(error)}). "
                "Workers and triggerers must run the same version. The run is left as "
                "it is: clear the task to take it up again."
            ) from None


class RunEnded(_Payload):
    """The end of a wait for a run.

    Attributes:
        submission: whose run it was.
        outcome: a `verdict.Outcome`, or `error` if the wait itself could not go on.
        events: the run's event as the API sent it, or those of all candidates, oldest first.
        error: why the wait could not go on.
    """

    kind: Literal["run"] = "run"
    submission: Submission
    outcome: Outcome | Literal["error"]
    events: tuple[dict[str, Any], ...] = ()
    error: str | None = None

    def verdict(self) -> Verdict | None:
        """How the wait ended, or None if it could not go on."""
        if self.outcome == "error":
            return None
        return Verdict(self.outcome, tuple(ExecutionEvent.model_validate(event) for event in self.events))


class AgentIdle(_Payload):
    """The end of a wait for an agent to become idle.

    Attributes:
        agent_id: the agent.
        deadline_at: the deadline that the task set itself, so that a second wait does not start a new one.
        error: why the agent is not known to be idle.
        for_good: whether asking again would fail the same way.
    """

    kind: Literal["idle"] = "idle"
    agent_id: str
    deadline_at: AwareDatetime
    error: str | None = None
    for_good: bool = False


def _now() -> datetime:
    return datetime.now(UTC)


class AgentRunTrigger(BaseTrigger):
    """Waits for one run to end and yields one `RunEnded`.

    All triggers of one triggerer and connection share one poll and one HTTP client.

    Args:
        agents_conn_id: the connection; the trigger holds its name, never its key.
        submission: `Submission.to_json()`.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, as ISO 8601 text with an offset. There is one last look at it.
        settle, appear_within, on_ambiguous: as in `ExecuteAgentOperator`.
    """

    def __init__(
        self,
        *,
        agents_conn_id: str,
        submission: dict[str, Any],
        poll_interval: float,
        deadline_at: str,
        settle: float,
        appear_within: float,
        on_ambiguous: str,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow has not annotated it
        self.agents_conn_id = agents_conn_id
        self.submission = submission
        self.poll_interval = poll_interval
        self.deadline_at = deadline_at
        self.settle = settle
        self.appear_within = appear_within
        self.on_ambiguous = on_ambiguous
        self._wait: Wait | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments, JSON types all."""
        return (
            "airflow_provider_agents.triggers.AgentRunTrigger",
            {
                "agents_conn_id": self.agents_conn_id,
                "submission": self.submission,
                "poll_interval": self.poll_interval,
                "deadline_at": self.deadline_at,
                "settle": self.settle,
                "appear_within": self.appear_within,
                "on_ambiguous": self.on_ambiguous,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        submission = Submission.from_json(self.submission)
        wait = self._wait = Wait(
            submission,
            Rules(settle=self.settle, appear_within=self.appear_within, on_ambiguous=self.on_ambiguous),
        )
        try:
            async with feed_of(self.agents_conn_id) as feed:
                verdict = await wait_for_end(
                    feed,
                    wait,
                    poll_interval=self.poll_interval,
                    deadline_at=datetime.fromisoformat(self.deadline_at),
                    say=self.log.log,
                )
        except (PermanentError, InvalidConnectionError) as error:
            self.log.error("The wait for the run of %s cannot go on: %s", submission.name, error)  # noqa: TRY400
            ended = RunEnded(submission=submission, outcome="error", error=str(error))
        else:
            ended = RunEnded(
                submission=submission,
                outcome=verdict.outcome,
                events=tuple(event.to_json() for event in verdict.events),
            )
        yield TriggerEvent(ended.to_json())

    async def on_kill(self) -> None:
        """Say that the run goes on. No I/O: Airflow cancels this after about a second."""
        # Airflow also calls this when it hands the trigger to another triggerer, so the words must hold then too.
        self.log.warning(
            "This triggerer no longer waits for the run of %s, which cannot be cancelled and goes on. If the task was "
            "cleared or is retried, it takes the same run up again (Airflow 3.3 and later); if the trigger was only "
            "moved, another triggerer waits.",
            (self._wait or Submission.from_json(self.submission)).name,
        )


class AgentIdleTrigger(BaseTrigger):
    """Waits until no run of an agent is active and yields one `AgentIdle`.

    Args:
        agents_conn_id: the connection.
        agent_id: the agent.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, as ISO 8601 text with an offset.
    """

    def __init__(self, *, agents_conn_id: str, agent_id: str, poll_interval: float, deadline_at: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow has not annotated it
        self.agents_conn_id = agents_conn_id
        self.agent_id = agent_id
        self.poll_interval = poll_interval
        self.deadline_at = deadline_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments, JSON types all."""
        return (
            "airflow_provider_agents.triggers.AgentIdleTrigger",
            {
                "agents_conn_id": self.agents_conn_id,
                "agent_id": self.agent_id,
                "poll_interval": self.poll_interval,
                "deadline_at": self.deadline_at,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        deadline_at = datetime.fromisoformat(self.deadline_at)
        error: AgentsError | None = None
        try:
            async with feed_of(self.agents_conn_id) as feed:
                await wait_until_idle(
                    feed,
                    self.agent_id,
                    poll_interval=self.poll_interval,
                    deadline_at=deadline_at,
                    now=_now,
                    say=self.log.log,
                )
        except (PermanentError, InvalidConnectionError, TemporaryError, StillBusyError) as failure:
            error = failure
        yield TriggerEvent(
            AgentIdle(
                agent_id=self.agent_id,
                deadline_at=deadline_at,
                error=str(error) if error is not None else None,
                for_good=isinstance(error, PermanentError | InvalidConnectionError),
            ).to_json()
        )
