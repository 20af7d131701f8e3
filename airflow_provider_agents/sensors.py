"""AgentRunSensor: wait for a run that something else has started."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)
from airflow.triggers.base import StartTriggerArgs

from airflow_provider_agents.api.errors import AgentsError, InvalidArgumentError, TemporaryError
from airflow_provider_agents.api.rows import WarnOnce
from airflow_provider_agents.clock import now, sleep
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.links import RUN_URL_KEY, AgentRunLink
from airflow_provider_agents.runs.matching import Look, Missing
from airflow_provider_agents.runs.patience import Patience, is_refusal
from airflow_provider_agents.runs.sought import FirstRun, Sought, check_bound, check_names, list_begun, read_moment
from airflow_provider_agents.runs.submission import Submission, attached_to
from airflow_provider_agents.runs.verdict import (
    ON_AMBIGUOUS,
    Outcome,
    Rules,
    Verdict,
    Wait,
    error_of,
    is_terminal,
    own_event,
)
from airflow_provider_agents.runs.waiting import LateWarning, in_words, state_of
from airflow_provider_agents.tasks import (
    DEFER_MARGIN_SECONDS,
    Known,
    base_url_of,
    check_appearance,
    check_choice,
    check_early,
    check_end_from_trigger,
    check_seconds,
    connect,
    is_template,
)
from airflow_provider_agents.triggers import AgentSensorTrigger, RunEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.api.models import ExecutionEvent

R = TypeVar("R")

#: Seconds between two looks of one process after a refusal, with `mode="reschedule"`: twenty in the five minutes.
_REFUSED_POKE_SECONDS = 15.0


class _NotSoftError(AirflowFailException):
    """What `soft_fail` must not hide: no run has failed or is late, the task itself is wrong."""


class AgentRunSensor(BaseSensorOperator):
    """Wait for one run that something else has started, and return its final event.

    The run is named by exactly one of `submission`, `event_id` and `started_after`. The sensor never starts a run, so
    everything it does may be repeated.

    Args:
        agent_id: the agent; may be left out with a `submission`. Templated.
        submission: what an `ExecuteAgentOperator(wait_for_completion=False)` returned. Templated.
        event_id: the event of the run. Templated.
        started_after: a moment with a time zone; the agent's first run that began then or later. For agents that the
            platform starts on a schedule of its own; `{{ data_interval_start }}` is the normal use. Templated.
        started_before: the end of the interval that begins with `started_after`, exclusive; `{{ data_interval_end }}`
            is the normal use. If no run began in the interval, the task fails as late, or is skipped with `soft_fail`,
            as soon as none can appear any more. Without it the first run of any later day is taken. Templated.
        agents_conn_id: the connection. Templated.
        deferrable: wait in the triggerer; the default unless `mode` is given.
        poke_interval: seconds between two looks: 5 by default, and 60 with `mode="reschedule"`, where each look takes
            a worker.
        timeout: seconds, or a `timedelta`, for one try; then the task fails, or is skipped with `soft_fail`.
        soft_fail: skip the task, instead of failing it, if the run failed or is late. A bad key, an unknown agent or a
            wrong `event_id` fails it all the same.
        settle: seconds within which the event of a run appears. The first run after a moment is not told before.
        appear_within: seconds after acceptance after which a submission without an event counts as lost.
        on_ambiguous: as in `ExecuteAgentOperator`.
        start_from_trigger: never take a worker: the scheduler hands the task to the triggerer, which also ends it if
            the run COMPLETED (Airflow 3.3 and later; not for mapped tasks, which take a worker as usual). What names
            the run must be text, templates included, and no XComArg.

    Raises:
        InvalidArgumentError: an argument cannot be used (when the DAG is parsed, as far as it is known then).
        AirflowFailException: the run failed, cannot be told from others or cannot be found, or what was given cannot
            be used; no retry can mend it. Its `__cause__` is the typed error, where a worker has seen it.
        AirflowSensorTimeout: the run was not over in time, or no run began before `started_before`.
        AirflowSkipException: with `soft_fail`.
    """

    template_fields = ("agent_id", "agents_conn_id", "submission", "event_id", "started_after", "started_before")
    operator_extra_links = (AgentRunLink(),)
    ui_color = "#efe9fa"

    def __init__(  # noqa: PLR0913 - keyword-only settings
        self,
        *,
        agent_id: str | None = None,
        submission: dict[str, Any] | None = None,
        event_id: str | None = None,
        started_after: datetime | str | None = None,
        started_before: datetime | str | None = None,
        agents_conn_id: str = AgentsHook.default_conn_name,
        deferrable: bool | None = None,
        poke_interval: float | timedelta | None = None,
        timeout: float | timedelta = 86400.0,
        soft_fail: bool = False,
        settle: float = 30.0,
        appear_within: float = 300.0,
        on_ambiguous: str = "all",
        start_from_trigger: bool = False,
        **kwargs: Any,
    ) -> None:
        if deferrable and "mode" in kwargs:
            raise InvalidArgumentError("mode is for a sensor that looks on a worker: leave out mode, or deferrable.")
        super().__init__(
            poke_interval=check_seconds("poke_interval", 5.0 if poke_interval is None else poke_interval),
            timeout=check_seconds("timeout", timeout),
            soft_fail=soft_fail,
            **kwargs,
        )
        # A DAG's default arguments bring a mode as well.
        self.deferrable = ("mode" not in kwargs and not self.reschedule) if deferrable is None else deferrable
        if poke_interval is None and self.reschedule and not self.deferrable:
            self.poke_interval = 60.0
        self.agent_id = agent_id
        self.submission = submission
        self.event_id = event_id
        self.started_after = started_after
        self.started_before = started_before
        self._is_bounded = started_before is not None
        self.agents_conn_id = agents_conn_id
        self.settle = check_seconds("settle", settle)
        self.appear_within = check_seconds("appear_within", appear_within)
        check_appearance(self.settle, self.appear_within)
        self.on_ambiguous = check_choice("on_ambiguous", on_ambiguous, ON_AMBIGUOUS)
        self._check_early()
        self._first: FirstRun | None = None
        self._wait: Wait | None = None
        self._late_warning: LateWarning | None = None
        self._lacks_only_time = False
        self._patient: Patience | None = None
        self._began_at = now()
        self._told = ""
        self._known = Known()
        self._warn_once = WarnOnce()
        #: What `AgentRunLink` reads.
        self.run_link: str | None = None
        if start_from_trigger:
            self._start_from_trigger()

    def _check_early(self) -> None:
        """Refuse what can never name a run, as far as it is known when the DAG is parsed."""
        if self.agent_id is not None or self.submission is None:
            check_early(self.agent_id)
        # What a template or an XCom will bring counts as given; only what is plain is looked at.
        named = {"submission": self.submission, "event_id": self.event_id}
        moments = {"started_after": self.started_after, "started_before": self.started_before}
        given = {name: value for name, value in (named | moments).items() if value is not None}
        check_names(**named, **moments)
        plain = {
            name: value for name, value in given.items() if isinstance(value, datetime | dict) or not is_template(value)
        }
        for name, value in plain.items():
            if name in moments:
                read_moment(name, value)
        if plain == given:
            agent_id = self.agent_id if isinstance(self.agent_id, str) or self.submission is None else None
            Sought.of(agent_id=agent_id, **named, **moments)

    def _start_from_trigger(self) -> None:
        if not self.deferrable:
            raise InvalidArgumentError("start_from_trigger is for a deferrable sensor: leave out mode and deferrable.")
        check_end_from_trigger(self, "start_from_trigger")
        arguments = self._trigger_arguments(deadline_at=None, end=True)
        for name in self.template_fields:
            if not isinstance(arguments[name], str | dict | None):
                raise InvalidArgumentError(
                    f"start_from_trigger needs a {name} that is known when the DAG is parsed, or a template: an XCom "
                    "is read by a worker only. Leave one of the two out."
                )
        # On this instance and never on the class: mapped tasks would be started with the class's arguments.
        self.start_from_trigger = True
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="airflow_provider_agents.triggers.AgentSensorTrigger",
            trigger_kwargs=arguments,
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout + DEFER_MARGIN_SECONDS),
        )

    def _trigger_arguments(self, *, deadline_at: datetime | None, end: bool) -> dict[str, Any]:
        after, before = self.started_after, self.started_before
        return {
            "agents_conn_id": self.agents_conn_id,
            "agent_id": self.agent_id,
            "submission": self.submission,
            "event_id": self.event_id,
            "started_after": after.isoformat() if isinstance(after, datetime) else after,
            "started_before": before.isoformat() if isinstance(before, datetime) else before,
            "poll_interval": self.poke_interval,
            "deadline_at": deadline_at.isoformat() if deadline_at is not None else None,
            "timeout": self.timeout,
            "settle": self.settle,
            "appear_within": self._appear_within,
            "on_ambiguous": self.on_ambiguous,
            # Airflow itself writes a link whatever `do_xcom_push` says.
            "end_with": (["return_value", "event_id", "usage"] if self.do_xcom_push else []) + [RUN_URL_KEY]
            if end
            else None,
            "show": [] if self.run_link else [RUN_URL_KEY],
        }

    @property
    def _appear_within(self) -> float:
        # Whoever names an event has seen it, so it is there as soon as all replicas have it.
        return self.settle if self.event_id is not None else self.appear_within

    # --- on a worker ---

    def execute(self, context: Context) -> Any:
        """Wait in the triggerer, or look from here."""
        self.run_link, self._patient = "", None  # nothing of an earlier try
        self._began_at = now()
        if not self.deferrable:
            return self._not_softly(lambda: super(AgentRunSensor, self).execute(context))
        self._not_softly(lambda: connect(self.agents_conn_id, self.log.warning))
        # A run that is over needs no trigger, and what cannot work is said at once. Also, a trigger that fires in the
        # instant in which it starts can overtake the scheduler's note of the deferral, which then fails the task.
        done = self._not_softly(lambda: self.poke(context))
        if isinstance(done, PokeReturnValue):
            return done.xcom_value
        deadline_at = now() + timedelta(seconds=self.timeout)
        return self.defer(
            trigger=AgentSensorTrigger(**self._trigger_arguments(deadline_at=deadline_at, end=False)),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout + self.poke_interval + DEFER_MARGIN_SECONDS),
        )

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Look once, with `mode="reschedule"` again after a refusal that is not believed yet.

        Raises:
            AirflowException: as the class says.
        """
        while (done := self._poke_once(context)) is None:
            sleep(_REFUSED_POKE_SECONDS)
        return done

    def _poke_once(self, context: Context) -> bool | PokeReturnValue | None:
        """What Airflow's sensors expect; None if this process must look again."""
        try:
            sought, hook = self._sought(), AgentsHook(self.agents_conn_id)
            with hook.get_conn(self._warn_once) as client:
                verdict, submission = self._look(sought, client)
                if verdict is None and self._lacks_only_time and self.reschedule and not self.deferrable:
                    # The next look is another process's, which would have to count from nothing again.
                    sleep(self.settle)
                    verdict, submission = self._look(sought, client)
            if self._wait is not None and self._wait.is_known:
                self._show(sought.agent_id, self._wait.events[0].id, hook)
        except AgentsError as error:
            final = self._patience(context).failed(error, now())
            if final is not None:
                # Without its thirty lines of traceback: they push what it says, which is what helps, off the page.
                raise _NotSoftError(str(final)) from final.with_traceback(None)
            self.log.warning("%s", in_words(error) if is_refusal(error) else f"{error} Looking again.")
            if is_refusal(error) and self.reschedule and not self.deferrable:
                # The next poke is another process's, which would know nothing of this refusal.
                began_at = self._first_reschedule(context) or self._began_at
                return False if now() >= began_at + timedelta(seconds=self.timeout) else None
            return False
        self._patience(context).succeeded()
        if verdict is None:
            return False
        self._known = Known(submission=submission, verdict=verdict, base_url=base_url_of(hook))
        return PokeReturnValue(is_done=True, xcom_value=self._end(verdict, submission, sought.interval))

    def _patience(self, context: Context) -> Patience:
        """Which failure ends this try."""
        if self._patient is None:
            # A refused first poke fails the task, so a try that pokes again after a reschedule was not refused.
            self._patient = Patience(answered=self.reschedule and self._first_reschedule(context) is not None)
        return self._patient

    @staticmethod
    def _first_reschedule(context: Context) -> datetime | None:
        """When this try began to look, if that was in an earlier process."""
        first = getattr(context["ti"], "get_first_reschedule_date", lambda _: None)(context)
        return first if isinstance(first, datetime) else None

    def _look(self, sought: Sought, client: Client) -> tuple[Verdict | None, Submission]:
        submission = self._wait.submission if self._wait is not None else sought.known(now())
        first: ExecutionEvent | None = None
        if submission is None:
            found = self._find_first(sought, client)
            if found is None or isinstance(found, Missing):
                self._tell(f"No run of agent {sought.agent_id} is known yet that began {sought.interval}")
                verdict = None if found is None else Verdict(Outcome.NOT_FOUND)
                return verdict, Submission(agent_id=sought.agent_id, taken_at=now())
            first = found
            submission = attached_to(first, sought.agent_id, now())
        began_at = now()
        if self._wait is None:
            rules = Rules(settle=self.settle, appear_within=self._appear_within, on_ambiguous=self.on_ambiguous)
            self._wait = Wait(submission, rules, began_at)
            self._late_warning = LateWarning(self._wait)
        # A run that was just shown need not be looked for again.
        look = Look((first,), None) if first is not None else client.follow(self._wait.look())
        verdict = self._wait.take(look, began_at)
        self._lacks_only_time = (
            self._wait.seek is not None
            and (look.server_time is None or submission.server_after is None)
            and all(is_terminal(event) for event in self._wait.events)
        )
        # Where another process looks next, that one warns as well.
        if self._late_warning is not None and (verdict is not None or not (self.deferrable or self.reschedule)):
            self._late_warning.log_once(self.log.log)
        self._tell(f"{state_of(self._wait)} (the run of {submission.name})")
        return verdict, submission

    def _find_first(self, sought: Sought, client: Client) -> ExecutionEvent | Missing | None:
        if sought.started_after is None:
            raise AssertionError("unreachable: a run is known, or sought by its begin")
        self._first = self._first or FirstRun(sought.started_before, self.settle)
        look = client.follow(list_begun(sought.agent_id, sought.started_after, sought.started_before, now=now))
        self._lacks_only_time = look.server_time is None and bool(look.events) and is_terminal(look.events[0])
        return self._first.take(look)

    def _tell(self, state: str) -> None:
        if state != self._told:
            self._told = state
            self.log.info("%s.", state)

    def _sought(self) -> Sought:
        check_bound(self.started_before, was_given=self._is_bounded)
        return Sought.of(
            agent_id=self.agent_id,
            submission=self.submission,
            event_id=self.event_id,
            started_after=self.started_after,
            started_before=self.started_before,
        )

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
            self._known = Known(submission=ended.submission, verdict=verdict, base_url=base_url_of(hook))
            if verdict is None:
                raise (_NotSoftError if ended.for_good else TemporaryError)(ended.error or "The wait could not go on.")
            own = own_event(verdict, ended.submission)
            if own is not None:
                self._show(ended.submission.agent_id, own.id, hook)
            return self._end(verdict, ended.submission, ended.interval)

        return self._not_softly(end)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow's sensors do, but `soft_fail` does not hide what is not soft."""
        return self._not_softly(lambda: super(AgentRunSensor, self).resume_execution(next_method, next_kwargs, context))

    def _end(self, verdict: Verdict, submission: Submission, interval: str | None) -> dict[str, Any]:
        event = verdict.event
        if verdict.outcome == Outcome.COMPLETED and event is not None:
            self.log.info("COMPLETED: event %s, the run of %s.", event.id, submission.name)
            return event.to_json()
        error = error_of(verdict, submission, what_now="")
        if verdict.outcome == Outcome.TIMED_OUT:
            name = submission.name
            if interval is not None:
                name = f"agent {submission.agent_id}, the first that began {interval}"
            self._late(str(error) if verdict.events else f"No run was over at the sensor's timeout: {name}.")
        if verdict.outcome == Outcome.NOT_FOUND and interval is not None:
            self._late(
                f"No run of agent {submission.agent_id} began {interval}, and none can appear any more. Look at the "
                "agent's schedule and its runs."
            )
        if verdict.outcome == Outcome.FAILED and self.soft_fail:
            raise AirflowSkipException(f"{error} Skipped, as soft_fail says.") from error
        if verdict.outcome == Outcome.NOT_FOUND and submission.event_id is not None:
            words = (
                f"Agent {submission.agent_id} has no event {submission.event_id}. Check both ids, and whose key it is."
            )
            raise _NotSoftError(words) from error
        soft = verdict.outcome in {Outcome.FAILED, Outcome.NOT_FOUND}
        raise (AirflowFailException if soft else _NotSoftError)(str(error)) from error

    def _show(self, agent_id: str, event_id: str, hook: AgentsHook) -> None:
        """Say where to look at the run; Airflow pushes it when this process ends."""
        try:
            url = hook.run_url(agent_id=agent_id, event_id=event_id)
        except AgentsError:
            return  # a link is a comfort
        if url is not None and url != self.run_link:
            self.log.info("Look at the run: %s", url)
            self.run_link = url

    def _late(self, words: str) -> NoReturn:
        if self.soft_fail:
            raise AirflowSkipException(f"{words} Skipped, as soft_fail says.")
        raise AirflowSensorTimeout(words)

    def _not_softly(self, step: Callable[[], R]) -> R:
        """Do a step; what `soft_fail` must not hide fails the task."""
        try:
            return step()
        except AirflowSkipException as skip:
            if isinstance(skip.__cause__, _NotSoftError) and self.soft_fail:
                raise skip.__cause__ from skip.__cause__.__cause__
            if isinstance(skip.__cause__, AirflowSkipException):
                # Ours says why; Airflow's, around it, only that soft_fail is set.
                raise skip.__cause__ from skip.__cause__.__cause__
            raise
        except AgentsError as error:
            if error.is_retryable:
                raise
            raise _NotSoftError(str(error)) from error.with_traceback(None)

    # --- for Airflow's OpenLineage provider, which asks in a fork of this process: no I/O ---

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any] | None:
        """Whose run is waited for; None without that provider."""
        return Known().lineage(self._agent_waited_for())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:  # noqa: ARG002 - Airflow's
        """What the task knows of the run; None without that provider."""
        return self._known.lineage(self._agent_waited_for())

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """The same of a run that failed, is late or got lost."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _agent_waited_for(self) -> str | None:
        try:
            return self._sought().agent_id
        except AgentsError:
            return None
