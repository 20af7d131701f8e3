"""The triggers of tasks: waiting in the triggerer, for a run to end or for an agent to become idle.

They only read. Airflow may run a trigger twice, move it to another triggerer, or start it again after a crash, so
nothing here starts a run or writes the task's state. The class paths are stored in users' databases: they are public.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_agents import validation
from airflow_provider_agents.api.errors import (
    AgentsError,
    InvalidArgumentError,
    InvalidConnectionError,
    PermanentError,
    TemporaryError,
)
from airflow_provider_agents.clock import now
from airflow_provider_agents.hooks import poller_of
from airflow_provider_agents.links import RUN_URL_KEY
from airflow_provider_agents.payloads import AgentIdle, RunEnded
from airflow_provider_agents.polling.idle import wait_until_idle
from airflow_provider_agents.polling.waits import wait_for_end, wait_for_selected
from airflow_provider_agents.runs.outcome import Outcome, Verdict, describe_completed, format_ids, own_event
from airflow_provider_agents.runs.selector import RunSelector, check_bound
from airflow_provider_agents.runs.status import usage_of
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import ON_AMBIGUOUS, RunTracker, WaitPolicy
from airflow_provider_agents.runs.waiting import StillBusyError
from airflow_provider_agents.triggerer_writes import EarlyXComs, delete_copy, link_to, write_soon
from airflow_provider_agents.version_compat import NEXT_TRY_WAITS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from airflow_provider_agents.polling.poller import SharedPoller


def _link_of(poller: SharedPoller, submission: Submission, verdict: Verdict) -> str | None:
    """The same for a run that is over; None if it cannot be told from others."""
    own = own_event(verdict, submission)
    return link_to(poller, submission.agent_id, own.id if own is not None else None)


def _event_of(
    trigger: AgentRunTrigger | AgentSensorTrigger,
    submission: Submission,
    verdict: Verdict,
    link: str | None,
    interval: str | None = None,
) -> TriggerEvent:
    """What to tell of a run's end: to a worker, or, if the trigger ends the task itself, to Airflow."""
    end_with = trigger.end_with
    event = verdict.event
    # `dag.test()` gives a trigger no task, and would take the end of the task for a message to it.
    task_instance: Any = getattr(trigger, "task_instance", None)
    if end_with is None or task_instance is None or verdict.outcome != Outcome.COMPLETED or event is None:
        events = tuple(event.to_json() for event in verdict.events)
        return TriggerEvent(
            RunEnded(
                agents_conn_id=trigger.agents_conn_id,
                submission=submission,
                outcome=verdict.outcome,
                events=events,
                late=verdict.late,
                error=verdict.failure,
                interval=interval,
            ).to_json()
        )
    # Airflow before 3.3 knows no such event; no task of ours asks for it there.
    from airflow.triggers.base import TaskSuccessEvent

    trigger.log.info("%s The task ends here, without a worker.", describe_completed(verdict, submission))
    if isinstance(trigger, AgentRunTrigger) and trigger.copy_key is not None:
        write_soon(delete_copy(trigger.copy_key, trigger.log))
    own = own_event(verdict, submission)
    xcoms = {
        "return_value": event.to_json(),
        "event_id": own.id if own is not None else None,
        "usage": usage_of(own, try_number=task_instance.try_number) if own is not None else None,
        RUN_URL_KEY: link,
    }
    return TaskSuccessEvent(xcoms={key: xcoms[key] for key in end_with if xcoms[key] is not None})


def _error_event(agents_conn_id: str, submission: Submission, error: AgentsError) -> TriggerEvent:
    """The event of a wait that has ended without a verdict."""
    return TriggerEvent(
        RunEnded(
            agents_conn_id=agents_conn_id,
            submission=submission,
            outcome="error",
            error=str(error),
            for_good=not error.is_retryable,
        ).to_json()
    )


_WAIT_ARGUMENTS: dict[str, validation.Check] = {
    "agents_conn_id": validation.connection_id,
    "poll_interval": validation.seconds,
    "settle": validation.seconds,
    "appear_within": validation.seconds,
    "on_ambiguous": validation.one_of(*ON_AMBIGUOUS),
    "end_with": validation.optional(validation.list_of("return_value", "event_id", "usage", RUN_URL_KEY)),
    "show": validation.list_of("event_id", RUN_URL_KEY),
}
RUN_ARGUMENTS = validation.Arguments(
    {
        **_WAIT_ARGUMENTS,
        "submission": validation.submission,
        "deadline_at": validation.deadline,
        "copy_key": validation.optional(validation.copy_key),
    }
)
SENSOR_ARGUMENTS = validation.Arguments(
    {
        **_WAIT_ARGUMENTS,
        "agent_id": validation.optional(validation.agent_id),
        "submission": validation.optional(validation.submission),
        "event_id": validation.optional(validation.event_id),
        "started_after": validation.optional(validation.deadline),
        "started_before": validation.optional(validation.deadline),
        "deadline_at": validation.optional(validation.deadline),
        "timeout": validation.seconds,
    }
)
IDLE_ARGUMENTS = validation.Arguments(
    {
        "agents_conn_id": validation.connection_id,
        "agent_id": validation.agent_id,
        "poll_interval": validation.seconds,
        "deadline_at": validation.deadline,
        "settle": validation.seconds,
        "hold_seconds": validation.seconds,
    }
)
#: What Airflow renders in the triggerer, if a sensor starts there.
_RENDERED = ("agents_conn_id", "agent_id", "submission", "event_id", "started_after", "started_before")


class AgentRunTrigger(BaseTrigger):
    """Waits for one run to end and yields one `RunEnded`.

    All triggers of one triggerer and connection share one poll and one HTTP client.

    Args:
        agents_conn_id: the connection; the trigger holds its name, never its key.
        submission: `Submission.to_json()`.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, as ISO 8601 text with an offset. There is one last look at it.
        settle: as in `ExecuteAgentOperator`.
        appear_within: the same.
        on_ambiguous: the same.
        end_with: if the run COMPLETED, end the task here with these of the XComs `return_value`, `event_id`, `usage`
            and `run_url` (Airflow 3.3 and later). None resumes it on a worker, as every other end does.
        show: of the XComs `event_id` and `run_url`, what to push as soon as the run's event is known, if it is not
            over then.
        copy_key: the Variable with the copy of the task's record, to delete where the task ends here (Airflow 3.4 and
            later); None if there is none.
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
        end_with: list[str] | None = None,
        show: Sequence[str] = (),
        copy_key: str | None = None,
    ) -> None:
        super().__init__()
        self.agents_conn_id = agents_conn_id
        self.submission = submission
        self.poll_interval = poll_interval
        self.deadline_at = deadline_at
        self.settle = settle
        self.appear_within = appear_within
        self.on_ambiguous = on_ambiguous
        self.end_with = end_with
        self.show: Any = show
        self.copy_key = copy_key
        self._wait: RunTracker | None = None
        RUN_ARGUMENTS.check(self, parsing=True)

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
                "end_with": self.end_with,
                "show": self.show,
                "copy_key": self.copy_key,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        submission = Submission.from_json(self.submission)
        wait = self._wait = RunTracker(
            submission,
            WaitPolicy(settle=self.settle, appear_within=self.appear_within, on_ambiguous=self.on_ambiguous),
            now(),
        )
        early_xcoms = EarlyXComs(self, self.show)
        try:
            async with poller_of(self.agents_conn_id) as poller:
                verdict = await wait_for_end(
                    poller,
                    wait,
                    poll_interval=self.poll_interval,
                    deadline_at=datetime.fromisoformat(self.deadline_at),
                    say=self.log.log,
                    on_known=partial(early_xcoms.publish, poller, submission.agent_id),
                )
                link = _link_of(poller, submission, verdict)
        except (PermanentError, InvalidConnectionError) as error:
            self.log.error("The wait for the run has failed: %s %s", error, format_ids(submission))  # noqa: TRY400
            yield _error_event(self.agents_conn_id, submission, error)
            return
        finally:
            early_xcoms.stop()
        yield _event_of(self, submission, verdict, link)

    async def on_kill(self) -> None:
        """Say that the run goes on. No I/O: Airflow cancels this after about a second."""
        # Airflow also calls this when it hands the trigger to another triggerer, so the words must hold then too.
        wait = self._wait
        submission = wait.submission if wait is not None else Submission.from_json(self.submission)
        events = wait.events if wait is not None and wait.is_known else ()
        self.log.warning(
            "This triggerer no longer waits for the run. The run cannot be cancelled and is still running. If the "
            "trigger was only moved, another triggerer waits. %s With durable=False, a new run starts. %s",
            NEXT_TRY_WAITS,
            format_ids(submission, events),
        )


class AgentSensorTrigger(BaseTrigger):
    """Waits for the run that a sensor names, and yields one `RunEnded`.

    Of `submission`, `event_id` and `started_after` exactly one is set.

    Args:
        agents_conn_id: the connection.
        agent_id: the agent; None with a `submission`, which names it.
        submission: `Submission.to_json()`.
        event_id: the run's event.
        started_after: the agent's first run that began at this moment or later, as ISO 8601 text with an offset.
        started_before: the end of the interval that begins with `started_after`, exclusive; None for no end.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, as ISO 8601 text with an offset; None for `timeout` seconds after the task began.
        timeout: seconds.
        settle: as in `AgentRunSensor`.
        appear_within: the same.
        on_ambiguous: the same.
        end_with: as in `AgentRunTrigger`.
        show: the same.
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings, as of the sensor
        self,
        *,
        agents_conn_id: str,
        agent_id: str | None,
        submission: dict[str, Any] | None,
        event_id: str | None,
        started_after: str | None,
        poll_interval: float,
        deadline_at: str | None,
        timeout: float,
        settle: float,
        appear_within: float,
        on_ambiguous: str,
        end_with: list[str] | None,
        show: Sequence[str] = (),
        started_before: str | None = None,
    ) -> None:
        super().__init__()
        self.agents_conn_id = agents_conn_id
        self.agent_id = agent_id
        self.submission = submission
        self.event_id = event_id
        self.started_after = started_after
        self.started_before = started_before
        self._is_bounded = started_before is not None
        self.poll_interval = poll_interval
        self.deadline_at = deadline_at
        self.timeout = timeout
        self.settle = settle
        self.appear_within = appear_within
        self.on_ambiguous = on_ambiguous
        self.end_with = end_with
        self.show: Any = show
        SENSOR_ARGUMENTS.check(self, parsing=True, templated=_RENDERED)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments, JSON types all."""
        return (
            "airflow_provider_agents.triggers.AgentSensorTrigger",
            {
                "agents_conn_id": self.agents_conn_id,
                "agent_id": self.agent_id,
                "submission": self.submission,
                "event_id": self.event_id,
                "started_after": self.started_after,
                "started_before": self.started_before,
                "poll_interval": self.poll_interval,
                "deadline_at": self.deadline_at,
                "timeout": self.timeout,
                "settle": self.settle,
                "appear_within": self.appear_within,
                "on_ambiguous": self.on_ambiguous,
                "end_with": self.end_with,
                "show": self.show,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        unknown = Submission(agent_id=str(self.agent_id or "unknown"), taken_at=now())
        early_xcoms = EarlyXComs(self, self.show)
        try:
            # Templates are rendered by now, so this is the earliest that they can be read.
            SENSOR_ARGUMENTS.check(self)
            check_bound(self.started_before, was_given=self._is_bounded)
            selector = RunSelector.of(
                agent_id=self.agent_id,
                submission=self.submission,
                event_id=self.event_id,
                started_after=self.started_after,
                started_before=self.started_before,
            )
            unknown = Submission(agent_id=selector.agent_id, taken_at=now())
            policy = WaitPolicy(settle=self.settle, appear_within=self.appear_within, on_ambiguous=self.on_ambiguous)
            async with poller_of(self.agents_conn_id) as poller:
                submission, verdict = await wait_for_selected(
                    poller,
                    selector,
                    policy,
                    poll_interval=self.poll_interval,
                    deadline_at=self._deadline(),
                    now=now,
                    say=self.log.log,
                    on_known=partial(early_xcoms.publish, poller, selector.agent_id),
                    # A worker has looked before it deferred the task. Without a worker, the first refusal is believed.
                    answered=self.deadline_at is not None,
                )
                link = _link_of(poller, submission, verdict)
        except (PermanentError, InvalidConnectionError, InvalidArgumentError) as error:
            self.log.error("The wait cannot go on: %s", error)  # noqa: TRY400 - its traceback would say no more
            yield _error_event(self.agents_conn_id, unknown, error)
            return
        finally:
            early_xcoms.stop()
        yield _event_of(self, submission, verdict, link, selector.interval)

    def _deadline(self) -> datetime:
        if self.deadline_at is not None:
            return datetime.fromisoformat(self.deadline_at)
        # When the task was deferred: a triggerer that starts again must not start the time again.
        began = getattr(getattr(self, "task_instance", None), "start_date", None)
        return (began if isinstance(began, datetime) else now()) + timedelta(seconds=self.timeout)


class AgentIdleTrigger(BaseTrigger):
    """Waits until no run of an agent is active and yields one `AgentIdle`.

    Of all that wait for an agent over one connection in one triggerer, one at a time is released, first come, first
    served.

    Args:
        agents_conn_id: the connection.
        agent_id: the agent.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, as ISO 8601 text with an offset.
        settle: as in `ExecuteAgentOperator`.
        hold_seconds: for how long no other is released after this one, unless its run is seen.
    """

    def __init__(
        self,
        *,
        agents_conn_id: str,
        agent_id: str,
        poll_interval: float,
        deadline_at: str,
        settle: float,
        hold_seconds: float,
    ) -> None:
        super().__init__()
        self.agents_conn_id = agents_conn_id
        self.agent_id = agent_id
        self.poll_interval = poll_interval
        self.deadline_at = deadline_at
        self.settle = settle
        self.hold_seconds = hold_seconds
        IDLE_ARGUMENTS.check(self, parsing=True)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments, JSON types all."""
        return (
            "airflow_provider_agents.triggers.AgentIdleTrigger",
            {
                "agents_conn_id": self.agents_conn_id,
                "agent_id": self.agent_id,
                "poll_interval": self.poll_interval,
                "deadline_at": self.deadline_at,
                "settle": self.settle,
                "hold_seconds": self.hold_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        deadline_at = datetime.fromisoformat(self.deadline_at)
        error: AgentsError | None = None
        released_at: datetime | None = None
        try:
            async with poller_of(self.agents_conn_id) as poller:
                await wait_until_idle(
                    poller,
                    self.agent_id,
                    poll_interval=self.poll_interval,
                    deadline_at=deadline_at,
                    settle=self.settle,
                    hold_seconds=self.hold_seconds,
                    now=now,
                    say=self.log.log,
                )
                released_at = now()
        except (PermanentError, InvalidConnectionError, TemporaryError, StillBusyError) as failure:
            error = failure
        yield TriggerEvent(
            AgentIdle(
                agents_conn_id=self.agents_conn_id,
                agent_id=self.agent_id,
                deadline_at=deadline_at,
                released_at=released_at,
                hold_seconds=self.hold_seconds,
                error=str(error) if error is not None else None,
                for_good=error is not None and not error.is_retryable,
            ).to_json()
        )
