"""The triggers of tasks: waiting in the triggerer, for a run to end or for an agent to become idle.

They only read. Airflow may run a trigger twice, move it to another triggerer, or start it again after a crash, so
nothing here starts a run or writes the task's state. The class paths are stored in users' databases: they are public.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_agents import validation
from airflow_provider_agents.api.errors import (
    AgentBusyError,
    AgentsError,
    InvalidArgumentError,
    InvalidConnectionError,
    PermanentError,
    TemporaryError,
)
from airflow_provider_agents.clock import now
from airflow_provider_agents.hooks import poller_of
from airflow_provider_agents.payloads import EARLY_KEYS, END_KEYS, AgentIdle, RunEnded
from airflow_provider_agents.polling.idle import wait_until_idle
from airflow_provider_agents.polling.waits import find_run, wait_for_end
from airflow_provider_agents.runs import selector as selectors
from airflow_provider_agents.runs.outcome import Outcome, candidate_event_ids, describe_completed, format_ids, own_event
from airflow_provider_agents.runs.status import usage_of
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.runs.tracker import ON_AMBIGUOUS
from airflow_provider_agents.triggerer_writes import EarlyXComs, end_copy_soon, link_to, write_soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.payloads import XComKey
    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.selector import AnySelector
    from airflow_provider_agents.runs.tracker import OnAmbiguous, WaitPolicy


def _give_up(trigger: Any) -> str | None:
    return "Give deadline_at or timeout." if trigger.deadline_at is None and trigger.timeout is None else None


RUN_ARGUMENTS = validation.Arguments(
    {
        "agents_conn_id": validation.connection_id,
        "agent_id": validation.optional(validation.agent_id),
        **{name: validation.optional(check) for name, check in selectors.ARGUMENTS.items()},
        "poll_interval": validation.seconds,
        "deadline_at": validation.optional(validation.deadline),
        "timeout": validation.optional(validation.seconds),
        **validation.PLATFORM,
        "on_ambiguous": validation.one_of(*ON_AMBIGUOUS),
        "end_with": validation.optional(validation.list_of(*END_KEYS)),
        "show": validation.list_of(*EARLY_KEYS),
        "copy_key": validation.optional(validation.copy_key),
        "next_try": validation.optional(validation.text),
    },
    relations=(_give_up,),
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
_RENDERED = ("agents_conn_id", "agent_id", *selectors.ARGUMENTS)


class _TaskTrigger(BaseTrigger):
    """A trigger whose stored arguments are those of a table."""

    _path: ClassVar[str]
    _table: ClassVar[validation.Arguments]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments that have a value, JSON types all."""
        values = {name: getattr(self, name) for name in self._table.checks}
        return self._path, {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
            if value is not None
        }


class AgentRunTrigger(_TaskTrigger):
    """Waits for one run to end and yields one `RunEnded`.

    All triggers of one triggerer and connection share one poll and one HTTP client.

    Args:
        agents_conn_id: the connection; the trigger holds its name, never its key.
        agent_id: the agent; None with a `submission`, which names it.
        poll_interval: seconds between two polls.
        deadline_at: when to give up, as ISO 8601 text with an offset. There is one last poll then. None for `timeout`
            seconds after the task began.
        timeout: seconds.
        settle: as in `ExecuteAgentOperator`. A worker has given this and the next two as they are. Where no worker has,
            the trigger reads the connection.
        appear_within: the same.
        exclusive: the same.
        on_ambiguous: the same.
        end_with: if the run COMPLETED, end the task here with these of the XComs `return_value`, `event_id`, `usage`
            and `run_url` (Airflow 3.3 and later). None resumes it on a worker, as every other end does.
        show: of the XComs `event_id` and `run_url`, what to push as soon as the run's event is known, if it is not
            over then.
        copy_key: the Variable with the copy of the task's record, to change where the task ends here (Airflow 3.3 and
            later); None if there is none.
        next_try: what a new try does about the run, to be logged if the trigger is killed; None for a task that has
            started no run.
        selecting: what selects the run, by the names of `AgentRunSensor`: an operator's run by its `submission`.
    """

    _path = "airflow_provider_agents.triggers.AgentRunTrigger"
    _table = RUN_ARGUMENTS

    def __init__(
        self,
        *,
        agents_conn_id: str,
        agent_id: str | None = None,
        poll_interval: float,
        deadline_at: str | None = None,
        timeout: float | None = None,
        settle: float | None = None,
        appear_within: float | None = None,
        exclusive: bool | None = None,
        on_ambiguous: OnAmbiguous,
        end_with: Sequence[XComKey] | None = None,
        show: Sequence[XComKey] = (),
        copy_key: str | None = None,
        next_try: str | None = None,
        **selecting: Any,
    ) -> None:
        super().__init__()
        self.agents_conn_id = agents_conn_id
        self.agent_id = agent_id
        self.poll_interval = poll_interval
        self.deadline_at = deadline_at
        self.timeout: Any = timeout
        self.settle = settle
        self.appear_within = appear_within
        self.exclusive = exclusive
        self.on_ambiguous = on_ambiguous
        self.end_with = end_with
        self.show: Any = show
        self.copy_key = copy_key
        self.next_try = next_try
        # As attributes, since Airflow renders those.
        for name in selectors.ARGUMENTS:
            setattr(self, name, selecting.pop(name, None))
        if selecting:
            raise InvalidArgumentError(f"{', '.join(selecting)}: AgentRunTrigger has no such argument. Leave it out.")
        self._selecting = [name for name in selectors.ARGUMENTS if getattr(self, name) is not None]
        self._known_event: ExecutionEvent | None = None
        self._unchecked = RUN_ARGUMENTS.check(self, parsing=True, templated=_RENDERED)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        submission: Submission | None = None
        early_xcoms = EarlyXComs(self, self.show)
        try:
            if self._unchecked:
                # Templates are rendered by now, so this is the earliest that they can be read.
                RUN_ARGUMENTS.check(self)
            selector = selectors.select(self.agent_id, {name: getattr(self, name) for name in self._selecting})
            submission = selector.known(now()) or Submission(agent_id=selector.agent_id, taken_at=now())
            async with poller_of(self.agents_conn_id) as poller:

                def on_known(event: ExecutionEvent) -> None:
                    self._known_event = event
                    early_xcoms.publish(poller, selector.agent_id, event)

                # A worker has asked before it deferred the task. Without a worker, the first refusal is believed.
                answered, deadline_at = self.deadline_at is not None, self._deadline()
                tracker, verdict = await find_run(
                    poller,
                    selector,
                    await self._policy(poller, selector),
                    poll_interval=self.poll_interval,
                    deadline_at=deadline_at,
                    say=self.log.log,
                    answered=answered,
                )
                submission = tracker.submission
                if verdict is None:
                    verdict = await wait_for_end(
                        poller,
                        tracker,
                        poll_interval=self.poll_interval,
                        deadline_at=deadline_at,
                        say=self.log.log,
                        on_known=on_known,
                        answered=answered or bool(tracker.events),
                    )
                own = own_event(verdict, submission)
                link = link_to(poller, submission.agent_id, own.id if own is not None else None)
        except (PermanentError, InvalidConnectionError, InvalidArgumentError, TemporaryError) as error:
            submission = submission or Submission(agent_id="unknown", taken_at=now())
            self.log.error("The wait for the run has failed: %s %s", error, format_ids(submission))  # noqa: TRY400
            yield TriggerEvent(
                RunEnded(
                    agents_conn_id=self.agents_conn_id,
                    submission=submission,
                    outcome="error",
                    error=str(error),
                    for_good=not error.is_retryable,
                ).to_json()
            )
            return
        finally:
            early_xcoms.stop()
        yield self._end(selector, submission, verdict, link)

    async def _policy(self, poller: SharedPoller, selector: AnySelector) -> WaitPolicy:
        settings = None
        if None in (self.settle, self.appear_within, self.exclusive):
            settings = await poller.read_settings(
                interval=self.poll_interval, deadline_at=self._deadline(), say=self.log.log
            )
        return validation.policy_of(self, settings, needs_verdict=not selector.has_appeared)

    def _end(self, selector: AnySelector, submission: Submission, verdict: Verdict, link: str | None) -> TriggerEvent:
        """What to report of a run's end: to a worker, or, if the trigger ends the task itself, to Airflow."""
        event = verdict.event
        # `dag.test()` gives a trigger no task, and would take the end of the task for a message to it.
        task_instance: Any = getattr(self, "task_instance", None)
        if self.end_with is None or task_instance is None or verdict.outcome != Outcome.COMPLETED or event is None:
            return TriggerEvent(
                RunEnded(
                    agents_conn_id=self.agents_conn_id,
                    submission=submission,
                    # A submission is in the payload already.
                    selector=selector if submission != selector.known(submission.taken_at) else None,
                    outcome=verdict.outcome,
                    events=tuple(event.to_json() for event in verdict.events),
                    late=verdict.late,
                    is_shared=verdict.is_shared,
                    error=verdict.failure,
                ).to_json()
            )
        # Airflow before 3.3 knows no such event; no task of ours asks for it there.
        from airflow.triggers.base import TaskSuccessEvent

        self.log.info("%s The task ends here, without a worker.", describe_completed(verdict, submission))
        if self.copy_key is not None:
            write_soon(end_copy_soon(self.copy_key, event.id, self.log))
        own = own_event(verdict, submission)
        xcoms: dict[XComKey, Any] = {
            "return_value": event.to_json(),
            "event_id": own.id if own is not None else None,
            "candidate_event_ids": candidate_event_ids(verdict, submission),
            "usage": usage_of(own, try_number=task_instance.try_number) if own is not None else None,
            "run_url": link,
        }
        return TaskSuccessEvent(xcoms={key: xcoms[key] for key in self.end_with if xcoms[key] is not None})

    def _deadline(self) -> datetime:
        if self.deadline_at is not None:
            return datetime.fromisoformat(self.deadline_at)
        # When the task was deferred: a triggerer that starts again must not start the time again.
        began = getattr(getattr(self, "task_instance", None), "start_date", None)
        return (began if isinstance(began, datetime) else now()) + timedelta(seconds=self.timeout)

    async def on_kill(self) -> None:
        """Log that the run is still running. No I/O: Airflow cancels this after about a second."""
        if self.next_try is None:
            return
        submission = Submission.from_json(getattr(self, "submission", None))
        # Airflow also calls this when it hands the trigger to another triggerer, so the words must hold then too.
        self.log.warning(
            "This triggerer no longer waits for the run. The run cannot be cancelled and is still running. If the "
            "trigger was only moved, another triggerer waits. %s %s",
            self.next_try,
            format_ids(submission, (self._known_event,) if self._known_event is not None else ()),
        )


class AgentIdleTrigger(_TaskTrigger):
    """Waits until no run of an agent is active and yields one `AgentIdle`.

    Of all that wait for an agent over one connection in one triggerer, one at a time is released, first come, first
    served.

    Args:
        agents_conn_id: the connection.
        agent_id: the agent.
        poll_interval: seconds between two polls.
        deadline_at: when to give up, as ISO 8601 text with an offset.
        settle: as in `ExecuteAgentOperator`.
        hold_seconds: for how long no other is released after this one, unless its run is seen.
    """

    _path = "airflow_provider_agents.triggers.AgentIdleTrigger"
    _table = IDLE_ARGUMENTS

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
                    say=self.log.log,
                )
                released_at = now()
        except (PermanentError, InvalidConnectionError, TemporaryError, AgentBusyError) as failure:
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
