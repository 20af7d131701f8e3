"""What operators and sensors share: how a worker gets at the connection, and what a task knows of its run."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_agents.api.endpoints import get_agent
from airflow_provider_agents.api.errors import AgentsError, MissingConnectionError, one_line
from airflow_provider_agents.api.flow import value_of
from airflow_provider_agents.api.models import schedule_in_words
from airflow_provider_agents.api.retry import START_PATIENCE_SECONDS, RetryWindow
from airflow_provider_agents.asset_events import add_run
from airflow_provider_agents.clock import now, sleep
from airflow_provider_agents.hooks import AgentsHook

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.submission import Submission

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds by which Airflow's own deferral timeout comes after ours, so that the clean end wins: Airflow's would fail
#: the task without a last poll and without its verdict.
DEFER_MARGIN_SECONDS = 180.0
#: A task that waits on a worker ends by itself this many seconds before Airflow's `execution_timeout`: for one poll.
_ALARM_MARGIN_SECONDS = 5.0
#: Logged before a task defers. Without a triggerer the log would end here, without a reason.
WAITS_IN_TRIGGERER = (
    "The triggerer waits {} from now on, until {:%Y-%m-%d %H:%M:%S} UTC. A triggerer must be running; its lines follow "
    "here."
)


def fail_without_retry(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method of a task fail without retries after an error that a retry cannot fix."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except AgentsError as error:
            if error.is_retryable:
                raise
            raise non_retryable_failure(error) from error.with_traceback(None)

    return wrapped


def non_retryable_failure(error: AgentsError) -> AirflowFailException:
    """Airflow's failure without retries, for an error that a retry cannot fix; the error stays its cause."""
    failure = AirflowFailException(str(error))
    # Without its thirty lines of traceback, which would push the text off Airflow's page.
    failure.__cause__ = error.with_traceback(None)
    return failure


def began_at(context: Context) -> datetime:
    """When this try of a task began, on our clock. A resumed task began when it was first executed."""
    start_date = getattr(context.get("ti"), "start_date", None)
    if not isinstance(start_date, datetime):
        return now()
    # Airflow reports it on the system's clock, which is not ours in a test that skips time.
    return now() - max(datetime.now(UTC) - start_date, timedelta())


def deadline_of(task: Any, began_at: datetime) -> datetime:
    """When to give up: the earlier of `timeout` seconds from now and what is left of Airflow's `execution_timeout`.

    Args:
        task: an operator that can wait in the triggerer or on the worker.
        began_at: when this try began.
    """
    deadline_at: datetime = now() + timedelta(seconds=task.timeout)
    limit: timedelta | None = task.execution_timeout
    if limit is None:
        return deadline_at
    if not task.deferrable:
        # Airflow raises in the middle of a poll then. A moment earlier, the task ends with a poll and its verdict.
        limit -= min(timedelta(seconds=_ALARM_MARGIN_SECONDS), limit / 10)
    return min(deadline_at, began_at + limit)


def words_of_limit(task: Any) -> str:
    """A sentence about `execution_timeout` where that is a task's deadline; empty where `timeout` is."""
    limit: timedelta | None = task.execution_timeout
    if limit is None or limit.total_seconds() >= task.timeout:
        return ""
    return f"The deadline came from execution_timeout ({limit.total_seconds():g} s). "


def defer_timeout(deadline_at: datetime, *, poll_interval: float) -> timedelta:
    """How long Airflow may leave a task deferred whose trigger gives up at a deadline."""
    return max(deadline_at - now(), timedelta(0)) + timedelta(seconds=poll_interval + DEFER_MARGIN_SECONDS)


def keep_deferred_arguments(task: Any, agent_id: str, agents_conn_id: str) -> None:
    """Give a task the values that it was deferred with: its templates have been rendered again since."""
    if (task.agent_id, task.agents_conn_id) == (agent_id, agents_conn_id):
        return
    task.log.warning(
        "The task was deferred with agent %s and connection %s, and keeps using them. Its arguments have changed "
        "since: agent_id=%s agents_conn_id=%s",
        agent_id,
        agents_conn_id,
        one_line(repr(task.agent_id)),
        one_line(repr(task.agents_conn_id)),
    )
    task.agent_id, task.agents_conn_id = agent_id, agents_conn_id


def start_window(say: Callable[[str], object]) -> RetryWindow:
    """How long a worker retries failures in a row as long as no run is lost by giving up.

    Args:
        say: called with a warning now and then.
    """
    return RetryWindow(START_PATIENCE_SECONDS, warn=say)


def connect(agents_conn_id: str, say: Callable[[str], object]) -> AgentsHook:
    """A hook whose connection has been looked up.

    On a worker, Airflow answers "not found" to every look-up that fails, for example while its API server restarts. So
    a missing connection is looked up again, for `START_PATIENCE_SECONDS`.

    Args:
        agents_conn_id: the connection.
        say: called with a warning now and then.

    Raises:
        MissingConnectionError: it is still not there.
        InvalidConnectionError: it is wrong.
    """
    window = start_window(say)
    while True:
        hook = AgentsHook(agents_conn_id)
        try:
            hook.settings()
        except MissingConnectionError as error:
            pause = window.pause_after(error)
        else:
            return hook
        sleep(pause)


def warn_of_schedule(client: Client, agent_id: str, say: Callable[[str], object]) -> None:
    """Warn if the platform starts the agent by itself: then no task of the agent is exclusive. One request.

    Args:
        client: of the agent's connection.
        agent_id: the agent.
        say: called with the warning.
    """
    try:
        schedule = schedule_in_words(client.run_flow(value_of(get_agent(agent_id))).schedule)
    except AgentsError:
        return  # the start itself shows whether the agent can be used
    if schedule:
        say(
            "This task is exclusive, but the platform starts the agent on a schedule too. A run of that schedule can "
            f"be taken for this task's. Leave `exclusive` out for this agent. agent={agent_id} "
            f"schedule={one_line(schedule, 100)!r}"
        )


def base_url_of(hook: AgentsHook) -> str | None:
    """The API that a connection leads to, or None if that is not known now: no run depends on it."""
    try:
        return hook.settings().base_url
    except Exception:  # noqa: BLE001 - beside what AgentsHook raises: whatever keeps Airflow from looking it up
        return None


# Without a repr: OpenLineage can be told to send a task's attributes in words, and events hold what users wrote.
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LineageInfo:
    """What a task knows of its run; on the task's instance, for whoever asks once the try is over.

    Attributes:
        submission: the record of the run, once there is one.
        verdict: how the wait for it ended, if it did.
        base_url: the API that was asked.
    """

    submission: Submission | None = None
    verdict: Verdict | None = None
    base_url: str | None = None

    def lineage(self, agent_id: object) -> OperatorLineage[Any, Any] | None:
        """The same for OpenLineage; None where its provider is not installed, or nothing is known."""
        agent_id = self.submission.agent_id if self.submission is not None else agent_id
        if not isinstance(agent_id, str):
            return None
        try:
            from airflow_provider_agents.lineage import lineage_of_run
        except ImportError:
            return None
        return lineage_of_run(agent_id, self.submission, self.verdict, self.base_url)


class ReportsRun(ABC):
    """A task that reports its run: in its asset events, and to Airflow's OpenLineage provider.

    That provider asks in a fork of this process: no I/O.
    """

    _known = LineageInfo()

    @property
    @abstractmethod
    def lineage_agent(self) -> object:
        """The agent of a run of which nothing else is known."""

    def post_execute(self, context: Context, result: Any = None) -> None:  # noqa: ARG002 - Airflow's
        """Name the run in the asset events. Airflow calls this in the process that ends the task well."""
        add_run(self, context, self._known.submission, self._known.verdict)  # type: ignore[arg-type]  # a mixin

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any] | None:
        """Which agent runs; None without that provider."""
        return LineageInfo().lineage(self.lineage_agent)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:  # noqa: ARG002 - Airflow's
        """What the task knows of the run; None without that provider."""
        return self._known.lineage(self.lineage_agent)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """The same of a run that failed, is late or got lost."""
        return self.get_openlineage_facets_on_complete(task_instance)
