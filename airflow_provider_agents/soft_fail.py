"""The sensor's `soft_fail` and `never_fail`: which failures skip the task, in whichever mode and step it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowSensorTimeout, AirflowSkipException

from airflow_provider_agents.api.errors import AgentRunFailedError, AgentRunNotFoundError, AgentsError
from airflow_provider_agents.tasks import non_retryable_failure
from airflow_provider_agents.version_compat import AirflowRescheduleException, TaskDeferralError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.sensors import AgentRunSensor

R = TypeVar("R")

#: The failures after which Airflow's sensors skip by themselves.
_SKIPPED_BY_AIRFLOW = (AirflowException, TaskDeferralError)


class SoftFail:
    """Decides on the failures of one sensor."""

    def __init__(self) -> None:
        # No subclass of Airflow's skip tells ours apart: its name would stand in the user's log.
        self._skip: AirflowSkipException | None = None

    def apply(self, sensor: AgentRunSensor, step: Callable[[], R]) -> R:
        """Do a step of the sensor.

        Args:
            sensor: as it is executed: Airflow executes a copy of the DAG's task.
            step: what may fail. It may itself consist of such steps.

        Raises:
            AirflowSkipException: the step has failed, and the sensor is skipped then.
        """
        try:
            return step()
        except AirflowRescheduleException:
            raise
        except AirflowSkipException as skip:
            if self._skip is not None and self._skip in (skip, skip.__cause__):
                raise self._skip  # noqa: B904 - it is this skip, or Airflow's around it, and has its own cause
            # Airflow itself skips after every failure around a poll, also where soft_fail must not hide it.
            if not isinstance(skip.__cause__, _SKIPPED_BY_AIRFLOW) and not (
                sensor.never_fail is True and skip.__cause__
            ):
                sensor.log.warning("The task is skipped. %s", skip)
                raise
            failure: BaseException = skip.__cause__
        except AgentsError as error:
            failure = error if error.is_retryable else non_retryable_failure(error)
        except Exception as error:  # noqa: BLE001 - as Airflow's sensors do for never_fail
            failure = error
        # A wrong value, such as a text, asks for nothing.
        if not (sensor.never_fail is True or (sensor.soft_fail is True and _is_soft(failure))):
            raise failure
        option = "never_fail" if sensor.never_fail is True else "soft_fail"
        # Airflow shows no reason for a skip.
        sensor.log.warning("The task is skipped (%s). %s", option, failure)
        self._skip = AirflowSkipException(f"{failure} Skipped, as {option} says.")
        raise self._skip from failure


def _is_soft(failure: BaseException) -> bool:
    """Whether a failure is one that `soft_fail` skips: the run failed, is late or was lost, or its wait broke."""
    if isinstance(failure, AirflowSensorTimeout | TaskDeferralError):
        return True
    return isinstance(failure.__cause__, AgentRunFailedError | AgentRunNotFoundError)
