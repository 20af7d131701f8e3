"""ExecuteAgentOperator: run an agent, wait for it, hand on its final event."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, assert_never, get_args

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_agents import validation
from airflow_provider_agents.api.endpoints import check_agent_id
from airflow_provider_agents.api.errors import AgentBusyError, AgentsError, TemporaryError
from airflow_provider_agents.budget_check import CheckAgentBudgetOperator, check_budgets
from airflow_provider_agents.busy_agent import IfRunning, apply_if_running
from airflow_provider_agents.clock import now
from airflow_provider_agents.earlier_tries import EarlierTry
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.interruption import Interruption
from airflow_provider_agents.links import AgentRunLink
from airflow_provider_agents.own_xcoms import TaskOutput, keys_at_end, keys_of_event, push, push_again, push_event
from airflow_provider_agents.payloads import AgentIdle, RunEnded
from airflow_provider_agents.polling.blocking import wait_for_end
from airflow_provider_agents.runs.outcome import (
    Outcome,
    Verdict,
    candidate_event_ids,
    describe_completed,
    format_ids,
    own_event,
    to_error,
)
from airflow_provider_agents.runs.record import Phase
from airflow_provider_agents.runs.status import usage_of
from airflow_provider_agents.runs.submission import Submission, submit
from airflow_provider_agents.runs.tracker import ON_AMBIGUOUS, RunTracker
from airflow_provider_agents.shared_starts import log_advice, sync_reader
from airflow_provider_agents.task_state import TaskStateRecord
from airflow_provider_agents.tasks import (
    WAITS_IN_TRIGGERER,
    LineageInfo,
    ReportsRun,
    base_url_of,
    began_at,
    connect,
    deadline_of,
    defer_timeout,
    fail_without_retry,
    keep_deferred_arguments,
    start_window,
    warn_of_schedule,
    words_of_limit,
)
from airflow_provider_agents.triggers import AgentRunTrigger
from airflow_provider_agents.version_compat import NEXT_TRY_WAITS, TRIGGERS_END_TASKS

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.budget import Budget
    from airflow_provider_agents.runs.tracker import OnAmbiguous, WaitPolicy

__all__ = ["CheckAgentBudgetOperator", "ExecuteAgentOperator"]


ARGUMENTS = validation.Arguments(
    {
        "agent_id": validation.agent_id,
        "agents_conn_id": validation.connection_id,
        "wait_for_completion": validation.switch,
        "deferrable": validation.switch,
        "poll_interval": validation.seconds,
        "timeout": validation.seconds,
        "if_running": validation.one_of(*get_args(IfRunning)),
        "on_ambiguous": validation.one_of(*ON_AMBIGUOUS),
        **validation.PLATFORM,
        "durable": validation.switch,
        "end_from_trigger": validation.switch,
        "budget": validation.budget,
    },
    relations=(validation.lost_after_settling, validation.verdict_after_settling, validation.ends_where_it_waits),
)

_KILLED = "The task was killed. Its run cannot be cancelled and is still running, if it was started."
_NEXT_TRY_STARTS = "A new run starts if the task is retried or cleared."


class ExecuteAgentOperator(ReportsRun, BaseOperator):
    """Start one run of an agent, wait until it is over, and return its final event.

    The task succeeds only if the run that it started COMPLETED. A retry resumes the run that is under way rather
    than paying for another one (Airflow 3.3 and later); it starts a new run if the first one failed.

    XComs: `return_value` is the final event as the API sent it (or the submission, with
    `wait_for_completion=False`); `request_id` as soon as the run is accepted; `event_id` and `run_url` once known;
    `usage` at the end, also of a failed run.

    Args:
        agent_id: the agent. Templated.
        agents_conn_id: the connection. Templated.
        wait_for_completion: False returns the submission at once; hand it to whatever waits later.
        deferrable: wait in the triggerer (the default), or on the worker.
        poll_interval: seconds between two polls, above 0. Below 1 a triggerer gains nothing.
        timeout: seconds, or a `timedelta`, after which the task fails; the run goes on. A retry has a fresh timeout.
        if_running: what to do if the agent is busy, asked before anything is started: `start` another run, `attach`
            to the one under way, `wait` until the agent is idle, `skip` the task, or `fail` it.
        on_ambiguous: what to do if several runs could be the task's own. `share`: where tasks of yours
            have started all these runs, each task gets one of them. Where another party's run may be among them, the
            task succeeds if its own run COMPLETED for certain, fails if all these runs failed, and else fails without
            retries. `all`: all these runs must end alike. `fail`: the task fails without retries, also where one run
            could be the task's but the response to its POST was lost.
        settle: seconds after which the event of an accepted run has appeared. Until then nothing is inferred, so a
            smaller value ends short runs sooner, and a value below what the platform needs can confuse runs. None: the
            connection's value, or else 30.
        appear_within: seconds after which a run without an event counts as lost; at least `settle`. None: the
            connection's value, or else 300.
        exclusive: nothing else starts the agent while the task waits: no schedule of the platform, no person, no other
            task. The first new event is then the task's run, and a short run need not settle. None: the connection's
            value, or else False.
        durable: keep a record in the task state store (Airflow 3.3 and later), so that no retry pays twice.
        end_from_trigger: let the trigger end the task of a COMPLETED run, so that no worker starts a second time for
            it (Airflow 3.3 and later). The task's listeners, a custom XCom backend and a downstream `.expand()` over
            its result see nothing of it.
        budget: what runs may use before the task starts another one, asked just before the start. The connection's
            budget is asked as well. None: only that one.

    Raises:
        InvalidArgumentError: an argument cannot be used (when the DAG is parsed, as far as it is known then).
        AgentRunFailedError: the run failed. A retry starts a new one.
        AgentRunTimeoutError: the run was not over in time. A retry waits for the same run.
        AgentRunNotFoundError: no event of the run has appeared.
        AgentBusyError: with `if_running="fail"`; with `"wait"`, if the agent is still busy at the deadline.
        AirflowFailException: what no retry can fix; its `__cause__` is the typed error.
        TemporaryError: the API could not be used, after repetitions.
    """

    template_fields = ("agent_id", "agents_conn_id")
    operator_extra_links = (AgentRunLink(),)
    ui_color = "#e6e0f8"

    def __init__(
        self,
        *,
        agent_id: str,
        agents_conn_id: str = AgentsHook.default_conn_name,
        wait_for_completion: bool = True,
        deferrable: bool = True,
        poll_interval: float = 5.0,
        timeout: float | timedelta = 86400.0,
        if_running: IfRunning = "start",
        on_ambiguous: OnAmbiguous = "share",
        settle: float | None = None,
        appear_within: float | None = None,
        exclusive: bool | None = None,
        durable: bool = True,
        end_from_trigger: bool = False,
        budget: Budget | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.agent_id = agent_id
        self.agents_conn_id = agents_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval: float = validation.in_seconds(poll_interval)
        self.timeout: Any = validation.in_seconds(timeout)
        self.if_running = if_running
        self.on_ambiguous = on_ambiguous
        self.settle = validation.in_seconds(settle)
        self.appear_within = validation.in_seconds(appear_within)
        self.exclusive = exclusive
        self.durable = durable
        self.end_from_trigger = end_from_trigger
        self.budget = budget
        if not validation.made_from_mapped(self):
            ARGUMENTS.check(self, parsing=True)
            if self.end_from_trigger:
                validation.refuse_trigger_end(self, "end_from_trigger", overridden=("execute_complete",))
        self._interruption = Interruption()
        self._under_way: Submission | RunTracker | None = None
        self._began_at = now()
        #: What `AgentRunLink` reads.
        self.run_link: str | None = None

    # --- a try, from its start ---

    @fail_without_retry
    def execute(self, context: Context) -> dict[str, Any]:
        """Resume the run of an earlier try, or start one. Then wait for its end."""
        with self._interruption.running(self._log_kill):
            ARGUMENTS.check(self)
            return self._run(context)

    @fail_without_retry
    def start_when_idle(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Resume after `if_running="wait"`: the agent was idle a moment ago.

        Args:
            context: Airflow's.
            event: `AgentIdle.to_json()`.
        """
        with self._interruption.running(self._log_kill):
            idle = AgentIdle.from_json(event)
            keep_deferred_arguments(self, idle.agent_id, idle.agents_conn_id)
            if idle.error is not None and idle.for_good:
                raise AirflowFailException(idle.error)
            if idle.error is not None:
                raise AgentBusyError(idle.error)
            return self._run(context, idle)

    def _run(self, context: Context, idle: AgentIdle | None = None) -> dict[str, Any]:
        agent_id = check_agent_id(self.agent_id)
        self.run_link = ""  # nothing of an earlier try
        self._began_at = began_at(context)
        task_state = TaskStateRecord(self, context)
        hook = connect(self.agents_conn_id, self.log.warning)
        self._known = LineageInfo(base_url=base_url_of(hook))
        # Before anything is paid for.
        policy = validation.policy_of(self, hook.settings(), needs_verdict=self.wait_for_completion)
        task_state.wait_as(policy)
        with hook.get_conn(window=start_window(self.log.warning)) as client:
            submission = None
            record = task_state.load(agent_id)
            if record is not None:
                earlier = EarlierTry(
                    task=self,
                    record=record,
                    task_state=task_state,
                    client=client,
                    policy=policy,
                    began_at=self._began_at,
                    request_seconds=hook.settings().whole_request_seconds,
                )
                left = earlier.resume_previous()
                if isinstance(left, dict):
                    verdict = earlier.verdict()
                    self._known = replace(self._known, submission=record.submission, verdict=verdict)
                    push_again(self, context, record, verdict, hook)
                    return left
                submission = left
            if submission is None:
                submission = apply_if_running(self, client, idle, settle=policy.settle, began_at=self._began_at)
            if submission is None:
                submission = self._submit(agent_id, policy, task_state, client)
            task_state.save(Phase.ACCEPTED, submission)
            self._under_way = submission
            self._known = replace(self._known, submission=submission)
            if submission.event_id is None:  # else the task waits for a run that another party has started
                self.log.info("The run was accepted. %s", format_ids(submission))
            push(self, context, "request_id", submission.request_id)
            push_event(self, context, submission.event_id, hook)
            if not self.wait_for_completion:
                task_state.save(Phase.ENDED, submission, outcome="submitted", result=submission.to_json())
                return submission.to_json()
            if self.deferrable:
                self._defer_until_end(submission, policy, task_state)
            self._under_way = tracker = RunTracker(submission, policy)
        with hook.get_conn() as client:
            verdict = wait_for_end(
                client,
                tracker,
                poll_interval=self.poll_interval,
                deadline_at=deadline_of(self, self._began_at),
                say=self.log.log,
                on_known=lambda event: push_event(self, context, event.id, hook),
                read_starts=sync_reader(self.agents_conn_id),
            )
        self._known = replace(self._known, verdict=verdict)
        return self._end(context, submission, verdict, task_state, hook)

    def _submit(self, agent_id: str, policy: WaitPolicy, task_state: TaskStateRecord, client: Client) -> Submission:
        check_budgets(self, client)
        task_state.warn_if_forgetful()
        if policy.exclusive:
            warn_of_schedule(client, agent_id, self.log.warning)
        sent = False

        def save(intent: Submission) -> None:
            nonlocal sent
            task_state.save(Phase.SUBMITTING, intent)
            sent = intent.sent_at is not None
            self._under_way = intent if sent else None

        try:
            return client.run_flow(submit(agent_id, settle=policy.settle, save=save, say=self.log.warning))
        except AgentsError:
            if sent:
                self.log.warning(
                    "It is not known whether a run of agent %s was started. %s",
                    agent_id,
                    task_state.next_try_after_loss,
                )
            raise

    def _defer_until_end(self, submission: Submission, policy: WaitPolicy, task_state: TaskStateRecord) -> NoReturn:
        deadline_at = deadline_of(self, self._began_at)
        ends_in_trigger = self.end_from_trigger and TRIGGERS_END_TASKS
        lost = validation.lost_at_trigger_end(self, overridden=("execute_complete",))
        if ends_in_trigger and lost is not None:
            # It came after the task was made, so nobody could refuse it then.
            self.log.warning("A worker ends this task, not its trigger, which would lose %s.", lost)
            ends_in_trigger = False
        task_state.save(Phase.DEFERRED, submission, ends_in_trigger=ends_in_trigger, deadline_at=deadline_at)
        self.log.info("%s %s", WAITS_IN_TRIGGERER.format("for the run", deadline_at), format_ids(submission))
        self.defer(
            trigger=AgentRunTrigger(
                agents_conn_id=self.agents_conn_id,
                submission=submission.to_json(),
                poll_interval=self.poll_interval,
                deadline_at=deadline_at.isoformat(),
                settle=policy.settle,
                appear_within=policy.appear_within,
                exclusive=policy.exclusive,
                on_ambiguous=self.on_ambiguous,
                end_with=keys_at_end(self) if ends_in_trigger else None,
                show=keys_of_event(self, submission) if task_state.is_kept else [],
                copy_key=task_state.copy_key(submission) if ends_in_trigger else None,
                next_try=task_state.next_try_while_running,
            ),
            method_name="execute_complete",
            # The resume methods take what those of other providers take, so that a subclass can override them.
            kwargs={},
            timeout=defer_timeout(deadline_at, poll_interval=self.poll_interval),
        )
        raise AssertionError("unreachable: defer raises")

    # --- the end ---

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume on a worker, by any method: the trigger has not ended the task, and the record must not say so.

        Airflow also resumes a task on a worker to fail it: its trigger has raised, or the deferral has timed out.
        """
        TaskStateRecord(self, context).record_resumed(next_method)
        return super().resume_execution(next_method, next_kwargs, context)

    @fail_without_retry
    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Resume when the trigger has seen the end.

        Args:
            context: Airflow's.
            event: `RunEnded.to_json()`.
        """
        with self._interruption.running(self._log_kill):
            ended = RunEnded.from_json(event)
            task_state = TaskStateRecord(self, context)
            task_state.refuse_another_run(ended.submission, ended.agents_conn_id)
            keep_deferred_arguments(self, ended.submission.agent_id, ended.agents_conn_id)
            verdict = ended.verdict()
            hook = AgentsHook(self.agents_conn_id)
            self._known = LineageInfo(submission=ended.submission, verdict=verdict, base_url=base_url_of(hook))
            if verdict is None:
                task_state.save(Phase.ACCEPTED, ended.submission)
                raise (AirflowFailException if ended.for_good else TemporaryError)(
                    f"The wait for the run has failed: {ended.error} The run is still running and cannot be cancelled. "
                    f"{task_state.next_try_while_running} {format_ids(ended.submission)}"
                )
            return self._end(context, ended.submission, verdict, task_state, hook)

    def _end(
        self, context: Context, submission: Submission, verdict: Verdict, task_state: TaskStateRecord, hook: AgentsHook
    ) -> dict[str, Any]:
        event = verdict.event
        own = own_event(verdict, submission)
        if own is not None:
            push_event(self, context, own.id, hook)
            push(self, context, "usage", usage_of(own, try_number=context["ti"].try_number))
        candidates = candidate_event_ids(verdict, submission)
        push(self, context, "candidate_event_ids", candidates)
        match verdict.outcome:
            case Outcome.COMPLETED if event is not None:
                result = event.to_json()
                task_state.save(
                    Phase.ENDED,
                    submission,
                    outcome=verdict.outcome,
                    result=result,
                    is_own=own is not None,
                    candidate_event_ids=tuple(candidates or ()),
                    given_event_id=event.id,
                )
                level = logging.INFO if len(verdict.events) == 1 else logging.WARNING
                self.log.log(level, "%s", describe_completed(verdict, submission))
                return result
            case Outcome.COMPLETED:
                raise AssertionError("unreachable: a COMPLETED verdict has an event")
            case Outcome.FAILED:
                given_event_id = event.id if event is not None else None
                task_state.save(Phase.ENDED, submission, outcome=verdict.outcome, given_event_id=given_event_id)
                what_now = _NEXT_TRY_STARTS
            case Outcome.AMBIGUOUS:
                # Another poll would not tell them apart, so a user who clears the task wants a new run.
                task_state.save(Phase.ENDED, submission, outcome=verdict.outcome)
                log_advice(self.log)
                what_now = ""
            case Outcome.NOT_FOUND:
                task_state.save(Phase.ACCEPTED, submission)
                what_now = task_state.next_try_after_loss
            case Outcome.TIMED_OUT:
                task_state.save(Phase.ACCEPTED, submission)
                what_now = words_of_limit(self) + task_state.next_try_while_running
            case _:
                assert_never(verdict.outcome)
        error = to_error(verdict, submission, what_now=what_now)
        raise error or AssertionError("unreachable: a COMPLETED verdict has an event")

    def on_kill(self) -> None:
        """End the wait, not the run, and log that the run is still running. Airflow calls this in a signal handler.

        Raises:
            SystemExit: in a pause or a request that may be repeated. Anything else is finished first.
        """
        if not self._interruption.request():
            self._log_kill()

    def _log_kill(self) -> None:
        run = self._under_way
        if run is not None:
            submission = run.submission if isinstance(run, RunTracker) else run
            events = run.events if isinstance(run, RunTracker) and run.is_known else ()
            next_try = NEXT_TRY_WAITS if self.durable and TRIGGERS_END_TASKS else _NEXT_TRY_STARTS
            self.log.warning("%s %s %s", _KILLED, next_try, format_ids(submission, events))

    @property
    def output(self) -> XComArg:
        """The task's result, for the tasks after it."""
        found = super().output
        return found if self.multiple_outputs else TaskOutput(operator=self, key=found.key)  # type: ignore[attr-defined]

    @property
    def lineage_agent(self) -> object:
        """Whose run it is."""
        return self.agent_id
