"""AgentRunSensor: wait for a run that something else has started."""

from __future__ import annotations

import functools
import logging
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    PokeReturnValue,
)
from airflow.triggers.base import StartTriggerArgs

from airflow_provider_agents import validation
from airflow_provider_agents.api.errors import (
    AgentRunTimeoutError,
    AgentsError,
    AmbiguousAgentRunError,
    InvalidArgumentError,
    TemporaryError,
)
from airflow_provider_agents.api.retry import retry_after_of
from airflow_provider_agents.api.rows import WarnOnce
from airflow_provider_agents.clock import now, sleep
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.interruption import Interruption, interruptible, uninterruptible
from airflow_provider_agents.links import AgentRunLink
from airflow_provider_agents.own_xcoms import keys_at_end, log_run_url
from airflow_provider_agents.payloads import RunEnded
from airflow_provider_agents.polling.progress import in_words
from airflow_provider_agents.polling.single_polls import SinglePolls
from airflow_provider_agents.runs import selector as selectors
from airflow_provider_agents.runs.outcome import Verdict, describe_completed, own_event
from airflow_provider_agents.runs.patience import Patience, is_refusal
from airflow_provider_agents.runs.tracker import ON_AMBIGUOUS
from airflow_provider_agents.shared_starts import log_advice, sync_reader
from airflow_provider_agents.soft_fail import SoftFail
from airflow_provider_agents.tasks import (
    DEFER_MARGIN_SECONDS,
    WAITS_IN_TRIGGERER,
    LineageInfo,
    ReportsRun,
    base_url_of,
    began_at,
    connect,
    non_retryable_failure,
)
from airflow_provider_agents.triggers import AgentRunTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_agents.runs.selector import RunSelector
    from airflow_provider_agents.runs.submission import Submission
    from airflow_provider_agents.runs.tracker import OnAmbiguous, WaitPolicy

#: Seconds between two polls of one process after a refusal, with `mode="reschedule"`: twenty in the five minutes.
_REFUSED_POKE_SECONDS = 15.0
#: Without the server's clock, one process waits until the run has settled, and then until its siblings have.
_SETTLINGS = 2


def _selects_one_run(sensor: AgentRunSensor) -> str | None:
    """The arguments select one run, and all of them fit together, as far as they are known."""
    given = sensor.selecting
    try:
        kind = selectors.selector_class(given)
        if sensor.agent_id is None and not kind.names_agent:
            return "agent_id is missing. Only a submission names its agent itself."
        if not any(map(validation.known_later, (sensor.agent_id, *given.values()))):
            selectors.select(sensor.agent_id, given)
    except InvalidArgumentError as error:
        return str(error)
    return None


def _skips_by_one_argument(sensor: Any) -> str | None:
    return (
        "soft_fail and never_fail exclude each other. Leave one out."
        if sensor.soft_fail and sensor.never_fail
        else None
    )


def _decides_after_settling(sensor: AgentRunSensor) -> str | None:
    """The run of an event that has appeared is decided at once."""
    return None if selectors.selector_class(sensor.selecting).has_appeared else validation.ends_after_settling(sensor)


ARGUMENTS = validation.Arguments(
    {
        "agent_id": validation.optional(validation.agent_id),
        **{name: validation.optional(check) for name, check in selectors.ARGUMENTS.items()},
        "agents_conn_id": validation.connection_id,
        "deferrable": validation.switch,
        "mode": validation.one_of("poke", "reschedule"),
        "poke_interval": validation.seconds,
        "timeout": validation.seconds,
        "soft_fail": validation.switch,
        "never_fail": validation.switch,
        **validation.PLATFORM,
        "on_ambiguous": validation.one_of(*ON_AMBIGUOUS),
    },
    relations=(_selects_one_run, _skips_by_one_argument, validation.lost_after_settling, _decides_after_settling),
)


class AgentRunSensor(ReportsRun, BaseSensorOperator):
    """Wait for one run that something else has started, and return its final event.

    The run is named by exactly one of `submission`, `event_id` and `started_after`. The sensor never starts a run, so
    everything it does may be repeated.

    Args:
        agent_id: the agent; may be left out with a `submission`. Templated.
        submission: what an `ExecuteAgentOperator(wait_for_completion=False)` returned, as a dict or as JSON text.
            Templated.
        event_id: the event of the run. Templated.
        started_after: a moment with a time zone; the agent's first run that began then or later. For agents that the
            platform starts on a schedule of its own; `{{ data_interval_start }}` is the normal use. Templated.
        started_before: the end of the interval that begins with `started_after`, exclusive; `{{ data_interval_end }}`
            is the normal use. If no run began in the interval, the task fails as late, or is skipped with `soft_fail`,
            as soon as none can appear any more. Without it the first run of any later day is taken. Templated.
        agents_conn_id: the connection. Templated.
        deferrable: wait in the triggerer; the default unless `mode` is given.
        poke_interval: seconds between two polls: 5 by default, and 60 with `mode="reschedule"`, where each poll takes
            a worker.
        timeout: seconds, or a `timedelta`, for one try; then the task fails, or is skipped with `soft_fail`.
        soft_fail: skip the task, instead of failing it, if the run failed or is late. A bad key, an unknown agent or a
            wrong `event_id` fails it all the same.
        never_fail: skip the task after every failure, a bad key included.
        settle: seconds within which the event of a run appears. The first run after a moment is not reported before.
            None: the connection's value, or else 30.
        appear_within: seconds after acceptance after which a submission without an event counts as lost. None: the
            connection's value, or else 300.
        exclusive: nothing else starts the agent while the task waits, so a submission's run, or the first run after a
            moment, is reported as soon as it has ended. None: the connection's value, or else False.
        on_ambiguous: as in `ExecuteAgentOperator`.
        start_from_trigger: never take a worker: the scheduler hands the task to the triggerer, which also ends it if
            the run COMPLETED (Airflow 3.3 and later; not for mapped tasks, which take a worker as usual). What names
            the run must be text, templates included, and no XComArg.

    Raises:
        InvalidArgumentError: an argument cannot be used (when the DAG is parsed, as far as it is known then).
        AirflowFailException: the run failed, cannot be told from others or cannot be found, or what was given cannot
            be used; no retry can fix it. Its `__cause__` is the typed error, where a worker has seen it.
        AirflowSensorTimeout: the run was not over in time, or no run began before `started_before`.
        AirflowSkipException: with `soft_fail`.
    """

    template_fields = ("agent_id", "agents_conn_id", *selectors.ARGUMENTS)
    operator_extra_links = (AgentRunLink(),)
    ui_color = "#efe9fa"

    def __init__(  # noqa: PLR0913 - keyword-only settings
        self,
        *,
        agent_id: str | None = None,
        submission: dict[str, Any] | str | XComArg | None = None,
        event_id: str | None = None,
        started_after: datetime | str | None = None,
        started_before: datetime | str | None = None,
        agents_conn_id: str = AgentsHook.default_conn_name,
        deferrable: bool | None = None,
        poke_interval: float | timedelta | None = None,
        timeout: float | timedelta = 86400.0,
        soft_fail: bool = False,
        never_fail: bool = False,
        settle: float | None = None,
        appear_within: float | None = None,
        exclusive: bool | None = None,
        on_ambiguous: OnAmbiguous = "share",
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        # A wrong value must not fail in Airflow's own constructor: for a mapped task that is retried.
        mode = kwargs.pop("mode", None)
        super().__init__(**kwargs)
        # A DAG's default arguments bring a mode as well.
        is_deferred = mode is None and not self.reschedule
        self.mode = self.mode if mode is None else mode
        self.deferrable = is_deferred if deferrable is None else deferrable
        on_worker = self.reschedule and self.deferrable is False
        self.poke_interval: Any = (60.0 if on_worker else 5.0) if poke_interval is None else poke_interval
        self.timeout: Any = validation.in_seconds(timeout)
        self.soft_fail = soft_fail
        self.never_fail = never_fail
        self.agent_id = agent_id
        self.submission = submission
        self.event_id = event_id
        self.started_after = started_after
        self.started_before = started_before
        self._selecting = frozenset(name for name in selectors.ARGUMENTS if getattr(self, name) is not None)
        self.agents_conn_id = agents_conn_id
        self.settle = validation.in_seconds(settle)
        self.appear_within = validation.in_seconds(appear_within)
        self.exclusive = exclusive
        self.on_ambiguous = on_ambiguous
        if deferrable is True and mode is not None:
            raise InvalidArgumentError(
                f"mode of task {self.task_id!r} is for a sensor that polls on a worker. Leave out mode, or deferrable."
            )
        if not validation.made_from_mapped(self):
            ARGUMENTS.check(self, parsing=True)
        validation.checked_switch(self, "start_from_trigger", start_from_trigger)
        self._interruption = Interruption()
        self._soft_fail = SoftFail()
        self._polls = SinglePolls()
        self._policy: WaitPolicy | None = None
        self._patient: Patience | None = None
        self._began_at = now()
        self._warn_once = WarnOnce()
        self._paused_until: datetime | None = None
        #: What `AgentRunLink` reads.
        self.run_link: str | None = None
        if start_from_trigger:
            self._start_from_trigger()

    def _start_from_trigger(self) -> None:
        validation.refuse_trigger_start(self)
        path, arguments = self._trigger(end=True).serialize()
        # On this instance and never on the class: mapped tasks would be started with the class's arguments.
        self.start_from_trigger = True
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=path,
            trigger_kwargs=arguments,
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout + DEFER_MARGIN_SECONDS),
        )

    def _trigger(self, *, deadline_at: datetime | None = None, end: bool = False) -> AgentRunTrigger:
        """The trigger that waits for the run.

        Args:
            deadline_at: when to give up; None for `timeout` seconds after the task began.
            end: whether the trigger ends the task if the run COMPLETED.
        """
        # Without a worker, the trigger asks the connection for what the arguments leave out.
        policy: WaitPolicy | AgentRunSensor = self._policy or self
        return AgentRunTrigger(
            agents_conn_id=self.agents_conn_id,
            agent_id=self.agent_id,
            poll_interval=self.poke_interval,
            deadline_at=deadline_at.isoformat() if deadline_at is not None else None,
            timeout=self.timeout,
            settle=policy.settle,
            appear_within=policy.appear_within,
            exclusive=policy.exclusive,
            on_ambiguous=self.on_ambiguous,
            end_with=keys_at_end(self) if end else None,
            show=() if self.run_link else ("run_url",),
            **self.selecting,
        )

    @property
    def selecting(self) -> dict[str, Any]:
        """The arguments that select the run; None for a template that was rendered to nothing."""
        values = {name: getattr(self, name) for name in selectors.ARGUMENTS}
        return {name: value for name, value in values.items() if name in self._selecting or value is not None}

    # --- on a worker ---

    def execute(self, context: Context) -> Any:
        """Wait in the triggerer, or poll from this worker."""
        with self._interruption.running(self._log_kill):
            return self._execute(context)

    def _execute(self, context: Context) -> Any:
        # Nothing of an earlier try.
        self.run_link, self._patient, self._policy, self._polls = "", None, None, SinglePolls()
        self._began_at = now()
        self._soft_fail.apply(self, lambda: ARGUMENTS.check(self))
        if not self.deferrable:
            # Airflow's own code sleeps between two pokes. With mode="reschedule" it does not, and asks its server.
            with nullcontext() if self.reschedule else interruptible():
                return self._soft_fail.apply(self, lambda: super(AgentRunSensor, self).execute(context))
        self._soft_fail.apply(self, lambda: self._read_policy(connect(self.agents_conn_id, self.log.warning)))
        # A run that is over needs no trigger, and what cannot work is reported at once. Also, a trigger that fires in
        # the instant in which it starts can overtake the scheduler's note of the deferral, which then fails the task.
        done = self._soft_fail.apply(self, lambda: self.poke(context))
        if isinstance(done, PokeReturnValue):
            return done.xcom_value
        deadline_at = now() + timedelta(seconds=self.timeout)
        if self.execution_timeout is not None:
            deadline_at = min(deadline_at, began_at(context) + self.execution_timeout)
        self.log.info("%s agent=%s", WAITS_IN_TRIGGERER.format("for the run", deadline_at), self._selector().agent_id)
        return self.defer(
            trigger=self._trigger(deadline_at=deadline_at),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout + self.poke_interval + DEFER_MARGIN_SECONDS),
        )

    def _read_policy(self, hook: AgentsHook) -> WaitPolicy:
        """How to wait, found out once."""
        if self._policy is None:
            has_appeared = selectors.selector_class(self.selecting).has_appeared
            self._policy = validation.policy_of(self, hook.settings(), needs_verdict=not has_appeared)
        return self._policy

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Poll once, with `mode="reschedule"` again after a refusal that is not believed yet.

        It does not poll before the end of a pause that the server has asked for.

        Raises:
            AirflowException: as the class says.
        """
        if self._paused_until is not None and now() < self._paused_until:
            return False
        with uninterruptible():
            while (done := self._poke_once(context)) is None:
                sleep(_REFUSED_POKE_SECONDS)
        return done

    def _poke_once(self, context: Context) -> bool | PokeReturnValue | None:
        """What Airflow's sensors expect; None if this process must poll again."""
        deadline_at = (self._first_reschedule(context) or self._began_at) + timedelta(seconds=self.timeout)
        # Another process sends the next poll then, and knows nothing of what this one has seen.
        is_only_poll = self.reschedule and not self.deferrable
        poll = functools.partial(
            self._polls.poll,
            deadline_at=deadline_at,
            say=self.log.log,
            is_followed=self.deferrable or self.reschedule,
            read_starts=sync_reader(self.agents_conn_id),
        )
        try:
            selector, hook = self._selector(), AgentsHook(self.agents_conn_id)
            policy = self._read_policy(hook)
            with hook.get_conn(self._warn_once) as client:
                verdict, submission = poll(client, selector, policy)
                for _ in range(_SETTLINGS):
                    if verdict is None and self._polls.lacks_only_time and is_only_poll:
                        sleep(policy.settle)
                        verdict, submission = poll(client, selector, policy)
            if self._polls.known is not None:
                log_run_url(self, selector.agent_id, self._polls.known.id, hook)
        except AgentsError as error:
            final = self._patience(context).failed(error, now())
            if final is not None:
                raise non_retryable_failure(final) from final.with_traceback(None)
            self._paused_until = now() + timedelta(seconds=retry_after_of(error) or 0.0)
            self.log.warning("%s", in_words(error) if is_refusal(error) else f"{error} Polling again.")
            if is_refusal(error) and is_only_poll:
                return False if now() >= deadline_at else None
            return False
        self._patience(context).succeeded()
        if verdict is None:
            return False
        self._known = LineageInfo(submission=submission, verdict=verdict, base_url=base_url_of(hook))
        return PokeReturnValue(is_done=True, xcom_value=self._end(verdict, submission, selector))

    def _patience(self, context: Context) -> Patience:
        """Which failure ends this try."""
        if self._patient is None:
            # A refused first poke fails the task, so a try that pokes again after a reschedule was not refused.
            self._patient = Patience(answered=self.reschedule and self._first_reschedule(context) is not None)
        return self._patient

    @staticmethod
    def _first_reschedule(context: Context) -> datetime | None:
        """When this try began to poll, if that was in an earlier process."""
        first = getattr(context.get("ti"), "get_first_reschedule_date", lambda _: None)(context)
        return first if isinstance(first, datetime) else None

    def _selector(self) -> RunSelector:
        return selectors.select(self.agent_id, self.selecting)

    def on_kill(self) -> None:
        """End the wait, not the run. Airflow calls this in a signal handler.

        Raises:
            SystemExit: in a pause or a request. Anything else is finished first.
        """
        self._interruption.request()

    def _log_kill(self) -> None:
        self.log.warning("The task was killed. The run that it waited for is left as it is. %s", self._polls.state)

    # --- the end ---

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:  # noqa: ARG002 - Airflow's
        """Resume when the trigger has seen the end.

        Args:
            context: Airflow's.
            event: `RunEnded.to_json()`.
        """

        def end() -> dict[str, Any]:
            # Of the task's own arguments nothing is read: they were rendered again since, perhaps to something else.
            ended = RunEnded.from_json(event)
            verdict = ended.verdict()
            hook = AgentsHook(ended.agents_conn_id)
            self._known = LineageInfo(submission=ended.submission, verdict=verdict, base_url=base_url_of(hook))
            if verdict is None:
                failure = AirflowFailException if ended.for_good else TemporaryError
                raise failure(ended.error or "The wait failed.")
            own = own_event(verdict, ended.submission)
            if own is not None:
                log_run_url(self, ended.submission.agent_id, own.id, hook)
            selector = ended.selector or selectors.BySubmission(
                agent_id=ended.submission.agent_id, submission=ended.submission
            )
            return self._end(verdict, ended.submission, selector)

        return self._soft_fail.apply(self, end)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's sensors do, but `soft_fail` does not hide what is not soft."""
        resume = super().resume_execution
        return self._soft_fail.apply(self, lambda: resume(next_method, next_kwargs, context))

    def _end(self, verdict: Verdict, submission: Submission, selector: RunSelector) -> dict[str, Any]:
        event, error = verdict.event, selector.to_error(verdict, submission)
        match error:
            case None if event is not None:
                level = logging.INFO if len(verdict.events) == 1 else logging.WARNING
                self.log.log(level, "%s", describe_completed(verdict, submission))
                return event.to_json()
            case None:
                raise AssertionError("unreachable: a COMPLETED verdict has an event")
            case AgentRunTimeoutError():
                raise AirflowSensorTimeout(str(error))
            case AmbiguousAgentRunError():
                log_advice(self.log)
        raise AirflowFailException(str(error)) from error

    @property
    def lineage_agent(self) -> object:
        """Whose run is waited for; None if that is not known."""
        try:
            return self._selector().agent_id
        except AgentsError:
            return None
