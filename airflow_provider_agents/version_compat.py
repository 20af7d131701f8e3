"""Every question about Airflow's version, asked once."""

from __future__ import annotations

from airflow.triggers.base import BaseTrigger

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferralError
except ImportError:  # where they were before Airflow 3.1
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowRescheduleException,
        TaskDeferralError,
    )

__all__ = ["TRIGGERS_END_TASKS", "AirflowRescheduleException", "TaskDeferralError"]

#: Airflow 3.3 brought at once the parts that the triggerer needs to end a task well, or to start one. `on_kill` is the
#: part that can be seen.
TRIGGERS_END_TASKS = hasattr(BaseTrigger, "on_kill")
