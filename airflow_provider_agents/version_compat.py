"""Every question about Airflow's version, asked once."""

from __future__ import annotations

from airflow.triggers.base import BaseEventTrigger, BaseTrigger

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError
except ImportError:  # where they were before Airflow 3.1
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowRescheduleException,
        TaskDeferralError,
    )

__all__ = [
    "NEXT_TRY_WAITS",
    "TRIGGERS_END_TASKS",
    "WATCHERS_HAVE_QUEUES",
    "AirflowRescheduleException",
    "TaskDeferralError",
    "clears_discard_state",
]

#: Airflow 3.3 brought at once the parts that the triggerer needs to end a task well, or to start one. `on_kill` is the
#: part that can be seen.
TRIGGERS_END_TASKS = hasattr(BaseTrigger, "on_kill")

#: Airflow 3.4 and newer let a watcher choose the triggerers that run it.
WATCHERS_HAVE_QUEUES = hasattr(BaseEventTrigger, "queue")


def clears_discard_state() -> bool:
    """Whether a clear discards a task's state, unless the user asks to keep it: from Airflow 3.4 on.

    An attribute of triggers came with the same release.
    """
    return hasattr(BaseTrigger, "trigger_queue_inherited_from_task")


#: What a new try of a task with a record does about a run that is still running.
NEXT_TRY_WAITS = "A retry or clear waits for the same run again."
if clears_discard_state():
    NEXT_TRY_WAITS += (
        ' If the run has ended by then, a clear starts a new run, unless "Keep task state and resume" is ticked.'
    )
