"""What operators and sensors share: checks of arguments, and how a worker gets at the connection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger

from airflow_provider_agents.api.calls import check_agent_id
from airflow_provider_agents.api.errors import InvalidArgumentError, MissingConnectionError, quote
from airflow_provider_agents.api.retry import START_PATIENCE_SECONDS, RetryWindow
from airflow_provider_agents.clock import now, sleep
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.triggers import MOST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import BaseOperator
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_agents.runs.submission import Submission
    from airflow_provider_agents.runs.verdict import Verdict

#: Seconds by which Airflow's own deferral timeout comes after ours, so that the clean end wins: Airflow's would fail
#: the task without a last look and without its verdict.
DEFER_MARGIN_SECONDS = 180.0
#: Airflow 3.3 brought, all at once, what the triggerer needs to end a task well, or to start one: `on_kill` is the part
#: of it that can be seen.
TRIGGERS_END_TASKS = hasattr(BaseTrigger, "on_kill")


def is_template(value: object) -> bool:
    """Whether a value is only known when the task runs."""
    return not isinstance(value, str) or "{" in value


def check_early(agent_id: object) -> None:
    """Refuse an agent's id when the DAG is parsed, as far as it is known then.

    Raises:
        InvalidArgumentError: it is none.
    """
    if agent_id is None or not is_template(agent_id):
        check_agent_id(agent_id)


def check_seconds(name: str, value: object) -> float:
    """`value` as seconds: a number or a `timedelta`, above 0, a hundred years at most.

    Raises:
        InvalidArgumentError: it is anything else.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MOST_SECONDS:
        raise InvalidArgumentError(
            f"{name} must be a number of seconds above 0, and at most a hundred years, got {quote(repr(value), 60)}."
        )
    return float(seconds)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value`, if it is one of the choices.

    Raises:
        InvalidArgumentError: it is not.
    """
    if value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(choices)}, got {quote(repr(value), 60)}.")
    return str(value)


def check_appearance(settle: float, appear_within: float) -> None:
    """Refuse times that contradict each other.

    Raises:
        InvalidArgumentError: `appear_within` is the shorter one.
    """
    if appear_within < settle:
        raise InvalidArgumentError(
            f"appear_within ({appear_within:g}) must be at least settle ({settle:g}): until a run has settled, nothing "
            "can be said about it."
        )


def lost_in_trigger(task: BaseOperator) -> str | None:
    """What a task would lose if its trigger ended it, as far as the task itself shows it; None if nothing."""
    if getattr(task, "outlets", None):
        return "its outlets: the asset events would never come"
    callbacks: Any = getattr(task, "on_success_callback", None)
    if callbacks:
        return "its on_success_callback: Airflow would not call it"
    return None


def check_end_from_trigger(task: BaseOperator, name: str) -> None:
    """Refuse to end a task from its trigger where that cannot be done, or would lose something.

    Args:
        task: as its DAG has made it.
        name: the argument that asks for it.

    Raises:
        InvalidArgumentError: saying why.
    """
    if not TRIGGERS_END_TASKS:
        raise InvalidArgumentError(f"{name} needs Airflow 3.3 or newer; leave it out.")
    lost = lost_in_trigger(task)
    if lost is not None:
        raise InvalidArgumentError(f"{name} would lose {lost}. Leave one of the two out.")


def start_window(say: Callable[[str], object]) -> RetryWindow:
    """How long a worker retries failures in a row as long as no run is lost by giving up.

    Args:
        say: called with a warning now and then.
    """
    return RetryWindow(START_PATIENCE_SECONDS, now=now, say=say)


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


def base_url_of(hook: AgentsHook) -> str | None:
    """The API that a connection leads to, or None if that cannot be told now: nobody's run depends on it."""
    try:
        return hook.settings().base_url
    except Exception:  # noqa: BLE001 - beside what AgentsHook raises: whatever keeps Airflow from looking it up
        return None


# Without a repr: OpenLineage can be told to send a task's attributes in words, and events hold what users wrote.
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Known:
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
        """The same for OpenLineage; None where its provider is not installed, or nothing is known to tell of."""
        agent_id = self.submission.agent_id if self.submission is not None else agent_id
        if not isinstance(agent_id, str):
            return None
        try:
            from airflow_provider_agents.lineage import lineage_of_run
        except ImportError:
            return None
        return lineage_of_run(agent_id, self.submission, self.verdict, self.base_url)
